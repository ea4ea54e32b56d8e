"""BERT, and the RoBERTa family with its shifted positions: encoders for embeddings, and rerankers.

Text models and sequence classification. The head reads the first row of each sequence. It knows the configuration in
Hugging Face's words and the names of weights in both kinds of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.checkpoints.pooling import classifier, label_count
from octavo.layers.embedding import Embedding, token_ids, token_parts, token_positions
from octavo.layers.encoder import EncoderBlock
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.models.names import Part, WeightNames
from octavo.models.settings import Settings, Sizes
from octavo.ops.activation import add, softcap
from octavo.ops.embedding import gather_rows
from octavo.program.graph import Program
from octavo.program.symbols import S, T

LAYER = "bert.encoder.layer.{i}"
GGUF = {
    "bert.embeddings.word_embeddings": "token_embd",
    "bert.embeddings.position_embeddings": "position_embd",
    "bert.embeddings.token_type_embeddings": "token_types",
    "bert.embeddings.LayerNorm": "token_embd_norm",
    f"{LAYER}.attention.self.query": "blk.{i}.attn_q",
    f"{LAYER}.attention.self.key": "blk.{i}.attn_k",
    f"{LAYER}.attention.self.value": "blk.{i}.attn_v",
    f"{LAYER}.attention.output.dense": "blk.{i}.attn_output",
    f"{LAYER}.attention.output.LayerNorm": "blk.{i}.attn_output_norm",
    f"{LAYER}.intermediate.dense": "blk.{i}.ffn_up",
    f"{LAYER}.output.dense": "blk.{i}.ffn_down",
    f"{LAYER}.output.LayerNorm": "blk.{i}.layer_output_norm",
    "bert.pooler.dense": "cls",
    "classifier": "cls.output",
}
# position ids that older files carry, and heads that the text model does not have
UNUSED = r"(^|\.)embeddings\.position_ids$|(^|\.)pooler\.dense\.|^cls\.|^lm_head\."


@dataclass(frozen=True)
class Encoder:
    """One model; `functions` are what `program.trace.trace` runs. head: (dense, out) of a classifier, or nothing."""

    sizes: Sizes
    eps: float
    types: int
    labels: int
    head_layers: tuple[str, str] | None
    max_positions: int
    names: WeightNames
    tied: bool = False

    @property
    def vocab_size(self) -> int:
        return self.sizes.vocab

    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]:
        return {"body": self.body} if self.head_layers is None else {"body": self.body, "head": self.head}

    def body(self, program: Program) -> None:
        """Token rows T of whole sequences -> the last block's rows, `h` [T, width]."""
        sizes, name = self.sizes, "bert.embeddings"
        with program.within("embed"):
            x = Embedding(f"{name}.word_embeddings", sizes.vocab, sizes.width)(token_ids(program))
            part = Embedding(f"{name}.token_type_embeddings", self.types, sizes.width)(token_parts(program))
            place = Embedding(f"{name}.position_embeddings", self.max_positions, sizes.width)(token_positions(program))
            x = LayerNorm(f"{name}.LayerNorm", sizes.width, self.eps)(add(add(x, part), place))
        for i in range(sizes.layers):
            with program.within(f"layer {i}"):
                x = EncoderBlock(LAYER.format(i=i), sizes.width, sizes.inner, sizes.heads, self.eps)(x)
        program.output("h", x)

    def head(self, program: Program) -> None:
        """The first row of each sequence of `h` -> `scores` [S, labels]."""
        hidden = program.input("h", (T, self.sizes.width), "f32")
        rows = program.input("logit_row", (S,), "i32", source="logit_row")
        if self.head_layers is None:
            raise ValueError("a model without a classifier has no head")
        dense, out = self.head_layers
        with program.within("head"):
            x = Linear(dense, self.sizes.width, self.sizes.width, True)(gather_rows(hidden, rows))
            x = softcap(x, 1.0)  # tanh
            program.output("scores", Linear(out, self.sizes.width, self.labels, True)(x))


def from_config(config: Mapping[str, Any], *, positions: int) -> Encoder:
    """BERT from config.json's keys. Raises CheckpointError naming a bad key, UnsupportedModel naming a feature."""
    return _encoder(Settings(config), 0, ("bert.pooler.dense", "classifier"))


def roberta(config: Mapping[str, Any], *, positions: int) -> Encoder:
    """RoBERTa and XLM-RoBERTa: their positions begin behind that of padding."""
    settings = Settings(config)
    padding = settings.integer("pad_token_id", 1, least=0)
    return _encoder(settings, padding + 1, ("classifier.dense", "classifier.out_proj"))


def _encoder(settings: Settings, first: int, head: tuple[str, str]) -> Encoder:
    settings.only("hidden_act", "gelu")
    settings.only("position_embedding_type", "absolute")
    settings.without("is_decoder", "add_cross_attention")
    rows = settings.integer("max_position_embeddings", 512)
    shifted = {"position_embeddings": Part("position_embeddings", first, rows)} if first else {}
    classifies = classifier(settings.config)
    return Encoder(
        sizes=settings.sizes(),
        eps=settings.number("layer_norm_eps", settings.number("norm_epsilon", 1e-12)),
        types=settings.integer("type_vocab_size", 2),
        labels=label_count(settings.config) if classifies else 0,
        head_layers=head if classifies else None,
        max_positions=rows - first,
        names=WeightNames(
            GGUF, fused=shifted, root="bert.", anchor="embeddings.word_embeddings.weight",
            unused="" if classifies else UNUSED,
        ),
    )  # fmt: skip
