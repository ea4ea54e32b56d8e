"""rms_norm in torch, everything in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x [M, D], weight [D] -> [M, D]."""
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * scale * weight
