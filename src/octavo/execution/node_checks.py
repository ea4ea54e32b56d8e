"""One lowered node against its origin: each op inside of it held against its contract, on the reference's inputs.

Products must be bit-equal to the scalar oracle of order on weights packed anew from the file, quantized rows to its
rounding, pages to the rounding of their dtype; every other op stays within the bound that its declaration computes on
the inputs that it really had. It knows what should come out; how nodes are opened is probe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.execution.check import (
    BOUND,
    EXACT,
    ORACLE,
    ORACLE_PRODUCTS,
    WHOLE,
    Array,
    Check,
    Floats,
    concatenated,
    dequantized,
    equal,
    quantized_bytes,
    worst_ratio,
    yield_checks,
)
from octavo.execution.kv_pages import KEYS, PAGE, VALUES, KvPages
from octavo.execution.linear_args import LinearArgs, read_linear
from octavo.execution.moe_checks import MixtureChecks
from octavo.execution.native import NativeExecutor
from octavo.execution.plan import MemoryPlan
from octavo.execution.probe import Probes
from octavo.kernels import library
from octavo.kernels.reference.sample import sample
from octavo.lowering.lowered import LoweredNode, WeightArg
from octavo.lowering.phases import IN_ROWS
from octavo.ops.op import EPS, op_of
from octavo.ops.quantize import act_bytes, act_row_bytes, span_of
from octavo.program.graph import Node, Value
from octavo.quantization.panels import PANEL, kernel_name, layout_named, pack_into, packed_bytes

BF16_EPS = 2.0**-9  # avx512bf16 rounds q and p of attention over bf16 pages
COLUMNS = 4096  # of a product that are bounded at a time: keeps float64 copies small


class NodeChecks:
    """Checks on an executor whose flat step describes the rows that `values` (by Value, of the reference) belong to."""

    def __init__(
        self, checkpoint: Checkpoint, plan: MemoryPlan, executor: NativeExecutor, reference: Any,
        values: Mapping[Value, Any], probes: Probes,
    ) -> None:  # fmt: skip
        self._checkpoint, self._plan, self._executor = checkpoint, plan, executor
        self._reference, self._values, self._probes = reference, values, probes
        self._fused = executor.isa != "portable"
        layouts = plan.layouts
        self._mixtures = MixtureChecks(executor, probes, self._packed, self._place, reference)
        self._pages = [KvPages(group, executor.region("kv"), layouts.page_bytes) for group in layouts.lowered.groups]
        self._kinds: dict[str, Callable[[LoweredNode, int], Iterator[Check]]] = {
            "embedding": self._embedding, "linear": self._linear, "rows": self._rows, "attention": self._attention,
            "moe": self._moe, "sample": self._sample,
        }  # fmt: skip

    def of(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        """The checks of a node, in the order of its ops."""
        return self._kinds[node.name](node, rows)

    # -- kinds of nodes ------------------------------------------------------------------------------------------------

    def _embedding(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        self._probes.run(node, rows)
        (op,) = node.origin.nodes
        yield self._bounded(node, op, self._floats(node, op.output, rows), self._values)

    def _linear(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        linear, ops = read_linear(node.args), node.origin.nodes
        self._place(node)
        self._probes.run(node, rows)
        whole = self._outputs(node, rows)
        before = list(takewhile(lambda op: op.op.name != "linear", ops))
        anchors = {op.operands[1].name: op for op in ops if op.op.name == "linear"}
        acts, checks = yield_checks(self._prologue(node, linear, before, next(iter(anchors.values())), rows))
        yield from checks
        self._place(node)
        products = self._probes.products(linear, rows)
        have: dict[Value, Array] = {}
        groups: dict[Value, int] = {}
        for number, group in enumerate(linear.groups):
            for (weight, _), found in zip(group.weights, products[number], strict=True):
                if not isinstance(weight, WeightArg):
                    raise TypeError(f"{node!r}: {weight} is no weight")
                anchor = anchors[weight.name]
                have[anchor.output], groups[anchor.output] = found[:, : anchor.output.width], number
                yield from self._product(node, anchor, acts, linear.quantized, have[anchor.output])
        self._place(node)
        opened = self._probes.epilogues(linear, rows)
        same = self._outputs(node, rows)
        yield equal(node, "linear", (), WHOLE, concatenated(same), concatenated(whole))
        yield from self._steps(node, ops[len(before) :], have, groups, opened, rows)

    def _rows(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        ops = node.origin.nodes
        source = ops[0].operands[0]
        self._place(node)
        self._probes.run(node, rows)
        whole = self._outputs(node, rows)
        self._place(node)
        opened = self._probes.rows(node, source.width, rows)
        yield equal(node, "rows", (), WHOLE, concatenated(self._outputs(node, rows)), concatenated(whole))
        given = {source: np.ascontiguousarray(self._values[source])}
        yield from self._steps(node, ops, given, {source: 0}, [opened], rows)

    def _attention(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        op, *rest = node.origin.nodes
        self._place(node)
        self._probes.run(node, rows)
        whole = self._outputs(node, rows)
        self._place(node)
        found = self._probes.attention(node, op.output.width, rows)
        yield self._attended(node, op, found)
        same = self._outputs(node, rows)
        yield equal(node, "attention", (), WHOLE, concatenated(same), concatenated(whole))
        yield from self._steps(node, rest, {op.output: found}, {op.output: 0}, [[]], rows)

    def _moe(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        op, *rest = node.origin.nodes
        self._place(node)
        self._probes.run(node, rows)
        whole = self._outputs(node, rows)
        x, logits = (self._values[value] for value in op.operands[:2])
        given = quantized_bytes(x) if op.operands[0].dtype == "acts" else np.ascontiguousarray(x)
        self._place(node)
        opened = self._mixtures.opened(node, op, rows)
        same = self._outputs(node, rows)
        after = list(self._steps(node, rest, {op.output: opened.total}, {op.output: 0}, [opened.after], rows))
        yield from self._mixtures.of(node, op, given, np.ascontiguousarray(logits), opened)
        yield equal(node, "moe", (), WHOLE, concatenated(same), concatenated(whole))
        yield from after

    def _sample(self, node: LoweredNode, rows: int) -> Iterator[Check]:
        """Ids and ranks of the reference's own logits."""
        self._place(node)
        self._probes.run(node, rows)
        (op,) = node.origin.nodes
        found = {name: self._executor.step[name][:rows].copy() for name in ("out_token", "out_rank")}
        step = {name: field.copy() for name, field in self._executor.step.items()}
        sample(np.ascontiguousarray(self._values[op.operands[0]]), step, self._executor.slots)
        for name, values in found.items():
            yield equal(node, "sample", (), EXACT, values, step[name][:rows], name)

    # -- parts of a phase ----------------------------------------------------------------------------------------------

    def _prologue(
        self, node: LoweredNode, linear: LinearArgs, before: list[Node], anchor: Node, rows: int
    ) -> Iterator[Check | Array]:
        """Checks, then the activations that the products read: quantized rows as bytes, or floats."""
        source = before[0].operands[0] if before else anchor.operands[0]
        given = self._values[source]
        if source.dtype == "acts":
            yield quantized_bytes(given)
            return
        x: Floats = np.ascontiguousarray(given)
        have: dict[Value, Array] = {source: x}
        for op in before:
            if op.op.name == "gather_rows":
                x = np.ascontiguousarray(x[self._values[op.operands[1]]])
            elif op.op.name in IN_ROWS:
                self._place(node)
                normed = self._probes.prologue(linear, op.output.width, rows)
                yield self._bounded(node, op, normed, {**have, op.operands[0]: x})
                x = normed
        if not linear.quantized:
            yield x
            return
        self._place(node)
        self._probes.products(linear, rows)
        found = self._bytes(linear.acts.buffer, rows, act_row_bytes(x.shape[1], before[-1].attrs["span"]))
        yield self._quantized(node, before[-1], found, x)
        yield found

    def _steps(
        self, node: LoweredNode, ops: list[Node], have: dict[Value, Array], groups: dict[Value, int],
        opened: list[list[Floats]], rows: int,
    ) -> Iterator[Check]:  # fmt: skip
        """The epilogue, op by op, each on what the native op before it gave."""
        stored = [iter(some) for some in opened]
        for op in ops:
            name, data = op.op.name, op.operands[0]
            if name == "linear":
                continue
            if name == "quantize":
                found = self._bytes(node.writes[op.output.name], rows, act_row_bytes(op.output.width, op.attrs["span"]))
                yield self._quantized(node, op, found, have[data])
            elif name == "kv_write":
                yield self._written(node, op, have[data])
            else:
                groups[op.output] = groups[data]
                result = self._floats(node, op.output, rows) if name == "add" else next(stored[groups[data]])
                have[op.output] = result[:, : op.output.width]
                yield self._bounded(node, op, have[op.output], {**self._values, **have})

    # -- one op against its contract -----------------------------------------------------------------------------------

    def _bounded(self, node: LoweredNode, op: Node, found: Array, given: Mapping[Value, Any]) -> Check:
        wanted = self._reference.evaluate(op, given)
        operands = [self._operand(value, given) for value in op.operands if value.dtype != "state"]
        bound = op_of(op).bound(op.attrs, *operands)
        ratio = worst_ratio(found, wanted, bound)
        return Check(f"{node!r}", node.region, op.op.name, _weights(op), BOUND, ratio)

    def _product(self, node: LoweredNode, op: Node, acts: Array, quantized: bool, found: Floats) -> Iterator[Check]:
        """Bits against the oracle on freshly packed weights; the same product in float32 within its bound."""
        name, k, span = op.operands[1].name, op.operands[1].width, span_of(op.operands[0])
        place = self._plan.layouts.places[name]
        packed = self._packed(name)
        rows = min(len(acts), max(2, ORACLE_PRODUCTS // (place.n * k)))
        some = np.ascontiguousarray(acts[:rows])
        panels = -(-place.n // PANEL)
        wanted = library.oracle_linear(
            kernel_name(place.layout, span), packed, k, some.view(np.uint8), rows=rows, panels=panels, fused=self._fused
        )
        yield equal(node, "linear", (name,), ORACLE, found[:rows], wanted[:, : place.n])
        x = dequantized(acts, k, span) if quantized else acts
        weight = self._reference.weights[name].numpy()
        ratio = 0.0
        for first in range(0, place.n, COLUMNS):
            columns = weight[first : first + COLUMNS]
            bound = op_of(op).bound(op.attrs, x, columns, quantized=quantized)
            exact = x.astype(np.float64) @ columns.T.astype(np.float64)
            ratio = max(ratio, worst_ratio(found[:, first : first + COLUMNS], exact, bound))
        yield Check(f"{node!r}", node.region, "linear", (name,), BOUND, ratio)

    def _attended(self, node: LoweredNode, op: Node, found: Floats) -> Check:
        """Row by row: the bound needs the visible keys."""
        attrs, group = op.attrs, op.attrs["group"]
        wanted = self._reference.evaluate(op, self._values)
        keys, values = (self._pool(group, attrs["layer"], which) for which in (KEYS, VALUES))
        lo, hi = (self._values[op.operands[index]][group] for index in (4, 5))
        dtype = self._pages[group].dtype.name
        rounding = BF16_EPS if self._executor.isa in library.BF16_DOT and dtype == "bf16" else EPS
        ratio = 0.0
        for row, q in enumerate(self._values[op.operands[0]]):
            seen = slice(int(lo[row]), int(hi[row]))
            bound = op_of(op).bound(
                attrs, q.reshape(attrs["heads"], -1), keys[seen], values[seen], rounding=rounding, codes=dtype == "int8"
            )
            ratio = max(ratio, worst_ratio(found[row], wanted[row], bound.reshape(-1)))
        return Check(f"{node!r}", node.region, "attention", (), BOUND, ratio)

    def _quantized(self, node: LoweredNode, op: Node, found: Array, x: Floats) -> Check:
        span = op.attrs["span"]
        used = act_bytes(x.shape[1], span)
        return equal(node, "quantize", (), ORACLE, found[:, :used], library.oracle_quantize(x, span)[:, :used])

    def _written(self, node: LoweredNode, op: Node, x: Floats) -> Check:
        """The rows in their pages, against their rounding."""
        attrs, pages = op.attrs, self._pages[op.attrs["group"]]
        positions, slots, page = (self._values[value] for value in op.operands[1:])
        at = page[slots, attrs["group"], positions // PAGE]
        found = pages.bits(attrs["layer"], attrs["which"])[at, positions % PAGE]
        return equal(node, "kv_write", (), EXACT, found, pages.rounded(x.reshape(found.shape)))

    # -- memory --------------------------------------------------------------------------------------------------------

    def _place(self, node: LoweredNode) -> None:
        """The reference's inputs into the arena, and its keys and values into the pages."""
        for name, buffer in node.reads.items():
            value = node.origin.inputs[name]
            given = self._values[value]
            if value.dtype == "acts":
                rows = quantized_bytes(given)
                self._executor.arena_view(buffer, rows.nbytes)[:] = rows.reshape(-1)
                continue
            about = self._executor.layouts.lowered.arena.buffers[buffer]
            memory = self._executor.arena_view(buffer, len(given) * about.row_bytes).view(np.float32)
            memory.reshape(len(given), about.ld)[:, : given.shape[1]] = given
        for op in node.origin.nodes:
            if op.op.name == "attention":
                group, layer = op.attrs["group"], op.attrs["layer"]
                for which in (KEYS, VALUES):
                    self._pages[group].write(layer, which, self._reference.caches[group].pools[layer, which].numpy())

    def _outputs(self, node: LoweredNode, rows: int) -> list[Array]:
        """Copies of everything that the node leaves: arena buffers and pages."""
        found: list[Array] = []
        for name, buffer in node.writes.items():
            value = node.origin.outputs[name]
            if value.dtype == "acts":
                k, span = value.width, span_of(value)
                found.append(self._bytes(buffer, rows, act_row_bytes(k, span))[:, : act_bytes(k, span)])
            elif value.dtype == "f32":
                found.append(self._floats(node, value, rows))
        for op in node.origin.nodes:
            if op.op.name == "kv_write":
                found.append(self._pages[op.attrs["group"]].bits(op.attrs["layer"], op.attrs["which"]))
        return found

    def _floats(self, node: LoweredNode, value: Value, rows: int) -> Floats:
        buffer = self._executor.layouts.lowered.arena.buffers[node.writes[value.name]]
        memory = self._executor.arena_view(buffer.name, rows * buffer.row_bytes).view(np.float32)
        return memory.reshape(rows, buffer.ld)[:, : value.width].copy()

    def _bytes(self, buffer: str, rows: int, row_bytes: int) -> Array:
        return self._executor.arena_view(buffer, rows * row_bytes).reshape(rows, row_bytes).copy()

    def _packed(self, name: str, expert: int = 0) -> NDArray[np.uint8]:
        """A weight packed anew from the file: not what lies in memory, which is under examination."""
        place = self._plan.layouts.places[name]
        layout, source = layout_named(place.layout), place.source
        raw = source.reader(self._checkpoint, expert)(0, place.n, None)
        packed = np.empty(packed_bytes(layout, place.n, place.k), np.uint8)
        pack_into(packed, *source.blocks(raw, (place.n, place.k)), place.n, place.k, layout)
        return packed

    def _pool(self, group: int, layer: int, which: int) -> Floats:
        """Keys or values by position [positions, kv_heads, head_dim] of the one sequence: its pages are 1, 2, ..."""
        pool: Floats = self._reference.caches[group].pools[layer, which].numpy()
        return pool[1:].reshape(-1, *pool.shape[2:])

    def _operand(self, value: Value, given: Mapping[Value, Any]) -> Array:
        if value.kind == "weight":
            return np.asarray(self._reference.weights[value.name].numpy())
        if value.kind == "table":
            return value.program.tables[value.name].make()
        return np.asarray(given[value])


def _weights(op: Node) -> tuple[str, ...]:
    return tuple(value.name for value in op.operands if value.kind == "weight")
