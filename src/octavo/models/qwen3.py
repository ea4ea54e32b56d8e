"""Qwen3: pre-norm blocks whose q and k are normalised head by head before they turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import HeadNorm, RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import WeightNames
from octavo.models.settings import Settings


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-6)
    rotary = settings.rotary(sizes.heads.dim, positions)
    biased = settings.flag("attention_bias", False)
    windows = _windows(settings, sizes.layers)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, windows[i], qkv_bias=biased, output_bias=biased,
            qk_norm=lambda norm, _: HeadNorm(norm, sizes.heads.dim, eps),
        )  # fmt: skip
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(
                GatedMLP(f"{name}.mlp", sizes.width, sizes.inner),
                RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps),
            ),
        )

    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), WeightNames())


def _windows(settings: Settings, layers: int) -> tuple[int, ...]:
    """Layers from max_window_layers on slide, if the configuration says that any does."""
    if not settings.flag("use_sliding_window", False):
        return (0,) * layers
    window = settings.integer("sliding_window", 0, least=0)
    if settings.config.get("layer_types") is not None:
        return settings.windows(layers, window)
    first = settings.integer("max_window_layers", 28, least=0)
    return tuple(window if i >= first else 0 for i in range(layers))
