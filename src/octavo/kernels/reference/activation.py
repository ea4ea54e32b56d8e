"""silu_mul, add and bias in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [M, N] -> gate * sigmoid(gate) * up."""
    return torch.nn.functional.silu(gate) * up


def add(x: Tensor, residual: Tensor) -> Tensor:
    """x, residual [M, N] -> residual + x."""
    return residual + x


def bias(x: Tensor, b: Tensor) -> Tensor:
    """x [M, N], b [N]."""
    return x + b
