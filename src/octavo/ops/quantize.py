"""quantize(x): float rows -> int8 with one scale per 32 or 256 columns (native/kernel.h, act_row_bytes).

Lowering inserts it before linears whose weight is quantized; models never call it.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.ops.op import Attrs, Contract, Locality, Op, Results, bit_equal
from octavo.program.graph import Value

GROUP = 32


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    if operands[0].width % attrs["span"]:
        raise ValueError(f"{operands[0]!r} is not made of spans of {attrs['span']}")
    return [(operands[0].shape, "acts")]


QUANTIZE = Op(
    "quantize", "row", Locality.GROUP,
    Contract("none", "none", GROUP, True, "scale = max / 127; to nearest, ties to even; sums of integers exact"),
    _results, bit_equal,
)  # fmt: skip


def quantize(x: Value, span: int) -> Value:
    """x [M, K] f32 -> quantized rows of K values, `span` of which share a scale."""
    return QUANTIZE(x, span=span)


def span_of(rows: Value) -> int:
    """Of quantized rows how many values share a scale; 0 of floats."""
    return int(rows.producer.attrs["span"]) if rows.dtype == "acts" and rows.producer else 0


def act_bytes(k: int, span: int) -> int:
    """Bytes of a quantized row: of a group int8 x[32], float scale and scaled_sum, int16 sum16[2], int32 sum; where 256
    share a scale as many groups of rests."""
    return k // GROUP * 48 * (1 if span == GROUP else 2)


def act_row_bytes(k: int, span: int = GROUP) -> int:
    """The distance of quantized rows: their bytes, to 64."""
    return (act_bytes(k, span) + 63) // 64 * 64
