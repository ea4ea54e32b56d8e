"""quantize in torch: the rounding that every kernel must match bit for bit (native/kernel.h, act_row_bytes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32


@dataclass(frozen=True)
class QuantizedRows:
    """int8 x [M, K] and a float32 scale of each 32 columns [M, K / 32]; a value is x * scale.

    rests: the same of what is left, added to it, where 256 columns share a scale; scales of 0 where nothing is.
    """

    x: Tensor
    scale: Tensor
    rests: QuantizedRows | None = None

    def dequantize(self) -> Tensor:
        """float32 [M, K]."""
        groups = self.x.to(torch.float32).unflatten(-1, (-1, GROUP)) * self.scale.unsqueeze(-1)
        values: Tensor = groups.flatten(-2)
        return values if self.rests is None else values + self.rests.dequantize()


def quantize(x: Tensor, span: int) -> QuantizedRows:
    """x [M, K] float32: scale = max|v| / 127 of `span` columns, to nearest, ties to even; zeros stay zero."""
    groups = x.unflatten(-1, (-1, span))
    largest = groups.abs().amax(-1)
    # a division of its own: 127 / tensor is a product with the reciprocal, rounded twice
    inverse = torch.where(largest > 0, torch.full_like(largest, 127).div(largest), torch.zeros_like(largest))
    values = groups * inverse.unsqueeze(-1)
    scale = largest / 127
    rows = _rows(values.round(), scale)
    if span == GROUP:
        return rows
    wide = _is_wide(groups.unflatten(-1, (-1, GROUP)).abs().amax(-1), largest)
    left = ((values - values.round()) * 128).round() * wide.unsqueeze(-1)
    return QuantizedRows(rows.x, rows.scale, _rows(left, torch.where(wide, scale / 128, torch.zeros_like(scale))))


def _rows(codes: Tensor, scale: Tensor) -> QuantizedRows:
    """codes [M, spans, span] and their scales [M, spans], group by group."""
    return QuantizedRows(codes.to(torch.int8).flatten(-2), scale.repeat_interleave(codes.shape[-1] // GROUP, -1))


def _is_wide(maxima: Tensor, largest: Tensor) -> Tensor:
    """Whether 8 groups differ too much for one scale: 2 max^2 above the sum of squares, added in order (kernel.h)."""
    total = torch.zeros_like(largest)
    for group in maxima.unbind(-1):
        total = total + group * group
    return (largest >= 1e-15) & largest.isfinite() & (2 * (largest * largest) > total)
