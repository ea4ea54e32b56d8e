"""What a lowered node moves and computes, as sums over the symbols of a step: for the profile and for the team's size.

Read off what the ops declare, and where a linear is concerned off its argument list. It knows no time and no machine.
"""

from __future__ import annotations

from octavo.execution.linear_args import read_linear
from octavo.execution.tape import NodeWork
from octavo.lowering.lowered import Lowered, LoweredNode
from octavo.ops.op import op_of
from octavo.program.symbols import Dim, Sum

# Operations of int8 products that take as long as one in floats: attention over bf16 pages, one row, a thread of a Zen
# 5: 34 ns a key and layer of 9 heads of 64 (native/kernels/attention.cc), 2,304 operations; of int8 products 500 a ns.
FLOAT = 8
MANY = 1 << 20  # units that are no bound
FAR = 1 << 10  # rows over which a slope is taken: sums have ceilings in them


def multiplies_integers(node: LoweredNode) -> bool:
    """Whether an anchor of the node takes quantized rows."""
    anchors = [each for each in node.origin.nodes if each.op.kind == "anchor"]
    return any(value.dtype == "acts" for each in anchors for value in each.operands)


def operations(node: LoweredNode) -> Sum:
    """Of all ops that the node stands for."""
    return sum((op_of(each).operations(each) for each in node.origin.nodes), Sum())


def traffic(node: LoweredNode, lowered: Lowered) -> Sum:
    """Bytes that a call must move: packed weights, buffers of the arena that it reads or writes, the cache.

    What an op reads only in part (rows of a table, gathered rows) it says itself; values inside the node cost nothing.
    """
    total = Sum()
    partly: set[str] = set()
    terms = []
    for each in node.origin.nodes:
        op = op_of(each)
        total += op.state(each)
        if op.reads is not None:
            total += op.reads(each)
            partly.update(value.name for value in each.operands)
        elif op.parts is not None:
            stacks = [value for value in each.operands if value.kind == "weight"]
            terms += [op.weight_traffic(each, value, _weight_bytes(value.name, lowered)) for value in stacks]
            partly.update(value.name for value in stacks)
    terms += [Dim(None, 0, _weight_bytes(name, lowered)) for name in node.origin.weights if name not in partly]
    read = [buffer for name, buffer in node.reads.items() if name not in partly]
    for name in [*read, *node.writes.values()]:
        buffer = lowered.arena.buffers[name]
        terms.append(buffer.rows * buffer.row_bytes)
    return total + Sum(tuple(terms))


def _weight_bytes(name: str, lowered: Lowered) -> int:
    packed = lowered.weights.get(name)
    return packed.nbytes if packed else 4 * lowered.vectors[name]


def work_of(node: LoweredNode, lowered: Lowered) -> NodeWork:
    """For native/tuning.h: rows are the first of T, R, S that the node's sums know; bytes of pages go with its keys."""
    moved, done = traffic(node, lowered), operations(node)
    known = {term.symbol for term in (*moved.terms, *done.terms)}
    rows = next((symbol for symbol in ("T", "R", "S") if symbol in known), "1")
    keys = next((each for each in known if each is not None and each.startswith("visible_keys.")), None)
    factor = 1 if multiplies_integers(node) else FLOAT
    units, row_units = _units(node)
    apiece = sum(
        _slope(moved, symbol) for symbol in known if symbol is not None and symbol.startswith("experts_active.")
    )
    return NodeWork(
        symbol=rows,
        bytes=_at(moved, {}),
        row_bytes=_slope(moved, rows) + apiece * _chosen(node),  # of few rows, which seldom share an expert
        row_operations=factor * _slope(done, rows),
        key_operations=0 if keys is None else FLOAT * _slope(done, keys),
        group=0 if keys is None else int(keys.rpartition(".")[2]),
        units=units,
        row_units=row_units,
    )


def chosen_experts(lowered: Lowered) -> dict[str, int]:
    """Weight of all experts -> how many of them a row takes."""
    return {
        name: _chosen(node)
        for node in lowered.nodes()
        for name in node.origin.weights
        if name in lowered.weights and _chosen(node)
    }


def _chosen(node: LoweredNode) -> int:
    """Experts of a row."""
    return sum(int(each.attrs["chosen"]) for each in node.origin.nodes if each.op.name == "moe")


def _units(node: LoweredNode) -> tuple[int, int]:
    """Parts that threads may do at once: of the node, and more for each row."""
    if node.name == "linear":
        units = sum(group.sizes[1] for group in read_linear(node.args).groups)
        return units, -(-units // 16)  # units are divided by rows too, 16 to a part (native/kernels/linear.cc)
    return (0, 1) if node.name in ("embedding", "rows", "sample") else (MANY, 0)


def _at(total: Sum, values: dict[str, int]) -> int:
    """Symbols without a value are 0."""
    zeros = {term.symbol: 0 for term in total.terms if term.symbol is not None}
    return total.at({**zeros, **values})


def _slope(total: Sum, symbol: str) -> int:
    return (_at(total, {symbol: FAR}) - _at(total, {})) // FAR
