"""quantize in torch: the rounding that every kernel must match bit for bit (native/kernel.h, act_row_bytes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32


@dataclass(frozen=True)
class QuantizedRows:
    """int8 x [M, K] and one float32 scale per 32 columns [M, K / 32]; a value is x * scale."""

    x: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 [M, K]."""
        groups = self.x.to(torch.float32).unflatten(-1, (-1, GROUP)) * self.scale.unsqueeze(-1)
        values: Tensor = groups.flatten(-2)
        return values


def quantize(x: Tensor) -> QuantizedRows:
    """x [M, K] float32: scale = max|v| / 127, to nearest, ties to even; a group of zeros is all zero."""
    groups = x.unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    inverse = torch.where(largest > 0, 127 / largest, torch.zeros_like(largest))
    codes = (groups * inverse.unsqueeze(-1)).round().to(torch.int8)
    return QuantizedRows(codes.flatten(-2), largest / 127)
