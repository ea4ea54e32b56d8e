"""StarCoder2: pre-norm blocks of LayerNorm, linears with bias and a plain MLP with GELU; attention may slide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GeluMLP
from octavo.layers.norm import LayerNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, WeightNames
from octavo.models.settings import Settings

NAMES = {
    **GGUF,
    "model.layers.{i}.mlp.c_fc": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.c_proj": "blk.{i}.ffn_down",
}


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "gelu_pytorch_tanh")
    sizes, eps = settings.sizes(), settings.number("norm_epsilon", 1e-5)
    rotary = settings.rotary(sizes.heads.dim, positions)
    biased = settings.flag("use_bias", True)
    window = settings.integer("sliding_window", 0, least=0)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, window, qkv_bias=biased, output_bias=biased
        )
        return Block(
            Residual(attention, LayerNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(
                GeluMLP(f"{name}.mlp", sizes.width, sizes.inner, biased),
                LayerNorm(f"{name}.post_attention_layernorm", sizes.width, eps),
            ),
        )

    return decoder_of(settings, rotary, block, LayerNorm("model.norm", sizes.width, eps), WeightNames(NAMES), tied=True)
