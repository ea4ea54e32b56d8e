"""silu_mul, gelu_mul, clamped_swiglu (gate, up), gelu, gelu_erf, softcap; sigmoid_mul (a gate of the row); add
(residual), bias, scale: functions of one element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.ops.op import (
    EPS,
    TINY,
    Array,
    Attrs,
    Contract,
    Floats64,
    Locality,
    Op,
    Results,
    bit_equal,
    gamma,
    same_rows,
)
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum

GELU_SLOPE, GELU_CUBE = 2 * (2 / np.pi) ** 0.5, 0.044715


def _silu_bound(attrs: Attrs, gate: Array, up: Array) -> Floats64:
    """exp to 4 ulp, a sum, a quotient and two products; a sigmoid below the smallest normal float may be zero."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    sigmoid = np.exp(-np.logaddexp(0.0, -g))
    flushed = 2 * TINY * np.maximum(1.0, np.abs(g)) * np.maximum(1.0, np.abs(u))
    bound: Floats64 = 2 * gamma(9) * np.abs(g * sigmoid * u) + flushed
    return bound


def _gelu_mul_bound(attrs: Attrs, gate: Array, up: Array) -> Floats64:
    """That of silu_mul, and an argument of exp that errs by six roundings of itself."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    inner = GELU_SLOPE * (g + GELU_CUBE * g**3)
    sigmoid = np.exp(-np.logaddexp(0.0, -inner))
    flushed = 2 * TINY * np.maximum(1.0, np.abs(g)) * np.maximum(1.0, np.abs(u))
    exponent = np.minimum(np.abs(inner), 128.0)  # beyond, the sigmoid is 0 or 1 as a float
    bound: Floats64 = 2 * (gamma(9) + 2 * gamma(6) * exponent) * np.abs(g * sigmoid * u) + flushed
    return bound


def _clamped_bound(attrs: Attrs, gate: Array, up: Array) -> Floats64:
    """That of silu_mul on what is within the limit; alpha and up + 1 round once more."""
    limit, alpha = attrs["limit"], attrs["alpha"]
    g = np.minimum(gate.astype(np.float64), limit)
    u = np.clip(up.astype(np.float64), -limit, limit) + 1
    sigmoid = np.exp(-np.logaddexp(0.0, -alpha * g))
    flushed = 2 * TINY * np.maximum(1.0, np.abs(g)) * np.maximum(1.0, np.abs(u))
    exponent = np.minimum(np.abs(alpha * g), 128.0)
    bound: Floats64 = 2 * (gamma(10) + 2 * gamma(2) * exponent) * np.abs(g * sigmoid) * (np.abs(u) + 1) + flushed
    return bound


def _gelu_bound(attrs: Attrs, x: Array) -> Floats64:
    """That of gelu_mul with 1."""
    return _gelu_mul_bound(attrs, x, np.ones_like(x))


def _gelu_erf_bound(attrs: Attrs, x: Array) -> Floats64:
    """The tail of the normal distribution errs by its fit, by ten roundings, and by those of the square in exp.

    Where x > 0 the tail is taken from 1, which rounds once more.
    """
    values = np.abs(x.astype(np.float64))
    square = np.minimum(values**2 / 2, 104.0)  # beyond, exp gives 0
    tail = np.exp(-square) / (1 + values)  # no less than the tail itself
    relative = 1.5e-7 + gamma(12) + gamma(4) * square
    bound: Floats64 = 2 * values * (relative * tail + np.where(x > 0, 3 * EPS, 0.0)) + TINY * (1 + values)
    return bound


def _softcap_bound(attrs: Attrs, x: Array) -> Floats64:
    """tanh from an exp and a quotient errs by some roundings of a number below 1, not of itself."""
    return np.full(x.shape, 2 * gamma(16) * abs(attrs["cap"]))


def _sigmoid_mul_results(operands: Sequence[Value], attrs: Attrs) -> Results:
    x, gate = operands
    if gate.width != 1 or gate.shape[0] != x.shape[0]:
        raise ValueError(f"{gate!r} is not a gate of each row of {x!r}")
    return same_rows(operands, attrs)


def _sigmoid_mul_bound(attrs: Attrs, x: Array, gate: Array) -> Floats64:
    """That of silu_mul with one product less."""
    values, g = np.abs(x.astype(np.float64)), gate.astype(np.float64)
    bound: Floats64 = 2 * gamma(8) * np.exp(-np.logaddexp(0.0, -g)) * values + 2 * TINY * np.maximum(1.0, values)
    return bound


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (6 * node.operands[0].width),))


POLYNOMIAL = Contract("float32", "none", note="exp polynomial, exp(0) = 1")
SILU_MUL = Op("silu_mul", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _silu_bound, _operations)
GELU_MUL = Op("gelu_mul", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _gelu_mul_bound, _operations)
CLAMPED_SWIGLU = Op("clamped_swiglu", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _clamped_bound, _operations)
GELU = Op("gelu", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _gelu_bound, _operations)
GELU_ERF = Op("gelu_erf", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _gelu_erf_bound, _operations)
SOFTCAP = Op("softcap", "row", Locality.ELEMENT, POLYNOMIAL, same_rows, _softcap_bound, _operations)
SIGMOID_MUL = Op(
    "sigmoid_mul", "row", Locality.ELEMENT, POLYNOMIAL, _sigmoid_mul_results, _sigmoid_mul_bound, _operations
)
ADD = Op("add", "row", Locality.ELEMENT, Contract("float32", "none", exact=True), same_rows, bit_equal)
BIAS = Op("bias", "row", Locality.ELEMENT, Contract("float32", "none", exact=True), same_rows, bit_equal)
SCALE = Op("scale", "row", Locality.ELEMENT, Contract("float32", "none", exact=True), same_rows, bit_equal)


def silu_mul(gate: Value, up: Value) -> Value:
    """gate, up [M, N] -> [M, N]."""
    return SILU_MUL(gate, up)


def gelu_mul(gate: Value, up: Value) -> Value:
    """gate, up [M, N] -> [M, N]: gelu(gate) * up."""
    return GELU_MUL(gate, up)


def clamped_swiglu(gate: Value, up: Value, *, alpha: float, limit: float) -> Value:
    """gate, up [M, N] -> [M, N]: g * sigmoid(alpha * g) * (u + 1), g = min(gate, limit), u = up within +-limit."""
    return CLAMPED_SWIGLU(gate, up, alpha=alpha, limit=limit)


def gelu(x: Value) -> Value:
    """x [M, N] -> [M, N]: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""
    return GELU(x)


def gelu_erf(x: Value) -> Value:
    """x [M, N] -> [M, N]: x * (1 + erf(x / sqrt(2))) / 2."""
    return GELU_ERF(x)


def softcap(x: Value, cap: float) -> Value:
    """x [M, N] -> cap * tanh(x / cap)."""
    return SOFTCAP(x, cap=cap)


def sigmoid_mul(x: Value, gate: Value) -> Value:
    """x [M, N], gate [M, 1] -> x * sigmoid(gate)."""
    return SIGMOID_MUL(x, gate)


def add(x: Value, residual: Value) -> Value:
    """x [M, N], the residual stream [M, N] -> residual + x."""
    return ADD(x, residual)


def bias(x: Value, b: Value) -> Value:
    """x [M, N], b [N] -> x + b."""
    return BIAS(x, b)


def scale(x: Value, factor: float) -> Value:
    """x [M, N] -> x * factor, the factor as a float32."""
    return SCALE(x, factor=float(np.float32(factor)))
