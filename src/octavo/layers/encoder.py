"""The block of an encoder: attention of every row to all rows of its sequence, then a feed-forward part.

A norm stands behind each sum with the residual stream (BERT). Keys and values pass through pages as in a decoder, and
nothing of them is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.attention import Heads, step_rows
from octavo.layers.linear import Linear, merged
from octavo.layers.module import Module
from octavo.layers.norm import LayerNorm
from octavo.ops.activation import add, gelu_erf
from octavo.ops.attention import attention, kv_write
from octavo.program.graph import Value


@dataclass(frozen=True)
class WholeAttention(Module):
    """x [T, width] -> [T, heads * dim]: what every row makes of the values of all rows of its sequence."""

    width: int
    heads: Heads

    def __call__(self, x: Value) -> Value:
        program, rows, heads = x.program, step_rows(x.program), self.heads
        inner = heads.count * heads.dim
        q, k, v = merged(x, *(Linear(self.child(key), self.width, inner, True) for key in ("query", "key", "value")))
        group, layer = program.state(kv_heads=heads.kv, head_dim=heads.dim, window=0, kind="whole")
        keys, values = (
            kv_write(
                value, (rows.position, rows.slot, rows.page),
                group=group, layer=layer, which=which, kv_heads=heads.kv, head_dim=heads.dim,
            )
            for which, value in enumerate((k, v))
        )  # fmt: skip
        return attention(
            q, (keys, values), (rows.slot, rows.lo, rows.hi, rows.page),
            group=group, layer=layer, shape=(heads.count, heads.kv, heads.dim), scale=heads.dim**-0.5,
        )  # fmt: skip


@dataclass(frozen=True)
class EncoderBlock(Module):
    """x [T, width] -> [T, width], in the names of BERT."""

    width: int
    inner: int
    heads: Heads
    eps: float

    def __call__(self, x: Value) -> Value:
        mixed = WholeAttention(self.child("attention.self"), self.width, self.heads)(x)
        x = self._output("attention.output", mixed, x)
        bent = gelu_erf(Linear(self.child("intermediate.dense"), self.width, self.inner, True)(x))
        return self._output("output", bent, x)

    def _output(self, key: str, x: Value, residual: Value) -> Value:
        made = add(Linear(self.child(f"{key}.dense"), x.width, self.width, True)(x), residual)
        return LayerNorm(self.child(f"{key}.LayerNorm"), self.width, self.eps)(made)
