"""Phi-3 and Phi-4: pre-norm blocks whose files hold q, k, v as one tensor and gate, up as another; a part of each head
turns, often with LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, Part, WeightNames
from octavo.models.settings import Settings, Sizes

NAMES = {
    **GGUF,
    "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
    "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
}


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    settings.without("attention_bias")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-5)
    rotary = settings.rotary(sizes.heads.dim, positions)
    window = settings.integer("sliding_window", 0, least=0)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        return Block(
            Residual(
                Attention(f"{name}.self_attn", sizes.width, sizes.heads, rotary, window),
                RMSNorm(f"{name}.input_layernorm", sizes.width, eps),
            ),
            Residual(
                GatedMLP(f"{name}.mlp", sizes.width, sizes.inner),
                RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps),
            ),
        )

    names = WeightNames(NAMES, fused=_fused(sizes))
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)


def _fused(sizes: Sizes) -> dict[str, Part]:
    """Which rows of a file's tensors the layers are: q, then k, then v; gate, then up."""
    q, kv = sizes.heads.count * sizes.heads.dim, sizes.heads.kv * sizes.heads.dim
    qkv = {"q_proj": 0, "k_proj": q, "v_proj": q + kv}
    parts = {name: Part("qkv_proj", first, q + 2 * kv) for name, first in qkv.items()}
    for name, first in (("gate_proj", 0), ("up_proj", sizes.inner)):
        parts[name] = Part("gate_up_proj", first, 2 * sizes.inner)
    return parts
