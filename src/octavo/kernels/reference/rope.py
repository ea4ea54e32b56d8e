"""rope in torch: halves style, from tables."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, *, head_dim: int, rotary: int) -> Tensor:
    """x [T, heads * head_dim], positions [T], cos and sin [positions, rotary / 2] -> like x."""
    heads = x.unflatten(-1, (-1, head_dim))
    c, s = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
    first, second = heads[..., : rotary // 2], heads[..., rotary // 2 : rotary]
    turned = (first * c - second * s, second * c + first * s, heads[..., rotary:])
    return torch.cat(turned, dim=-1).flatten(-2)
