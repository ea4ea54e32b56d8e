"""silu_mul, gelu_mul, clamped_swiglu, gelu, gelu_erf, softcap, sigmoid_mul, add, bias and scale in torch."""

from __future__ import annotations

import torch
from torch import Tensor

GELU_SLOPE, GELU_CUBE = 1.5957691216057308, 0.044715  # 2 sqrt(2 / pi)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [M, N] -> gate * sigmoid(gate) * up."""
    return torch.nn.functional.silu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """x [M, N]: (1 + tanh(y)) / 2 is sigmoid(2 y), which does not cancel where x is far below 0."""
    return x * torch.sigmoid(GELU_SLOPE * (x + GELU_CUBE * x * x * x))


def gelu_erf(x: Tensor) -> Tensor:
    """x [M, N] -> x * Phi(x), Phi of the normal distribution; erfc does not cancel where x is far below 0."""
    return x * (torch.erfc(x * -(0.5**0.5)) / 2)


def gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [M, N] -> gelu(gate) * up."""
    return gelu(gate) * up


def clamped_swiglu(gate: Tensor, up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """gate, up [M, N] -> g * sigmoid(alpha * g) * (u + 1) of what is within the limit."""
    g, u = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return g * torch.sigmoid(alpha * g) * (u + 1)


def softcap(x: Tensor, *, cap: float) -> Tensor:
    """x [M, N] -> cap * tanh(x / cap)."""
    return cap * torch.tanh(x / cap)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """x [M, N], gate [M, 1] -> x * sigmoid(gate)."""
    return x * torch.sigmoid(gate)


def add(x: Tensor, residual: Tensor) -> Tensor:
    """x, residual [M, N] -> residual + x."""
    return residual + x


def bias(x: Tensor, b: Tensor) -> Tensor:
    """x [M, N], b [N]."""
    return x + b


def scale(x: Tensor, *, factor: float) -> Tensor:
    """x [M, N] -> x * factor."""
    return x * factor
