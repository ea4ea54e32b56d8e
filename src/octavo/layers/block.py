"""The block of a decoder: attention and a feed-forward part, with norms around them, added to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.module import Layer
from octavo.ops.activation import add, scale
from octavo.program.graph import Value


@dataclass(frozen=True)
class Residual:
    """x [T, width] -> x + multiplier * after(layer(before(x))), where there are such norms."""

    layer: Layer
    before: Layer | None = None
    after: Layer | None = None
    multiplier: float = 1.0

    def __call__(self, x: Value) -> Value:
        y = self.layer(x if self.before is None else self.before(x))
        if self.after is not None:
            y = self.after(y)
        return add(y if self.multiplier == 1.0 else scale(y, self.multiplier), x)


@dataclass(frozen=True)
class Block:
    """x [T, width] -> [T, width]: attention, then the feed-forward part."""

    attention: Residual
    mlp: Residual

    def __call__(self, x: Value) -> Value:
        return self.mlp(self.attention(x))
