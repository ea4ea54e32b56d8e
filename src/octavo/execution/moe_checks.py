"""A mixture of experts against its contract: routes, products, what joins them, quantized rows, the sum, one by one.

Each stage is held against the oracle on what the native stage before it left. Probes run the node with a part of its
arguments; it knows these (moe_args.py), not how a node gets its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.execution.check import (
    BOUND,
    EXACT,
    ORACLE,
    ORACLE_PRODUCTS,
    Array,
    Check,
    Floats,
    dequantized,
    equal,
    worst_ratio,
)
from octavo.execution.moe_args import ACTIVE, ROUTES, MoeArgs, Stage, buffer, read_moe
from octavo.execution.native import NativeExecutor
from octavo.execution.probe import Probes
from octavo.kernels import library
from octavo.lowering.lowered import LoweredNode
from octavo.ops.linear import LINEAR
from octavo.ops.moe import GATINGS, gating_attrs, route_error, routes
from octavo.ops.op import EPS, TINY
from octavo.ops.quantize import act_bytes
from octavo.program.graph import Node
from octavo.quantization.panels import PANEL, kernel_name

Packed = Callable[[str, int], NDArray[np.uint8]]  # weight, expert -> packed anew from the file


@dataclass(frozen=True)
class Routed:
    """Ids and weights [rows, chosen] that the node left; the pairs of row and expert in the order of experts."""

    ids: NDArray[np.int32]
    weights: Floats

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Expert, row and place in the row of every pair, in order."""
        rows, places = np.indices(self.ids.shape).reshape(2, -1)
        experts = self.ids.reshape(-1).astype(np.int64)
        order = np.lexsort((rows, experts))
        return experts[order], rows[order], places[order]


@dataclass(frozen=True)
class Opened:
    """What a node left when it was opened: its sum [rows, width], what ops of its epilogue made of it, its routes, and
    the rows between its stages."""

    total: Floats
    after: list[Floats]
    routed: Routed
    between: Array
    active: NDArray[np.int64]


class MixtureChecks:
    """Checks of `moe` nodes. place: puts a node's inputs where it reads them."""

    def __init__(
        self, executor: NativeExecutor, probes: Probes, packed: Packed, place: Callable[[LoweredNode], None],
        reference: Any,
    ) -> None:  # fmt: skip
        self._executor, self._probes, self._packed, self._place = executor, probes, packed, place
        self._reference = reference
        self._fused = executor.isa != "portable"

    def opened(self, node: LoweredNode, op: Node, rows: int) -> Opened:
        """Runs the node on what lies in its inputs, with its sum stored."""
        moe = read_moe(node.args)
        total, *after = self._probes.mixture(moe, (0, 1), joined=True, summed=True, width=op.output.width, rows=rows)
        routed = self._routed(moe, op, rows)
        at = buffer(moe.head[ACTIVE])
        active = self._executor.arena_view(at.buffer, at.nbytes)[at.offset :].view(np.int64)[:1].copy()
        return Opened(total, after, routed, self._between(moe.second, routed.ids.size), active)

    def of(self, node: LoweredNode, op: Node, x: Array, logits: Floats, found: Opened) -> Iterator[Check]:
        """x: rows as the products read them, quantized ones as bytes. Changes what lies in the arena."""
        moe, count, routed, between = read_moe(node.args), len(logits), found.routed, found.between
        yield from self._routes(node, op, found, logits)
        experts, rows, _ = routed.pairs
        both = []
        for which in (0, 1):
            self._place(node)
            both.append(self._stage(moe, (which,), joined=False, op=op, rows=count))
            yield from self._products(node, op, moe.first, which, x[rows], experts, both[-1])
        self._place(node)
        joined = self._stage(moe, (0, 1), joined=True, op=op, rows=count)
        yield self._joined(node, op, both, joined)
        if moe.second.quantized:
            used = act_bytes(joined.shape[1], moe.second.span)
            wanted = library.oracle_quantize(joined, moe.second.span)
            yield equal(node, "quantize", (), ORACLE, between[:, :used], wanted[:, :used])
        else:
            yield equal(node, "moe", (), EXACT, between, joined, "between the stages")
        yield self._summed(node, op, moe.second, found)

    def _stage(self, moe: MoeArgs, which: Sequence[int], *, joined: bool, op: Node, rows: int) -> Floats:
        """What the first stage leaves of some of its weights [pairs, columns]."""
        inner = op.operands[2].shape[1].at({})
        chosen = rows * int(op.attrs["chosen"])
        (found,) = self._probes.mixture(moe, which, joined=joined, summed=False, width=inner, rows=rows, stored=chosen)
        return found

    def _routed(self, moe: MoeArgs, op: Node, count: int) -> Routed:
        pairs = count * int(op.attrs["chosen"])
        memory = self._executor.arena_view(buffer(moe.head[ROUTES]).buffer, 8 * pairs)
        ids, weights = memory[: 4 * pairs].view(np.int32), memory[4 * pairs :].view(np.float32)
        return Routed(ids.reshape(count, -1).copy(), weights.reshape(count, -1).copy())

    def _between(self, stage: Stage, pairs: int) -> Array:
        """The rows that the second stage read: bytes of quantized ones, or floats."""
        about = self._executor.layouts.lowered.arena.buffers[stage.acts.buffer]
        memory = self._executor.arena_view(about.name, pairs * about.row_bytes).reshape(pairs, about.row_bytes)
        return memory.copy() if stage.quantized else memory.copy().view(np.float32)

    def _routes(self, node: LoweredNode, op: Node, found: Opened, logits: Floats) -> Iterator[Check]:
        ids, weights = routes(op.attrs, logits)
        yield equal(node, "moe", (), EXACT, found.routed.ids, ids, "ids of experts")
        ratio = worst_ratio(found.routed.weights, weights, route_error(op.attrs, logits) * weights + TINY)
        yield Check(f"{node!r}", node.region, "moe", (), BOUND, ratio, "weights of experts")
        yield equal(node, "moe", (), EXACT, found.active, np.array([len(np.unique(ids))]), "experts with rows")

    def _products(
        self, node: LoweredNode, op: Node, stage: Stage, which: int, acts: Array, experts: Array, found: Floats
    ) -> Iterator[Check]:
        """Bits of some pairs against the oracle; all of them against the same in float64."""
        name, bias = self._names(op, which)
        some = self._some(len(acts), found.shape[1] * op.operands[2 + which].shape[2].at({}))
        wanted = self._oracle(op, stage, which, acts[some], experts[some])
        yield equal(node, "moe", (name,), ORACLE, found[some], wanted)
        k = op.operands[2 + which].shape[2].at({})
        x = (dequantized(acts, k, stage.span) if stage.quantized else acts).astype(np.float64)
        ratio = 0.0
        for expert in np.unique(experts):
            mine = experts == expert
            weight = self._reference.weights[name][expert].numpy()
            exact = x[mine] @ weight.T.astype(np.float64)
            if bias is not None:
                exact += self._reference.weights[bias][expert].numpy()
            bound = LINEAR.bound({}, x[mine], weight, quantized=stage.quantized) + 2 * EPS * np.abs(exact)
            ratio = max(ratio, worst_ratio(found[mine], exact, bound))
        yield Check(f"{node!r}", node.region, "moe", (name,), BOUND, ratio, "products")

    def _names(self, op: Node, which: int) -> tuple[str, str | None]:
        """A weight of the mixture and its bias: 0 gate, 1 up, 2 down."""
        biases = op.operands[5:]
        return op.operands[2 + which].name, biases[which].name if biases else None

    def _some(self, count: int, cost: int) -> NDArray[np.int64]:
        """As many of the pairs as the scalar oracle may be asked for, evenly spread."""
        return np.unique(np.linspace(0, count - 1, min(count, max(2, ORACLE_PRODUCTS // cost))).astype(np.int64))

    def _oracle(self, op: Node, stage: Stage, which: int, acts: Array, experts: Array) -> Floats:
        name, bias = self._names(op, which)
        n, k = (size.at({}) for size in op.operands[2 + which].shape[1:])
        layout = kernel_name(self._executor.layouts.lowered.weights[name].layout, stage.span)
        found = np.zeros((len(acts), n), np.float32)
        for expert in np.unique(experts):
            mine = np.ascontiguousarray(acts[experts == expert])
            product = library.oracle_linear(
                layout, self._packed(name, int(expert)), k, mine.view(np.uint8), rows=len(mine), panels=-(-n // PANEL),
                fused=self._fused,
            )[:, :n]  # fmt: skip
            found[experts == expert] = (
                product if bias is None else product + self._reference.weights[bias][expert].numpy()
            )
        return found

    def _joined(self, node: LoweredNode, op: Node, both: Sequence[Floats], found: Floats) -> Check:
        name, attrs = op.attrs["gating"], gating_attrs(op.attrs)
        numbers = attrs if name == "clamped_swiglu" else {}
        wanted = self._reference.call(name, *both, **numbers)
        ratio = worst_ratio(found, wanted, GATINGS[name].bound(attrs, *both))
        return Check(f"{node!r}", node.region, name, (), BOUND, ratio)

    def _summed(self, node: LoweredNode, op: Node, stage: Stage, found: Opened) -> Check:
        """Some rows: the oracle's products by the node's own weights, added in the order of experts."""
        n, inner = (size.at({}) for size in op.operands[4].shape[1:])
        rows = self._some(len(found.total), n * inner * int(op.attrs["chosen"]))
        experts, row, place = found.routed.pairs
        mine = np.flatnonzero(np.isin(row, rows))
        y = self._oracle(op, stage, 2, found.between[mine], experts[mine])
        wanted = np.zeros_like(found.total)
        for at, value in zip(mine, y, strict=True):
            wanted[row[at]] += value * found.routed.weights[row[at], place[at]]
        return equal(node, "moe", (self._names(op, 2)[0],), ORACLE, found.total[rows], wanted[rows], "sum of experts")
