"""embedding(ids, table): rows of the table, dequantized, times a scale. gather_rows(x, index): rows of x."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.ops.op import EPS, Array, Attrs, Contract, Floats64, Locality, Op, Results, bit_equal
from octavo.program.graph import DTYPES, Node, Value
from octavo.program.symbols import Sum, product


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    ids, table = operands
    return [((ids.shape[0], table.shape[1]), "f32")]


def _bound(attrs: Attrs, ids: Array, table: Array) -> Floats64:
    """d * q + m is rounded once with fma and twice without, the scale once; |m| is at most twice the row's largest."""
    rows = np.abs(table[ids].astype(np.float64)) * abs(attrs["scale"])
    return np.broadcast_to(8 * EPS * rows.max(axis=1, keepdims=True, initial=0.0), rows.shape)


def _reads(node: Node) -> Sum:
    return Sum((product(node.output.shape) * 1,))  # about a byte a weight: only the asked rows are read


EMBEDDING = Op(
    "embedding", "anchor", Locality.ROW, Contract("float32", "none", note="d * q + m, then the scale"),
    _results, _bound, reads=_reads,
)  # fmt: skip


def _gathered(operands: Sequence[Value], attrs: Attrs) -> Results:
    x, index = operands
    return [((index.shape[0], *x.shape[1:]), x.dtype)]


def _gather_bound(attrs: Attrs, x: Array, index: Array) -> Floats64:
    """No difference at all: elements are copied."""
    return bit_equal(attrs, x[index])


def _gathered_bytes(node: Node) -> Sum:
    return Sum((product(node.output.shape) * DTYPES[node.output.dtype],))


GATHER_ROWS = Op(
    "gather_rows", "row", Locality.ROW, Contract("none", "none", exact=True), _gathered, _gather_bound,
    reads=_gathered_bytes,
)  # fmt: skip


def embedding(ids: Value, table: Value, *, scale: float = 1.0) -> Value:
    """ids [T] i32, table [V, D] -> [T, D] f32."""
    return EMBEDDING(ids, table, scale=scale)


def gather_rows(x: Value, index: Value) -> Value:
    """x [T, D], index [R] i32 -> [R, D]."""
    return GATHER_ROWS(x, index)
