"""rms_norm(x, w): x / sqrt(mean(x^2) + eps) * w; head_norm: of each head; layer_norm(x, w, b): of x less its mean."""

from __future__ import annotations

import numpy as np

from octavo.ops.op import EPS, TINY, Array, Attrs, Contract, Floats64, Locality, Op, gamma, same_rows
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum


def _bound(attrs: Attrs, x: Array, weight: Array) -> Floats64:
    """The sum of K squares errs by gamma(K), its root by half; root, quotient and two products round once each."""
    values = x.astype(np.float64)
    scale = 1 / np.sqrt((values**2).mean(axis=-1, keepdims=True) + attrs["eps"])
    result = np.abs(values * scale * weight.astype(np.float64))
    bound: Floats64 = 2 * (gamma(x.shape[-1] + 2) / 2 + gamma(5)) * result + TINY
    return bound


def _head_bound(attrs: Attrs, x: Array, weight: Array) -> Floats64:
    """That of rms_norm, head by head."""
    return _bound(attrs, x.reshape(len(x), x.shape[1] // len(weight), len(weight)), weight).reshape(x.shape)


def _layer_bound(attrs: Attrs, x: Array, weight: Array, bias: Array) -> Floats64:
    """The mean errs by gamma(K + 1) of the mean magnitude, which shifts every element and so the variance too.

    The last term is the rounding of product and sum.
    """
    values, gain = x.astype(np.float64), np.abs(weight.astype(np.float64))
    terms = x.shape[-1] + 2
    apart = values - values.mean(axis=-1, keepdims=True)
    shift = gamma(terms) * np.abs(values).mean(axis=-1, keepdims=True) + EPS * np.abs(apart)
    variance = (apart**2).mean(axis=-1, keepdims=True) + attrs["eps"]
    wrong = (2 * np.abs(apart) * shift + shift**2).mean(axis=-1, keepdims=True) + gamma(terms) * variance
    root = np.sqrt(variance)
    result = np.abs(apart) / root * gain
    relative = wrong / variance / 2 * (1 + wrong / variance) + gamma(5)
    error = shift / root * gain + relative * result + EPS * (result + np.abs(bias.astype(np.float64)))
    bound: Floats64 = 2 * error + TINY
    return bound


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (4 * node.operands[0].width),))


ORDER = "ascending blocks of 16 columns, lanes then tree"
RMS_NORM = Op(
    "rms_norm", "row", Locality.ROW, Contract("float32", ORDER, note="sqrt and division correctly rounded"),
    same_rows, _bound, _operations,
)  # fmt: skip
HEAD_NORM = Op(
    "head_norm", "row", Locality.HEAD, Contract("float32", ORDER, note="sqrt and division correctly rounded"),
    same_rows, _head_bound, _operations,
)  # fmt: skip
LAYER_NORM = Op(
    "layer_norm", "row", Locality.ROW, Contract("float32", ORDER, note="mean, then squares of what is left"),
    same_rows, _layer_bound, _operations,
)  # fmt: skip


def rms_norm(x: Value, weight: Value, *, eps: float) -> Value:
    """x [M, D], weight [D] -> [M, D]."""
    return RMS_NORM(x, weight, eps=eps)


def head_norm(x: Value, weight: Value, *, eps: float) -> Value:
    """x [M, heads * head_dim], weight [head_dim] -> [M, heads * head_dim]."""
    return HEAD_NORM(x, weight, eps=eps, head_dim=weight.shape[0].at({}))


def layer_norm(x: Value, weight: Value, bias: Value, *, eps: float) -> Value:
    """x [M, D], weight [D], bias [D] -> [M, D]."""
    return LAYER_NORM(x, weight, bias, eps=eps)
