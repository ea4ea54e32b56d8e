"""linear in torch: dequantized weights and rows, float32 products."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.reference.quantize import QuantizedRows


def linear(x: Tensor | QuantizedRows, weight: Tensor) -> Tensor:
    """x [M, K] (float32 or quantized rows), weight [N, K] float32 -> [M, N]."""
    rows = x.dequantize() if isinstance(x, QuantizedRows) else x
    return rows @ weight.T
