"""Qwen3-MoE: Qwen3's blocks with a mixture of experts in the place of most MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.module import Layer
from octavo.layers.moe import MoE
from octavo.layers.norm import HeadNorm, RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, Experts, WeightNames, also_in_gguf
from octavo.models.settings import Settings
from octavo.ops.moe import Routing

LAYER = "model.layers.{i}.mlp"
NAMES = {**GGUF, f"{LAYER}.gate": "blk.{i}.ffn_gate_inp"}
EXPERTS = also_in_gguf(
    {
        f"{layer}.weight": (Experts("safetensors", f"{LAYER}.experts.{{e}}.{layer}.weight"),)
        for layer in ("gate_proj", "up_proj", "down_proj")
    }
)


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-6)
    experts, chosen = settings.experts(128, 8)
    inner = settings.integer("moe_intermediate_size", 768)
    # GGUF files do not say it: all that are published are normed
    normed = settings.flag("norm_topk_prob", config["model_type"] == "qwen3moe")
    rotary, biased = settings.rotary(sizes.heads.dim, positions), settings.flag("attention_bias", False)
    window = settings.integer("sliding_window", 0, least=0) if settings.flag("use_sliding_window", False) else 0
    mixed = mixed_layers(settings, sizes.layers)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, window, qkv_bias=biased, output_bias=biased,
            qk_norm=lambda norm, _: HeadNorm(norm, sizes.heads.dim, eps),
        )  # fmt: skip
        mlp: Layer = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner)
        if i in mixed:
            mlp = MoE(f"{name}.mlp", sizes.width, inner, experts, Routing(chosen, over_all=not normed))
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(mlp, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
        )

    names = WeightNames(NAMES, experts=EXPERTS)
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)


def mixed_layers(settings: Settings, layers: int) -> set[int]:
    """Every decoder_sparse_step-th layer, but for those of mlp_only_layers."""
    every, plain = settings.integer("decoder_sparse_step", 1), settings.config.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(type(i) is int for i in plain):
        raise settings.wrong("mlp_only_layers", "must be a list of whole numbers")
    return {i for i in range(layers) if (i + 1) % every == 0 and i not in plain}
