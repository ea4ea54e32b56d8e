"""quantize(x): float rows -> int8 with one scale per 32 columns (native/kernel.h, act_row_bytes).

Lowering inserts it before linears whose weight is quantized; models never call it.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.ops.op import Attrs, Contract, Locality, Op, Results, bit_equal
from octavo.program.graph import Value

GROUP = 32


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    if operands[0].width % GROUP:
        raise ValueError(f"{operands[0]!r} is not made of groups of {GROUP}")
    return [(operands[0].shape, "acts")]


QUANTIZE = Op(
    "quantize", "row", Locality.GROUP,
    Contract("none", "none", GROUP, True, "scale = max / 127; to nearest, ties to even; sums of integers exact"),
    _results, bit_equal,
)  # fmt: skip


def quantize(x: Value) -> Value:
    """x [M, K] f32 -> quantized rows of K values."""
    return QUANTIZE(x)


def act_row_bytes(k: int) -> int:
    """Bytes of a quantized row, to 64; a group: int8 x[32], float scale and scaled_sum, int32 sum16[2]."""
    return (k // 32 * 48 + 63) // 64 * 64
