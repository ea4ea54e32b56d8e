"""rms_norm(x, weight): x / sqrt(mean(x^2) + eps) * weight."""

from __future__ import annotations

import numpy as np

from octavo.ops.op import TINY, Array, Attrs, Contract, Floats64, Locality, Op, gamma, same_rows
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum


def _bound(attrs: Attrs, x: Array, weight: Array) -> Floats64:
    """The sum of K squares errs by gamma(K), its root by half; root, quotient and two products round once each."""
    values = x.astype(np.float64)
    scale = 1 / np.sqrt((values**2).mean(axis=-1, keepdims=True) + attrs["eps"])
    result = np.abs(values * scale * weight.astype(np.float64))
    bound: Floats64 = 2 * (gamma(x.shape[-1] + 2) / 2 + gamma(5)) * result + TINY
    return bound


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (4 * node.operands[0].width),))


RMS_NORM = Op(
    "rms_norm", "row", Locality.ROW,
    Contract("float32", "ascending blocks of 32 columns, lanes then tree", note="sqrt and division correctly rounded"),
    same_rows, _bound, _operations,
)  # fmt: skip


def rms_norm(x: Value, weight: Value, *, eps: float) -> Value:
    """x [M, D], weight [D] -> [M, D]."""
    return RMS_NORM(x, weight, eps=eps)
