"""Gemma 2 and the text models of Gemma 3.

Norms before and after attention and the MLP, whose weights Hugging Face stores less 1 and GGUF whole; an embedding
times the root of its width; GELU; layers that slide in a pattern with layers that see everything. Gemma 2 caps scores
and logits, Gemma 3 normalises q and k head by head and turns sliding layers by a base of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import HeadNorm, RMSNorm
from octavo.layers.rotary import Rotary
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import GGUF, WeightNames
from octavo.models.settings import FULL, SLIDING, Settings, Sizes
from octavo.ops.activation import gelu_mul

NAMES = {
    **GGUF,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
# layers of the 27B models, whose scores are scaled by the width over the heads; GGUF files do not say so (llama.cpp)
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys, for sequences of at most `positions` ids.

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    if "text_config" in config:
        raise UnsupportedModel("Gemma 3 with its vision part is not built; supported: its text models (gemma3_text)")
    settings.only("hidden_activation", "gelu_pytorch_tanh")
    settings.without("use_bidirectional_attention")
    sizes, eps, gemma2 = settings.sizes(), settings.number("rms_norm_eps", 1e-6), config["model_type"] == "gemma2"
    biased = settings.flag("attention_bias", False)
    far, near = _rotaries(settings, sizes.heads.dim, positions)
    every = 2 if gemma2 else settings.integer("sliding_window_pattern", 6)
    windows = settings.windows(sizes.layers, settings.integer("sliding_window", 4096), every=every)
    scale = settings.number("query_pre_attn_scalar", _score_size(config["model_type"], sizes)) ** -0.5

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, near if windows[i] else far, windows[i],
            qkv_bias=biased, output_bias=biased,
            qk_norm=None if gemma2 else lambda norm, _: HeadNorm(norm, sizes.heads.dim, eps),
            scale=scale, softcap=settings.cap("attn_logit_softcapping", 50.0 if gemma2 else 0.0),
        )  # fmt: skip
        mlp = GatedMLP(f"{name}.mlp", sizes.width, sizes.inner, gelu_mul)

        def norm(which: str) -> RMSNorm:
            return RMSNorm(f"{name}.{which}_layernorm", sizes.width, eps)

        return Block(
            Residual(attention, norm("input"), norm("post_attention")),
            Residual(mlp, norm("pre_feedforward"), norm("post_feedforward")),
        )

    names = WeightNames(NAMES, norm_offset=1.0)
    return replace(
        decoder_of(settings, far, block, RMSNorm("model.norm", sizes.width, eps), names, tied=True),
        embedding_scale=sizes.width**0.5,
        logit_cap=settings.cap("final_logit_softcapping", 30.0 if gemma2 else 0.0),
    )


def _rotaries(settings: Settings, head_dim: int, positions: int) -> tuple[Rotary, Rotary]:
    """The rotation of layers that see everything, and of those that slide: the same in Gemma 2."""
    nested = settings.config.get("rope_parameters") or {}
    if settings.config["model_type"] == "gemma2":
        rotary = settings.rotary(head_dim, positions)
        return rotary, rotary
    if FULL in nested or SLIDING in nested:  # as transformers 5 writes it
        far, near = (nested.get(kind) or {} for kind in (FULL, SLIDING))
        far = {"rope_theta": 1e6, **far}
    else:
        far, near = nested, {}
    near = {"rope_theta": settings.number("rope_local_base_freq", 1e4), **near}
    turned = [
        Settings({**settings.config, "rope_parameters": each}).rotary(head_dim, positions) for each in (far, near)
    ]
    return turned[0], replace(turned[1], name="rope.near")


def _score_size(model_type: str, sizes: Sizes) -> float:
    """What scores are divided by the root of, where the file does not say."""
    big = LAYERS_OF_27B.get(model_type) == sizes.layers
    return sizes.width / sizes.heads.count if big else sizes.heads.dim
