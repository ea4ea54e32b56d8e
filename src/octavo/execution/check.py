"""What a check says, and what checks compare: bits, errors in units of a bound, quantized rows. It knows no node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.lowering.lowered import LoweredNode
from octavo.ops.quantize import GROUP, act_bytes, act_row_bytes
from octavo.quantization.panels import SUPER

ORACLE, BOUND, EXACT, WHOLE = "scalar oracle, bit-equal", "the op's own bound", "exact", "the node as it is"
ORACLE_PRODUCTS = 1 << 26  # multiply-adds per weight that the scalar oracle is asked for: it takes 3 ns each
# native/kernel.h
ACT_GROUP = np.dtype([("x", "i1", 32), ("scale", "f4"), ("scaled_sum", "f4"), ("sum16", "i2", 2), ("sum", "i4")])

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """One op of one node. `ratio`: the worst error in units of what is allowed; infinite where bits must be equal."""

    node: str
    region: str
    op: str
    weights: tuple[str, ...]
    against: str
    ratio: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.ratio <= 1

    def __str__(self) -> str:
        weights = f" with {', '.join(self.weights)}" if self.weights else ""
        return f"{self.op}{weights} of {self.node}: {self.ratio:.3g} x ({self.against}) {self.detail}".rstrip()


def equal(
    node: LoweredNode, op: str, weights: tuple[str, ...], against: str, found: Array, wanted: Array, what: str = ""
) -> Check:
    """Bit for bit; the detail says where they differ first."""
    differs = np.ascontiguousarray(found).view(np.uint8) != np.ascontiguousarray(wanted).view(np.uint8)
    detail = what
    if differs.any():
        first = np.argwhere(differs)[0]
        first[-1] //= found.itemsize
        detail = f"{what} first at {tuple(int(each) for each in first)}".strip()
    return Check(f"{node!r}", node.region, op, weights, against, float("inf") if differs.any() else 0.0, detail)


def yield_checks(parts: Iterator[Check | Array]) -> tuple[Array, list[Check]]:
    """The array at the end, and the checks before it."""
    *checks, last = parts
    if isinstance(last, Check):
        raise TypeError("a prologue ends with its activations")
    return last, [check for check in checks if isinstance(check, Check)]


def concatenated(arrays: list[Array]) -> NDArray[np.uint8]:
    if not arrays:
        return np.empty(0, np.uint8)
    return np.concatenate([np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in arrays])


def worst_ratio(found: Array, wanted: Array, bound: Array) -> float:
    """Largest |found - wanted| / bound; infinite for a NaN, or where a difference meets a bound of 0."""
    error = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / bound)
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def quantized_bytes(rows: Any) -> NDArray[np.uint8]:
    """The reference's quantized rows as bytes of native/kernel.h."""
    count, k = rows.x.shape
    parts = [_groups(rows)] + ([] if rows.rests is None else [_groups(rows.rests)])
    out = np.zeros((count, act_row_bytes(k, GROUP if rows.rests is None else SUPER)), np.uint8)
    both = np.concatenate(parts, axis=1)
    out[:, : both.shape[1]] = both
    return out


def _groups(rows: Any) -> NDArray[np.uint8]:
    """[M, K / 32 groups] of ACT_GROUP as bytes, of rows or of their rests."""
    x, scale = rows.x.numpy(), rows.scale.numpy()
    count, k = x.shape
    groups = np.zeros((count, k // GROUP), ACT_GROUP)
    groups["x"] = x.reshape(count, -1, GROUP)
    groups["scale"] = scale
    groups["sum16"] = x.reshape(count, -1, 2, 16).sum(axis=3, dtype=np.int32)
    groups["sum"] = groups["sum16"].sum(axis=2)
    groups["scaled_sum"] = scale * groups["sum"].astype(np.float32)
    return groups.view(np.uint8).reshape(count, -1)


def dequantized(acts: NDArray[np.uint8], k: int, span: int) -> Floats:
    """[rows, K] float32 of quantized rows, rests included."""
    groups = np.ascontiguousarray(acts[:, : act_bytes(k, span)]).view(ACT_GROUP)
    parts = (groups["x"] * groups["scale"][:, :, None]).reshape(len(acts), -1, k)
    values: Floats = parts.sum(axis=1, dtype=np.float32)
    return values
