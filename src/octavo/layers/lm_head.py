"""The head: hidden rows that need logits -> logits over the vocabulary; its weight may be the embedding's."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Layer, Module
from octavo.ops.activation import scale, softcap
from octavo.ops.embedding import gather_rows
from octavo.ops.linear import linear
from octavo.program.graph import Value


@dataclass(frozen=True)
class LMHead(Module):
    """hidden [T, width], rows [R] -> logits [R, vocab]. `name`: lm_head, or the embedding.

    multiplier: of the logits; then they are capped, unless cap is 0.
    """

    vocab: int
    width: int
    norm: Layer
    multiplier: float = 1.0
    cap: float = 0.0

    def __call__(self, hidden: Value, rows: Value) -> Value:
        x = self.norm(gather_rows(hidden, rows))
        logits = linear(x, self.weight(x.program, "weight", (self.vocab, self.width)))
        if self.multiplier != 1.0:
            logits = scale(logits, self.multiplier)
        return softcap(logits, self.cap) if self.cap else logits
