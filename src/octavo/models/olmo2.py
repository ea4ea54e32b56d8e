"""OLMo 2: norms after attention and the MLP, none before; q and k are normalised over all their heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, WeightNames
from octavo.models.settings import Settings

NAMES = {
    **GGUF,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    settings.without("sliding_window")  # OLMo 3, which calls itself olmo2 in GGUF
    sizes, eps = settings.sizes(), settings.number("rms_norm_eps", 1e-5)
    rotary = settings.rotary(sizes.heads.dim, positions)
    biased = settings.flag("attention_bias", False)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, qkv_bias=biased, output_bias=biased,
            qk_norm=lambda norm, width: RMSNorm(norm, width, eps),
        )  # fmt: skip
        mlp = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner)
        return Block(
            Residual(attention, after=RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps)),
            Residual(mlp, after=RMSNorm(f"{name}.post_feedforward_layernorm", sizes.width, eps)),
        )

    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), WeightNames(NAMES))
