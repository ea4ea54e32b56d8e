"""silu_mul(gate, up) = gate * sigmoid(gate) * up; add(x, y) (residual); bias(x, b)."""

from __future__ import annotations

import numpy as np

from octavo.ops.op import TINY, Array, Attrs, Contract, Floats64, Locality, Op, bit_equal, gamma, same_rows
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum


def _bound(attrs: Attrs, gate: Array, up: Array) -> Floats64:
    """exp to 4 ulp, a sum, a quotient and two products; a sigmoid below the smallest normal float may be zero."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    sigmoid = np.exp(-np.logaddexp(0.0, -g))
    flushed = 2 * TINY * np.maximum(1.0, np.abs(g)) * np.maximum(1.0, np.abs(u))
    bound: Floats64 = 2 * gamma(9) * np.abs(g * sigmoid * u) + flushed
    return bound


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (6 * node.operands[0].width),))


SILU_MUL = Op(
    "silu_mul", "row", Locality.ELEMENT, Contract("float32", "none", note="exp polynomial, exp(0) = 1"),
    same_rows, _bound, _operations,
)  # fmt: skip
ADD = Op("add", "row", Locality.ELEMENT, Contract("float32", "none", exact=True), same_rows, bit_equal)
BIAS = Op("bias", "row", Locality.ELEMENT, Contract("float32", "none", exact=True), same_rows, bit_equal)


def silu_mul(gate: Value, up: Value) -> Value:
    """gate, up [M, N] -> [M, N]."""
    return SILU_MUL(gate, up)


def add(x: Value, residual: Value) -> Value:
    """x [M, N], the residual stream [M, N] -> residual + x."""
    return ADD(x, residual)


def bias(x: Value, b: Value) -> Value:
    """x [M, N], b [N] -> x + b."""
    return BIAS(x, b)
