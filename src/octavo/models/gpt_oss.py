"""gpt-oss: attention with sinks, every second layer sliding, biases everywhere, and experts with a clamped SwiGLU.

Folders hold gate and up as every second row of one tensor: as the nibbles and exponents of MXFP4, or as floats by
columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.moe import MoE
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, Experts, WeightNames, also_in_gguf
from octavo.models.settings import Settings
from octavo.ops.moe import Gating, Routing

LAYER = "model.layers.{i}"
NAMES = {
    **GGUF,
    f"{LAYER}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    f"{LAYER}.self_attn.sinks": "blk.{i}.attn_sinks",
    f"{LAYER}.mlp.router": "blk.{i}.ffn_gate_inp",
}
PARTS = {"gate_proj": ("gate_up_proj", (0, 2)), "up_proj": ("gate_up_proj", (1, 2)), "down_proj": ("down_proj", (0, 1))}


def _ways() -> dict[str, tuple[Experts, ...]]:
    """Layer -> how folders hold it."""
    found: dict[str, tuple[Experts, ...]] = {}
    for layer, (name, every) in PARTS.items():
        stem = f"{LAYER}.mlp.experts.{name}"
        found[f"{layer}.weight"] = (
            Experts("safetensors", f"{stem}_blocks", every, scales=f"{stem}_scales"),
            Experts("safetensors", stem, every, transposed=True),
        )
        found[f"{layer}.bias"] = (Experts("safetensors", f"{stem}_bias", every),)
    return also_in_gguf(found)


EXPERTS = _ways()


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-5)
    experts, chosen = settings.experts(128, 4)
    heads, biased = replace(sizes.heads, sinks=True), settings.flag("attention_bias", True)
    rotary = settings.rotary(heads.dim, positions)
    if "truncate" not in rotary.scaling:  # GGUF files do not say it: the bounds of YaRN's ramp are not rounded
        rotary = replace(rotary, scaling={**rotary.scaling, "truncate": False})
    windows = _windows(settings, sizes.layers)
    gating = Gating("clamped_swiglu", settings.number("swiglu_alpha", 1.702), settings.number("swiglu_limit", 7.0))

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, heads, rotary, windows[i], qkv_bias=biased, output_bias=biased
        )
        mixture = MoE(
            f"{name}.mlp", sizes.width, sizes.inner, experts, Routing(chosen), "router", gating, has_bias=True
        )
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(mixture, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
        )

    names = WeightNames(NAMES, experts=EXPERTS)
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)


def _windows(settings: Settings, layers: int) -> tuple[int, ...]:
    """By layer_types, else the first of every two layers slides."""
    return settings.windows(layers, settings.integer("sliding_window", 128), every=2)
