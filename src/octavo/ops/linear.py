"""linear(x, weight): x @ weight.T for a weight of any format; the anchor that reads most of a step's bytes.

x are float rows, or quantized rows (op quantize) where the weight's format is quantized. The format of a weight is a
fact of the checkpoint, not of the Program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.ops.op import Array, Attrs, Contract, Floats64, Locality, Op, Results, gamma
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    x, weight = operands
    if x.width != weight.shape[1].constant:
        raise ValueError(f"{x!r} does not meet {weight!r}")
    return [((x.shape[0], weight.shape[0]), "f32")]


def _bound(attrs: Attrs, x: Array, weight: Array, *, quantized: bool = False) -> Floats64:
    """gamma(K + 8) on the sum of magnitudes. x and weight are dequantized [M, K] and [N, K].

    A quantized weight is d * q + m with |d * q| and |m| at most twice the largest weight of its column, which is what
    cancels in the sum; its integers are exact, so that this bound is generous there.
    """
    rows, columns = np.abs(x.astype(np.float64)), np.abs(weight.astype(np.float64))
    magnitude = rows @ columns.T
    if quantized:
        magnitude += 4 * rows.sum(axis=1)[:, None] * columns.max(axis=1, initial=0.0)[None, :]
    bound: Floats64 = 2 * gamma(x.shape[1] + 8) * magnitude
    return bound


def _operations(node: Node) -> Sum:
    x, weight = node.operands
    return Sum((x.shape[0] * (2 * x.width * weight.shape[0].at({})),))


LINEAR = Op(
    "linear", "anchor", Locality.ROW,
    Contract("int32 or float32", "ascending", 32, True, "int32 exact; float32 fma per group, groups ascending"),
    _results, _bound, _operations,
)  # fmt: skip


def linear(x: Value, weight: Value) -> Value:
    """x [M, K], weight [N, K] -> [M, N] f32."""
    return LINEAR(x, weight)
