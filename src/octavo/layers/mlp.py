"""The feed-forward block: gated, down(silu(gate(x)) * up(x)), and plain, down(gelu(up(x)))."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.layers.linear import Linear, merged
from octavo.layers.module import Module
from octavo.ops.activation import gelu, silu_mul
from octavo.program.graph import Value


@dataclass(frozen=True)
class GatedMLP(Module):
    """x [T, width] -> [T, width] through `inner` columns; activation: of (gate, up)."""

    width: int
    inner: int
    activation: Callable[[Value, Value], Value] = silu_mul

    def __call__(self, x: Value) -> Value:
        gate, up = merged(
            x,
            Linear(self.child("gate_proj"), self.width, self.inner),
            Linear(self.child("up_proj"), self.width, self.inner),
        )
        return Linear(self.child("down_proj"), self.inner, self.width)(self.activation(gate, up))


@dataclass(frozen=True)
class GeluMLP(Module):
    """x [T, width] -> [T, width] through `inner` columns: c_fc, gelu, c_proj."""

    width: int
    inner: int
    has_bias: bool

    def __call__(self, x: Value) -> Value:
        inner = gelu(Linear(self.child("c_fc"), self.width, self.inner, self.has_bias)(x))
        return Linear(self.child("c_proj"), self.inner, self.width, self.has_bias)(inner)
