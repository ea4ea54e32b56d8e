"""The embedding of token ids; its table may also be the head's weight (lm_head.py)."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.ops.embedding import embedding
from octavo.program.graph import Value


@dataclass(frozen=True)
class Embedding(Module):
    """ids [T] -> [T, width] f32; weight [vocab, width]."""

    vocab: int
    width: int
    scale: float = 1.0

    def __call__(self, ids: Value) -> Value:
        return embedding(ids, self.weight(ids.program, "weight", (self.vocab, self.width)), scale=self.scale)
