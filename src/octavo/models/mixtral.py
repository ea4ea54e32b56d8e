"""Mixtral: Llama's blocks with a mixture of experts in the place of each MLP; q and k rows in pairs in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.moe import MoE
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, Experts, WeightNames, also_in_gguf
from octavo.models.settings import Settings
from octavo.ops.moe import Routing

LAYER = "model.layers.{i}.block_sparse_moe"
EXPERTS = also_in_gguf(
    {
        f"{layer}.weight": (Experts("safetensors", f"{LAYER}.experts.{{e}}.{name}.weight"),)
        for layer, name in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
    }
)


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-5)
    experts, chosen = settings.experts(8, 2)
    rotary = settings.rotary(sizes.heads.dim, positions)
    window = settings.integer("sliding_window", 0, least=0)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        mixture = MoE(f"{name}.block_sparse_moe", sizes.width, sizes.inner, experts, Routing(chosen))
        return Block(
            Residual(
                Attention(f"{name}.self_attn", sizes.width, sizes.heads, rotary, window),
                RMSNorm(f"{name}.input_layernorm", sizes.width, eps),
            ),
            Residual(mixture, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
        )

    paired = {"q_proj": sizes.heads.count, "k_proj": sizes.heads.kv}
    names = WeightNames({**GGUF, f"{LAYER}.gate": "blk.{i}.ffn_gate_inp"}, paired=paired, experts=EXPERTS)
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)
