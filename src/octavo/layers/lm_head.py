"""The head: hidden rows that need logits -> logits over the vocabulary; its weight may be the embedding's."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.layers.norm import RMSNorm
from octavo.ops.embedding import gather_rows
from octavo.ops.linear import linear
from octavo.program.graph import Value


@dataclass(frozen=True)
class LMHead(Module):
    """hidden [T, width], rows [R] -> logits [R, vocab]. `name`: lm_head, or the embedding."""

    vocab: int
    width: int
    norm: RMSNorm

    def __call__(self, hidden: Value, rows: Value) -> Value:
        x = self.norm(gather_rows(hidden, rows))
        return linear(x, self.weight(x.program, "weight", (self.vocab, self.width)))
