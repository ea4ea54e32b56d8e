"""Causal self-attention over a paged cache: q, k, v, rotation, write, read, output."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.linear import Linear, merged
from octavo.layers.module import Module
from octavo.layers.rotary import Rotary
from octavo.ops.attention import attention, kv_write
from octavo.program.graph import Program, Value
from octavo.program.symbols import Dim, T


@dataclass(frozen=True)
class StepRows:
    """What the flat step and the slot table say about token rows, as inputs of a Program."""

    position: Value  # [T] i32
    slot: Value  # [T] i32
    lo: Value  # [groups, T] i32, first visible key
    hi: Value  # [groups, T] i32, one past the last
    page: Value  # [slots, groups, pages] i32, page of each 16 positions


def step_rows(program: Program) -> StepRows:
    """The row inputs of a Program, made when first asked for. N, G and P are bounds of the slot table."""
    slots, groups, pages = Dim("N"), Dim("G"), Dim("P")
    return StepRows(
        program.input("row_pos", (T,), "i32", source="row_pos"),
        program.input("row_slot", (T,), "i32", source="row_slot"),
        program.input("row_lo", (groups, T), "i32", source="row_lo"),
        program.input("row_hi", (groups, T), "i32", source="row_hi"),
        program.input("page", (slots, groups, pages), "i32", source="slots.page"),
    )


@dataclass(frozen=True)
class Attention(Module):
    """x [T, width] -> [T, width]; heads share the keys of kv_heads evenly. window 0: every key before the row."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    window: int = 0
    qkv_bias: bool = False
    output_bias: bool = False

    def __call__(self, x: Value) -> Value:
        program, rows = x.program, step_rows(x.program)
        q, k, v = merged(
            x,
            Linear(self.child("q_proj"), self.width, self.heads * self.head_dim, self.qkv_bias),
            Linear(self.child("k_proj"), self.width, self.kv_heads * self.head_dim, self.qkv_bias),
            Linear(self.child("v_proj"), self.width, self.kv_heads * self.head_dim, self.qkv_bias),
        )
        q, k = self.rotary(q, rows.position), self.rotary(k, rows.position)
        group, layer = program.state(kv_heads=self.kv_heads, head_dim=self.head_dim, window=self.window)
        keys, values = (
            kv_write(
                value, (rows.position, rows.slot, rows.page),
                group=group, layer=layer, which=which, kv_heads=self.kv_heads, head_dim=self.head_dim,
            )
            for which, value in enumerate((k, v))
        )  # fmt: skip
        mixed = attention(
            q, (keys, values), (rows.slot, rows.lo, rows.hi, rows.page),
            group=group, layer=layer, shape=(self.heads, self.kv_heads, self.head_dim), scale=self.head_dim**-0.5,
        )  # fmt: skip
        return Linear(self.child("o_proj"), self.heads * self.head_dim, self.width, self.output_bias)(mixed)
