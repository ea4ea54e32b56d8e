"""Linear layers: one, and several that read the same input (q, k, v; gate, up).

Merged layers stay separate Values here; lowering makes them segments of one phase. It knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.ops.activation import bias
from octavo.ops.linear import linear
from octavo.program.graph import Value


@dataclass(frozen=True)
class Linear(Module):
    """x [M, inputs] -> [M, outputs]: weight [outputs, inputs], bias [outputs] where has_bias."""

    inputs: int
    outputs: int
    has_bias: bool = False

    def __call__(self, x: Value) -> Value:
        y = linear(x, self.weight(x.program, "weight", (self.outputs, self.inputs)))
        return bias(y, self.weight(x.program, "bias", (self.outputs,))) if self.has_bias else y


def merged(x: Value, *layers: Linear) -> tuple[Value, ...]:
    """Several layers on one input: products first, then biases, so that their products are adjacent in the Program."""
    products = [linear(x, each.weight(x.program, "weight", (each.outputs, each.inputs))) for each in layers]
    return tuple(
        bias(y, each.weight(x.program, "bias", (each.outputs,))) if each.has_bias else y
        for each, y in zip(layers, products, strict=True)
    )
