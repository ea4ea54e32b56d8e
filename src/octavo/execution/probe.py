"""Lowered nodes run alone and opened: the same kernels on the same inputs, with what passes between their ops stored.

A phase keeps its intermediate values in scratch. A probe is the node with `tile.store` after each step of its epilogue,
or a part of it: the prologue alone, its products alone. For verify; it knows argument lists (native/kernel.h), not
what the ops should give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.execution import tape
from octavo.execution.linear_args import LinearArgs, read_ops
from octavo.execution.moe_args import SHARE_ROWS, MoeArgs
from octavo.execution.native import NativeExecutor
from octavo.kernels import library
from octavo.lowering.lowered import Arg, Fn, Imm, LoweredNode

Floats = NDArray[np.float32]
Item = Arg | tape.Word
CHANGES_TILE = (
    "tile.bias", "tile.scale", "tile.softcap", "tile.gelu", "tile.gelu_erf", "tile.head_norm", "tile.rope",
    "tile.silu_mul", "tile.gelu_mul", "tile.clamped_swiglu", "tile.rms_norm", "tile.layer_norm",
    "tile.sigmoid_mul",
)  # fmt: skip
ATTENTION_EPILOGUE = 11  # index of the number of epilogue ops in the arguments of `attention`
ROWS_OPS = 4  # the same of `rows`
UNIT = 32  # columns of a work unit where only products are stored


class Probes:
    """Runs nodes and probes on an executor whose flat step describes `rows` token rows."""

    def __init__(self, executor: NativeExecutor, nbytes: int) -> None:
        """nbytes: for everything that one node's probes store, see `room`."""
        self._executor = executor
        self._region = executor.machine.allocate("verify", nbytes)
        self._memory = library.region_bytes(executor.machine, self._region, nbytes)
        self._end = 0

    @staticmethod
    def room(nodes: Iterable[LoweredNode], rows: int) -> int:
        """Bytes that the probes of any one node take."""
        most = 0
        for node in nodes:
            widths = [value.width for each in node.origin.nodes for value in each.outputs if value.shape]
            for each in node.origin.nodes:  # the pairs between the stages of a mixture
                if each.op.name == "moe":
                    widths.append(int(each.attrs["chosen"]) * (each.operands[2].shape[1].at({}) + 64))
            most = max(most, sum(4 * rows * (width + 64) for width in widths) * 2)
        return most + 4096

    def run(self, node: LoweredNode, rows: int) -> None:
        """The node as it is."""
        self._run(node.name, node.args, rows)

    def prologue(self, linear: LinearArgs, k: int, rows: int) -> Floats:
        """[rows, K]: what gather and norms give, before it is quantized."""
        where, view = self._buffer(rows, k, ld=k)
        head = (*linear.head[:4], where, Imm(0), Imm(0), linear.head[7])
        self._run("linear", [*head, *_listed(linear.prologue), Imm(0)], rows)
        return view.copy()

    def rows(self, node: LoweredNode, width: int, rows: int) -> list[Floats]:
        """After each op of a phase of rows that changes the tile: [rows, width]. Its own outputs are written too."""
        opened, views = self._opened(read_ops(iter(node.args[ROWS_OPS:])), rows, width)
        self._run("rows", [*node.args[:ROWS_OPS], *opened], rows)
        return [view.copy() for view in views]

    def products(self, linear: LinearArgs, rows: int) -> list[list[Floats]]:
        """Per group and weight [rows, columns]: the products alone."""
        items: list[Item] = []
        views: list[list[Floats]] = []
        for group in linear.groups:
            columns = group.sizes[2]
            views.append([])
            for weight in group.weights:
                store, view = self._store(rows, columns)
                items += [Imm(UNIT), Imm(-(-columns // UNIT)), Imm(columns), Imm(1), *weight, Imm(1), *store]
                views[-1].append(view)
        count = sum(len(group.weights) for group in linear.groups)
        self._run("linear", [*self._shared(linear), *_listed(linear.prologue), Imm(count), *items], rows)
        return [[view.copy() for view in some] for some in views]

    def epilogues(self, linear: LinearArgs, rows: int) -> list[list[Floats]]:
        """Per group, after each op that changes the tile: [rows, columns]. The node's own outputs are written too."""
        items: list[Item] = [*self._shared(linear), *_listed(linear.prologue), Imm(len(linear.groups))]
        views: list[list[Floats]] = []
        for group in linear.groups:
            opened, stored = self._opened(group.ops, rows, group.sizes[2])
            sizes = [Imm(size) for size in (*group.sizes, len(group.weights))]
            items += [*sizes, *(arg for pair in group.weights for arg in pair), *opened]
            views.append(stored)
        self._run("linear", items, rows)
        return [[view.copy() for view in some] for some in views]

    def attention(self, node: LoweredNode, width: int, rows: int) -> Floats:
        """[rows, width]: what the epilogue of attention begins with."""
        store, view = self._store(rows, width)
        ops = read_ops(iter(node.args[ATTENTION_EPILOGUE:]))
        items: list[Item] = [*node.args[:ATTENTION_EPILOGUE], Imm(1 + len(ops)), *store]
        self._run("attention", items + [arg for op in ops for arg in op], rows)
        return view.copy()

    def mixture(
        self, moe: MoeArgs, which: Sequence[int], *, joined: bool, summed: bool, width: int, rows: int, stored: int = 0
    ) -> list[Floats]:
        """summed: the whole node; [rows, width] that the epilogue begins with, and after each op of it that changes
        the tile; routes are left in memory. Else [stored, width] of the first stage alone: of the weights `which`,
        joined or not."""
        store, view = self._store(rows if summed else stored, width)
        views = [view]
        first, ops = [moe.first.weights[i] for i in which], moe.first.ops
        items: list[Item] = [*moe.head[:SHARE_ROWS], Imm(0), *moe.head[SHARE_ROWS + 1 :], *moe.first.rows]
        items += [Imm(len(first)), *(arg for weight in first for arg in weight)]
        if summed:
            items += _listed(ops)
        else:
            items += [Imm(1 + joined), *(ops[0] if joined else ()), *store]
        weights = moe.second.weights if summed else ()
        items += [*moe.second.rows, Imm(len(weights)), *(arg for weight in weights for arg in weight)]
        if summed:
            (_, *opened), stores = self._opened(moe.second.ops, rows, width)
            items += [Imm(1 + len(moe.second.ops) + len(stores)), *store, *opened]
            views += stores
        else:
            items.append(Imm(0))
        self._run("moe", items, rows)
        return [each.copy() for each in views]

    def _shared(self, linear: LinearArgs) -> tuple[Item, ...]:
        """The head of a linear whose activations are always left in their buffer."""
        return (*linear.head[:6], Imm(0), linear.head[7])

    def _opened(self, ops: Sequence[tuple[Arg, ...]], rows: int, columns: int) -> tuple[list[Item], list[Floats]]:
        items: list[Item] = []
        views = []
        for op in ops:
            items += op
            if isinstance(op[0], Fn) and op[0].name in CHANGES_TILE:
                store, view = self._store(rows, columns)
                items += store
                views.append(view)
        return [Imm(len(ops) + len(views)), *items], views

    def _store(self, rows: int, columns: int) -> tuple[list[Item], Floats]:
        ld = -(-columns // 32) * 32
        where, view = self._buffer(rows, columns, ld)
        return [Fn("tile.store"), Imm(2), where, Imm(ld)], view

    def _buffer(self, rows: int, columns: int, ld: int) -> tuple[tape.Word, Floats]:
        begin, nbytes = self._end, rows * ld * 4
        self._end = -(-(begin + nbytes) // 64) * 64
        memory = self._memory[begin : begin + nbytes]
        memory[:] = 0xFF  # not a number wherever nothing is stored
        view = memory.view(np.float32).reshape(rows, ld)[:, :columns]
        return tape.buffer(self._region, begin, nbytes), view

    def _run(self, kernel: str, items: Sequence[Item], rows: int) -> None:
        image = tape.Image()
        words = [item if isinstance(item, tuple) else self._executor.word(image, item) for item in items]
        image.add(kernel, words)
        machine = self._executor.machine
        machine.run_nodes(tape.node_tape(machine.load(image.words(), image.names)), rows)
        self._end = 0


def _listed(ops: Sequence[tuple[Arg, ...]]) -> list[Item]:
    return [Imm(len(ops)), *(arg for op in ops for arg in op)]
