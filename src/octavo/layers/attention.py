"""Causal self-attention over a paged cache: q, k, v, rotation, write, read, output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.layers.linear import Linear, merged
from octavo.layers.module import Layer, Module
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
class Heads:
    """Heads of q, and the kv_heads whose keys they share evenly. sinks: each has a weight `sinks`, one more score
    without a value."""

    count: int
    kv: int
    dim: int
    sinks: bool = False


@dataclass(frozen=True)
class Attention(Module):
    """x [T, width] -> [T, width]. window 0: every key before the row. scale 0: one over the root of the head's size.

    qk_norm: (name, width of a row) -> the norm of q, and that of k, before they turn. softcap 0: none.
    """

    width: int
    heads: Heads
    rotary: Rotary
    window: int = 0
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Callable[[str, int], Layer] | None = None
    scale: float = 0.0
    softcap: float = 0.0

    def __call__(self, x: Value) -> Value:
        program, rows, heads = x.program, step_rows(x.program), self.heads
        q_width, kv_width = heads.count * heads.dim, heads.kv * heads.dim
        q, k, v = merged(
            x,
            Linear(self.child("q_proj"), self.width, q_width, self.qkv_bias),
            Linear(self.child("k_proj"), self.width, kv_width, self.qkv_bias),
            Linear(self.child("v_proj"), self.width, kv_width, self.qkv_bias),
        )
        group, layer = program.state(kv_heads=heads.kv, head_dim=heads.dim, window=self.window)

        def write(value: Value, which: int) -> Value:
            return kv_write(
                value, (rows.position, rows.slot, rows.page),
                group=group, layer=layer, which=which, kv_heads=heads.kv, head_dim=heads.dim,
            )  # fmt: skip

        values = write(v, 1)  # first: a norm of whole rows of q ends the phase of the products
        if self.qk_norm is not None:
            q = self.rotary(self.qk_norm(self.child("q_norm"), q_width)(q), rows.position)
            k = self.rotary(self.qk_norm(self.child("k_norm"), kv_width)(k), rows.position)
        else:
            q, k = self.rotary(q, rows.position), self.rotary(k, rows.position)
        mixed = attention(
            q, (write(k, 0), values), (rows.slot, rows.lo, rows.hi, rows.page),
            group=group, layer=layer, shape=(heads.count, heads.kv, heads.dim),
            scale=self.scale or heads.dim**-0.5, softcap=self.softcap,
            sinks=self.weight(program, "sinks", (heads.count,)) if heads.sinks else None,
        )  # fmt: skip
        return Linear(self.child("o_proj"), q_width, self.width, self.output_bias)(mixed)
