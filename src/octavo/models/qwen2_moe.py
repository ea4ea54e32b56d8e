"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2's blocks with a mixture of experts in the place of most MLPs, and in
each an expert that every row takes, weighed by a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.module import Layer
from octavo.layers.moe import MoE, WithShared
from octavo.layers.norm import RMSNorm
from octavo.models import qwen3_moe
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import WeightNames
from octavo.models.qwen3_moe import EXPERTS, LAYER, mixed_layers
from octavo.models.settings import Settings
from octavo.ops.moe import Routing

NAMES = {
    **qwen3_moe.NAMES,
    f"{LAYER}.shared_expert_gate": "blk.{i}.ffn_gate_inp_shexp",
    **{f"{LAYER}.shared_expert.{part}_proj": f"blk.{{i}}.ffn_{part}_shexp" for part in ("gate", "up", "down")},
}


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-6)
    experts, chosen = settings.experts(60, 4)
    inner = settings.integer("moe_intermediate_size", 1408)
    shared = settings.integer("shared_expert_intermediate_size", 5632)
    routing = Routing(chosen, over_all=not settings.flag("norm_topk_prob", False))
    rotary, biased = settings.rotary(sizes.heads.dim, positions), settings.flag("qkv_bias", True)
    windows, mixed = _windows(settings, sizes.layers), mixed_layers(settings, sizes.layers)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        mlp: Layer = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner)
        if i in mixed:
            routed = MoE(f"{name}.mlp", sizes.width, inner, experts, routing)
            mlp = WithShared(f"{name}.mlp", routed, GatedMLP(f"{name}.mlp.shared_expert", sizes.width, shared))
        attention = Attention(f"{name}.self_attn", sizes.width, sizes.heads, rotary, windows[i], qkv_bias=biased)
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(mlp, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
        )

    names = WeightNames(NAMES, experts=EXPERTS)
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)


def _windows(settings: Settings, layers: int) -> tuple[int, ...]:
    """By layer_types, else the first of every two layers below max_window_layers slides, if any is told to."""
    if not settings.flag("use_sliding_window", False):
        return (0,) * layers
    windows = settings.windows(layers, settings.integer("sliding_window", 4096), every=2)
    if settings.config.get("layer_types") is not None:
        return windows
    first_full = settings.integer("max_window_layers", 28, least=0)
    return tuple(window if i < first_full else 0 for i, window in enumerate(windows))
