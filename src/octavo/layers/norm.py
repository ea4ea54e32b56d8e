"""RMSNorm with a weight."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Module
from octavo.ops.norm import rms_norm
from octavo.program.graph import Value


@dataclass(frozen=True)
class RMSNorm(Module):
    """x [M, width] -> [M, width]; weight [width]."""

    width: int
    eps: float

    def __call__(self, x: Value) -> Value:
        return rms_norm(x, self.weight(x.program, "weight", (self.width,)), eps=self.eps)
