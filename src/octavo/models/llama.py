"""The Llama family: Llama 2 and 3, SmolLM2, Mistral (sliding window), Qwen2 (q, k, v with bias).

Pre-norm blocks of grouped-query attention and a gated MLP. It knows the configuration in Hugging Face's words and the
names of weights in both kinds of files; it knows no format, no memory and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import UnsupportedModel
from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding
from octavo.layers.lm_head import LMHead
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import Rotary
from octavo.models.settings import Settings
from octavo.ops.activation import add
from octavo.program.graph import Program
from octavo.program.symbols import R, T

# GGUF name -> Hugging Face name; {i} is the number of a block
GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
# model types whose GGUF files hold q and k rows in pairs (x[2i], x[2i + 1]) instead of halves
PAIRED_IN_GGUF = ("llama", "mistral")
MOST_LAYERS = 4096  # a configuration with more is broken: tracing it would take minutes


@dataclass(frozen=True)
class Llama:
    """One model of the family; `functions` are what `program.trace.trace` runs."""

    model_type: str
    vocab_size: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    tied: bool
    windows: tuple[int, ...]  # per layer; 0: none
    qkv_bias: bool
    output_bias: bool
    rotary: Rotary
    max_positions: int  # of the configuration; the rope tables may be shorter

    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]:
        return {"body": self.body, "head": self.head}

    def body(self, program: Program) -> None:
        """Token rows T -> the residual stream after the last block, `h` [T, width]."""
        ids = program.input("ids", (T,), "i32", source="slots.ids")
        with program.within("embed"):
            x = Embedding("model.embed_tokens", self.vocab_size, self.width)(ids)
        for i in range(self.layers):
            name = f"model.layers.{i}"
            with program.within(f"layer {i}"):
                normed = RMSNorm(f"{name}.input_layernorm", self.width, self.eps)(x)
                x = add(self._attention(f"{name}.self_attn", i)(normed), x)
                normed = RMSNorm(f"{name}.post_attention_layernorm", self.width, self.eps)(x)
                x = add(GatedMLP(f"{name}.mlp", self.width, self.inner)(normed), x)
        program.output("h", x)

    def _attention(self, name: str, layer: int) -> Attention:
        return Attention(
            name, self.width, self.heads, self.kv_heads, self.head_dim, self.rotary,
            window=self.windows[layer], qkv_bias=self.qkv_bias, output_bias=self.output_bias,
        )  # fmt: skip

    def head(self, program: Program) -> None:
        """Rows R of `h` -> `logits` [R, vocab]."""
        hidden = program.input("h", (T, self.width), "f32")
        rows = program.input("logit_row", (R,), "i32", source="logit_row")
        with program.within("head"):
            name = "model.embed_tokens" if self.tied else "lm_head"
            norm = RMSNorm("model.norm", self.width, self.eps)
            program.output("logits", LMHead(name, self.vocab_size, self.width, norm)(hidden, rows))

    def gguf_names(self) -> dict[str, str]:
        """GGUF name without .weight or .bias -> Hugging Face name, for every block."""
        return {
            gguf.format(i=i): name.format(i=i)
            for gguf, name in GGUF_NAMES.items()
            for i in range(self.layers if "{i}" in gguf else 1)
        }

    def paired_heads(self, name: str) -> int:
        """How many heads the rows of this weight form in GGUF's pair order; 0 where the order is ours."""
        if self.model_type not in PAIRED_IN_GGUF:
            return 0
        return {"q_proj": self.heads, "k_proj": self.kv_heads}.get(name.split(".")[-2], 0)


def from_config(config: Mapping[str, Any], *, positions: int) -> Llama:
    """A model from config.json's keys. `positions` is the longest sequence that will run (rows of the rope tables).

    Raises CheckpointError naming a bad key, UnsupportedModel naming a feature.
    """
    settings = Settings(config)
    model_type = settings.text("model_type")
    heads = settings.integer("num_attention_heads")
    width = settings.integer("hidden_size")
    kv_heads = settings.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise settings.wrong("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    head_dim = settings.integer("head_dim", width // heads)
    if head_dim % 2:
        raise settings.wrong("head_dim", "must be even")
    if settings.text("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"hidden_act {config['hidden_act']!r} is not supported; supported: silu")
    if settings.flag("mlp_bias", False):
        raise UnsupportedModel("mlp_bias is not supported; the MLP of this family has none")
    layers = settings.integer("num_hidden_layers", most=MOST_LAYERS)
    theta, scaling = settings.rope()
    rotary = int(head_dim * settings.number("partial_rotary_factor", 1.0))
    return Llama(
        model_type=model_type,
        vocab_size=settings.integer("vocab_size"),
        width=width,
        inner=settings.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=settings.number("rms_norm_eps", 1e-6),
        tied=settings.flag("tie_word_embeddings", False),
        windows=_windows(settings, model_type, layers),
        qkv_bias=model_type == "qwen2" or settings.flag("attention_bias", False),
        output_bias=settings.flag("attention_bias", False) and model_type != "qwen2",
        rotary=Rotary(head_dim, rotary, theta, positions, scaling),
        max_positions=settings.integer("max_position_embeddings", 2048),
    )


def _windows(settings: Settings, model_type: str, layers: int) -> tuple[int, ...]:
    """The window of each layer: Mistral slides everywhere, Qwen2 from layer max_window_layers on if it is told to."""
    window = settings.integer("sliding_window", 0, least=0)
    if model_type == "qwen2" and not settings.flag("use_sliding_window", False):
        window = 0
    if not window or model_type == "llama":
        return (0,) * layers
    kinds = settings.config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = settings.integer("max_window_layers", 0, least=0) if model_type == "qwen2" else 0
    return tuple(window if i >= first else 0 for i in range(layers))
