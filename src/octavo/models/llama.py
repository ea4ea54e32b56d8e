"""The Llama family: Llama 2 and 3, SmolLM2, Mistral (sliding window), Qwen2 (q, k, v with bias).

Pre-norm blocks of grouped-query attention and a gated MLP. It knows the configuration in Hugging Face's words and the
order of rows in GGUF files; it knows no format, no memory and no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.layers.attention import Attention
from octavo.layers.block import Block, Residual
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import Decoder, decoder_of
from octavo.models.names import WeightNames
from octavo.models.settings import Settings

# model types whose GGUF files hold q and k rows in pairs (x[2i], x[2i + 1]) instead of halves
PAIRED_IN_GGUF = ("llama", "mistral")


def from_config(config: Mapping[str, Any], *, positions: int) -> Decoder:
    """A model from config.json's keys. `positions` is the longest sequence that will run (rows of the rope tables).

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    settings.only("hidden_act", "silu")
    settings.without("mlp_bias")
    sizes, qwen2 = settings.sizes(), config["model_type"] == "qwen2"
    eps, biased = settings.number("rms_norm_eps", 1e-6), settings.flag("attention_bias", False)
    rotary = settings.rotary(sizes.heads.dim, positions)
    windows = _windows(settings, sizes.layers)

    def block(i: int) -> Block:
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn", sizes.width, sizes.heads, rotary, windows[i],
            qkv_bias=biased or qwen2, output_bias=biased and not qwen2,
        )  # fmt: skip
        return Block(
            Residual(attention, RMSNorm(f"{name}.input_layernorm", sizes.width, eps)),
            Residual(
                GatedMLP(f"{name}.mlp", sizes.width, sizes.inner),
                RMSNorm(f"{name}.post_attention_layernorm", sizes.width, eps),
            ),
        )

    paired = {"q_proj": sizes.heads.count, "k_proj": sizes.heads.kv} if config["model_type"] in PAIRED_IN_GGUF else {}
    return decoder_of(settings, rotary, block, RMSNorm("model.norm", sizes.width, eps), WeightNames(paired=paired))


def _windows(settings: Settings, layers: int) -> tuple[int, ...]:
    """The window of each layer: Mistral slides everywhere, Qwen2 from layer max_window_layers on if it is told to."""
    model_type, window = settings.config["model_type"], settings.integer("sliding_window", 0, least=0)
    if model_type == "llama" or (model_type == "qwen2" and not settings.flag("use_sliding_window", False)):
        return (0,) * layers
    if model_type == "mistral" or settings.config.get("layer_types") is not None:
        return settings.windows(layers, window)
    first = settings.integer("max_window_layers", 0, least=0)
    return tuple(window if i >= first else 0 for i in range(layers))
