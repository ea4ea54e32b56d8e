"""RMSNorm and LayerNorm over a row, HeadNorm over each head."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.ops.norm import head_norm, layer_norm, rms_norm
from octavo.program.graph import Value


@dataclass(frozen=True)
class RMSNorm(Module):
    """x [M, width] -> [M, width]; weight [width]."""

    width: int
    eps: float

    def __call__(self, x: Value) -> Value:
        return rms_norm(x, self.weight(x.program, "weight", (self.width,)), eps=self.eps)


@dataclass(frozen=True)
class HeadNorm(Module):
    """x [M, heads * head_dim] -> the same shape; weight [head_dim]."""

    head_dim: int
    eps: float

    def __call__(self, x: Value) -> Value:
        return head_norm(x, self.weight(x.program, "weight", (self.head_dim,)), eps=self.eps)


@dataclass(frozen=True)
class LayerNorm(Module):
    """x [M, width] -> [M, width]; weight and bias [width]."""

    width: int
    eps: float

    def __call__(self, x: Value) -> Value:
        weight, bias = (self.weight(x.program, key, (self.width,)) for key in ("weight", "bias"))
        return layer_norm(x, weight, bias, eps=self.eps)
