"""Granite: Llama's blocks with four numbers: of the embedding, of what is added to the residual stream, of scores, of
logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.module import Layer
from octavo.layers.moe import MoE
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, Experts, WeightNames, also_in_gguf
from octavo.models.settings import Settings
from octavo.ops.moe import Routing

LAYER = "model.layers.{i}.block_sparse_moe"
EXPERTS = also_in_gguf(
    {
        "gate_proj.weight": (Experts("safetensors", f"{LAYER}.input_linear.weight", (0, 2), halves=True),),
        "up_proj.weight": (Experts("safetensors", f"{LAYER}.input_linear.weight", (1, 2), halves=True),),
        "down_proj.weight": (Experts("safetensors", f"{LAYER}.output_linear.weight"),),
    }
)


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    settings.without("mlp_bias")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-6)
    rotary = settings.rotary(sizes.heads.dim, positions)
    biased = settings.flag("attention_bias", False)
    multiplier, scale = settings.number("residual_multiplier", 1.0), settings.number("attention_multiplier", 1.0)
    logits = settings.number("logits_scaling", 1.0)
    experts, chosen = settings.experts(8, 2) if config["model_type"] == "granitemoe" else (0, 0)
    if logits <= 0:
        raise settings.wrong("logits_scaling", "must be positive")

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, qkv_bias=biased, output_bias=biased, scale=scale
        )
        mlp: Layer = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner)
        if experts:
            mixture = f"{name}.block_sparse_moe"
            mlp = MoE(mixture, sizes.width, sizes.inner, experts, Routing(chosen), "router.layer")
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps), multiplier=multiplier),
            Residual(mlp, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps), multiplier=multiplier),
        )

    paired = {"q_proj": sizes.heads.count, "k_proj": sizes.heads.kv}
    names = WeightNames({**GGUF, f"{LAYER}.router.layer": "blk.{i}.ffn_gate_inp"}, paired=paired, experts=EXPERTS)
    return replace(
        decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / logits,
    )
