"""The gated feed-forward block: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.linear import Linear, merged
from octavo.layers.module import Module
from octavo.ops.activation import silu_mul
from octavo.program.graph import Value


@dataclass(frozen=True)
class GatedMLP(Module):
    """x [T, width] -> [T, width] through `inner` columns."""

    width: int
    inner: int

    def __call__(self, x: Value) -> Value:
        gate, up = merged(
            x,
            Linear(self.child("gate_proj"), self.width, self.inner),
            Linear(self.child("up_proj"), self.width, self.inner),
        )
        return Linear(self.child("down_proj"), self.inner, self.width)(silu_mul(gate, up))
