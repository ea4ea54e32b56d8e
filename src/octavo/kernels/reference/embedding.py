"""embedding and gather_rows in torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def embedding(ids: Tensor, table: Tensor, *, scale: float) -> Tensor:
    """ids [T] integers, table [V, D] float32 -> [T, D]."""
    rows = table[ids.long()]
    return rows if scale == 1.0 else rows * scale


def gather_rows(x: Tensor, index: Tensor, **attrs: Any) -> Tensor:
    """x [T, D], index [R] integers -> [R, D]."""
    return x[index.long()]
