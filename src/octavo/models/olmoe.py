"""OLMoE: pre-norm blocks with a mixture of experts; q and k are normalised over all their heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.moe import MoE
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import WeightNames
from octavo.models.qwen3_moe import EXPERTS, NAMES
from octavo.models.settings import Settings
from octavo.ops.moe import Routing


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    settings.without("clip_qkv")
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-5)
    experts, chosen = settings.experts(64, 8)
    rotary, biased = settings.rotary(sizes.heads.dim, positions), settings.flag("attention_bias", False)
    routing = Routing(chosen, over_all=not settings.flag("norm_topk_prob", False))

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, qkv_bias=biased, output_bias=biased,
            qk_norm=lambda norm, width: RMSNorm(norm, width, eps),
        )  # fmt: skip
        mixture = MoE(f"{name}.mlp", sizes.width, sizes.inner, experts, routing)
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(mixture, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
        )

    names = WeightNames(NAMES, experts=EXPERTS)
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), names)
