"""Module: a named place in a model whose weights have names below it, in the checkpoint's own (Hugging Face) words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.program.graph import Program, Value

Layer = Callable[[Value], Value]  # rows to rows


@dataclass(frozen=True)
class Module:
    """`name` is the path of the layer, such as `model.layers.0.self_attn`."""

    name: str

    def child(self, key: str) -> str:
        """The path of a sub-layer."""
        return f"{self.name}.{key}" if self.name else key

    def weight(self, program: Program, key: str, shape: Sequence[int]) -> Value:
        """The weight `<name>.<key>` as a Value of a Program."""
        return program.weight(self.child(key), shape)
