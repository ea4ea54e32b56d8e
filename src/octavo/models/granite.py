"""Granite: Llama's blocks with four numbers: of the embedding, of what is added to the residual stream, of scores, of
logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder
from octavo.models.names import WeightNames
from octavo.models.settings import Settings


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
    if logits <= 0:
        raise settings.wrong("logits_scaling", "must be positive")

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, qkv_bias=biased, output_bias=biased, scale=scale
        )
        mlp = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner)
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps), multiplier=multiplier),
            Residual(mlp, RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps), multiplier=multiplier),
        )

    return Decoder(
        vocab_size=sizes.vocab,
        width=sizes.width,
        blocks=tuple(block(i) for i in range(sizes.layers)),
        norm=RMSNorm("model.norm", sizes.width, eps),
        tied=settings.flag("tie_word_embeddings", False),
        max_positions=settings.context(rotary),
        names=WeightNames(paired={"q_proj": sizes.heads.count, "k_proj": sizes.heads.kv}),
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / logits,
    )
