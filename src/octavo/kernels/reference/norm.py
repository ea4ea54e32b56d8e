"""rms_norm, head_norm and layer_norm in torch, everything in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x [M, D], weight [D] -> [M, D]."""
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * scale * weight


def head_norm(x: Tensor, weight: Tensor, *, eps: float, head_dim: int) -> Tensor:
    """x [M, heads * head_dim], weight [head_dim] -> like x."""
    return rms_norm(x.unflatten(-1, (-1, head_dim)), weight, eps=eps).flatten(-2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """x [M, D], weight and bias [D] -> [M, D]."""
    apart = x - x.mean(-1, keepdim=True)
    return apart * torch.rsqrt((apart * apart).mean(-1, keepdim=True) + eps) * weight + bias
