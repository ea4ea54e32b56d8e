"""Embeddings of token ids (the table may also be the head's weight, see lm_head.py), positions, and texts of a pair."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.ops.embedding import embedding
from octavo.program.graph import Program, Value
from octavo.program.symbols import T


@dataclass(frozen=True)
class Embedding(Module):
    """ids [T], or positions, or numbers of texts (the inputs below) -> [T, width] f32; weight [vocab, width]."""

    vocab: int
    width: int
    scale: float = 1.0

    def __call__(self, ids: Value) -> Value:
        return embedding(ids, self.weight(ids.program, "weight", (self.vocab, self.width)), scale=self.scale)


def token_ids(program: Program) -> Value:
    """The id of each row [T]."""
    return program.input("ids", (T,), "i32", source="slots.ids")


def token_positions(program: Program) -> Value:
    """The position of each row in its sequence [T]."""
    return program.input("row_pos", (T,), "i32", source="row_pos")


def token_parts(program: Program) -> Value:
    """0 for rows of the first text of a pair and of a text alone, 1 for those of the second [T]."""
    return program.input("parts", (T,), "i32", source="slots.second")
