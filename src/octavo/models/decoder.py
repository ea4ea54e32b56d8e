"""A decoder: token rows through an embedding and blocks, and a head. What a block is, its family says.

It gives the Programs `body` and `head`; it knows no format, no memory and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.layers.embedding import Embedding
from octavo.layers.lm_head import LMHead
from octavo.layers.module import Layer
from octavo.layers.rotary import Rotary
from octavo.models.names import WeightNames
from octavo.models.settings import Settings
from octavo.program.graph import Program
from octavo.program.symbols import R, T


@dataclass(frozen=True)
class Decoder:
    """One model; `functions` are what `program.trace.trace` runs. tied: the head's weight is the embedding's."""

    vocab_size: int
    width: int
    blocks: tuple[Layer, ...]
    norm: Layer  # before the head
    tied: bool
    max_positions: int  # of the configuration; the rope tables may be shorter
    names: WeightNames
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0  # 0: none

    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]:
        return {"body": self.body, "head": self.head}

    def body(self, program: Program) -> None:
        """Token rows T -> the residual stream after the last block, `h` [T, width]."""
        ids = program.input("ids", (T,), "i32", source="slots.ids")
        with program.within("embed"):
            x = Embedding("model.embed_tokens", self.vocab_size, self.width, self.embedding_scale)(ids)
        for i, block in enumerate(self.blocks):
            with program.within(f"layer {i}"):
                x = block(x)
        program.output("h", x)

    def head(self, program: Program) -> None:
        """Rows R of `h` -> `logits` [R, vocab]."""
        hidden = program.input("h", (T, self.width), "f32")
        rows = program.input("logit_row", (R,), "i32", source="logit_row")
        name = "model.embed_tokens" if self.tied else "lm_head"
        with program.within("head"):
            head = LMHead(name, self.vocab_size, self.width, self.norm, self.logit_scale, self.logit_cap)
            program.output("logits", head(hidden, rows))


def decoder_of(
    settings: Settings, rotary: Rotary, block: Callable[[int], Layer], norm: Layer, names: WeightNames, *,
    tied: bool = False,
) -> Decoder:  # fmt: skip
    """What all families say in the same words of their configuration; tied: where it says nothing."""
    sizes = settings.sizes()
    return Decoder(
        vocab_size=sizes.vocab,
        width=sizes.width,
        blocks=tuple(block(i) for i in range(sizes.layers)),
        norm=norm,
        tied=settings.flag("tie_word_embeddings", tied),
        max_positions=settings.context(rotary),
        names=names,
    )
