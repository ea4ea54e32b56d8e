"""The argument lists of native/kernel.h, from phases: the other side of that contract.

Buffers are asked of `Buffers` as they are needed; their places are planned afterwards. Everything about the order and
meaning of arguments stands in native/kernel.h and here, nowhere else in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.lowering.lowered import (
    ArenaArg,
    Arg,
    DimArg,
    FloatBits,
    Fn,
    GroupArg,
    Imm,
    PackedWeight,
    StepField,
    TableArg,
    WeightArg,
)
from octavo.lowering.phases import ENDS, IN_ROWS, PANEL, ColumnGroup, Phase
from octavo.ops.moe import SHARE_ROWS as MOE_SHARE_ROWS
from octavo.ops.moe import Gating, block_rows, pairs
from octavo.ops.op import op_of
from octavo.ops.quantize import act_row_bytes, span_of
from octavo.program.graph import Node, Value
from octavo.program.symbols import Dim, Values
from octavo.quantization.panels import kernel_name

SHARE_ROWS = 16  # up to this many rows every thread runs the prologue for itself; beyond, once by rows
NO_POINTER = Imm(0)
INDEX_SOURCES = ("slots.ids", "row_pos", "slots.second")  # what an embedding may be asked by (embedding.cc, Index)


@dataclass(frozen=True)
class Placed:
    """A value in the arena: its buffer, the rows and the distance of rows in floats (0: quantized rows)."""

    buffer: str
    rows: Dim
    row_bytes: int
    ld: int


@dataclass(frozen=True)
class Scope:
    """What the arguments of a phase need to know: where values lie, bounds of symbols, packed weights."""

    place: Callable[[Value], Placed]
    temporary: Callable[[str, Dim, int], Placed]  # a buffer that lives for this phase only: kind, rows, row bytes
    lasting: Callable[[str, int], Placed]  # one that no phase of a step takes from another: kind, bytes
    stored: set[Value]
    bounds: Values
    weights: Mapping[str, PackedWeight]

    def pointer(self, placed: Placed) -> ArenaArg:
        return ArenaArg(placed.buffer, placed.rows.at(self.bounds) * placed.row_bytes)

    def floats(self, value: Value) -> tuple[Arg, Arg]:
        """Address and row distance of a float value."""
        placed = self.place(value)
        return self.pointer(placed), Imm(placed.ld)


def arguments(phase: Phase, scope: Scope) -> tuple[Arg, ...]:
    """The argument list of a phase's kernel."""
    return tuple(BUILDERS[phase.kernel](phase, scope))


def _embedding(phase: Phase, scope: Scope) -> list[Arg]:
    node = phase.anchor
    weight = scope.weights[node.operands[1].name]
    out, _ = scope.floats(node.output)
    return [
        DimArg(node.output.shape[0]), Imm(weight.k), WeightArg(weight.name), Fn(f"format.{weight.layout}"), out,
        FloatBits(node.attrs["scale"]), Imm(INDEX_SOURCES.index(str(node.operands[0].source))),
    ]  # fmt: skip


def _linear(phase: Phase, scope: Scope) -> list[Arg]:
    node = phase.anchor
    rows, k = node.operands[0].shape[0], node.operands[0].width
    quantized, span = node.operands[0].dtype == "acts", span_of(node.operands[0])
    norms = [each for each in phase.prologue if each.op.name in IN_ROWS]
    gathers = any(each.op.name == "gather_rows" for each in phase.prologue)
    if phase.source is None:
        raise ValueError(f"{node!r} has no source")
    source = scope.place(phase.source)
    if source.ld == 0 or (not quantized and not norms and not gathers and source.ld == k):
        src: list[Arg] = [NO_POINTER, Imm(0), scope.pointer(source)]
    else:
        acts = scope.temporary("acts", rows, act_row_bytes(k, span) if quantized else 4 * k)
        src = [scope.pointer(source), Imm(source.ld), scope.pointer(acts)]
    args: list[Arg] = [DimArg(rows), Imm(k), *src, Imm(span), Imm(SHARE_ROWS)]
    args += [StepField("logit_row") if gathers else NO_POINTER, Imm(len(norms))]
    for each in norms:
        args += _inline(f"row.{each.op.name}", _norm(each))
    args.append(Imm(len(phase.groups)))
    for group in phase.groups:
        args += _column_group(group, scope)
    return args


def _column_group(group: ColumnGroup, scope: Scope) -> list[Arg]:
    columns = padded_columns(group)
    args: list[Arg] = [Imm(group.unit), Imm(-(-columns // group.unit)), Imm(columns), Imm(len(group.anchors))]
    for anchor in group.anchors:
        weight = scope.weights[anchor.operands[1].name]
        args += [WeightArg(weight.name), _format(weight, span_of(anchor.operands[0]))]
    return args + _epilogue(group, scope)


def _format(weight: PackedWeight, span: int) -> Fn:
    """The native format of a weight that meets rows of this span."""
    return Fn(f"format.{kernel_name(weight.layout, span)}")


def padded_columns(group: ColumnGroup) -> int:
    """Output columns per weight: those of a pair are filled up to whole units (native/kernel.h, linear)."""
    return -(-group.columns // PANEL) * PANEL if len(group.anchors) > 1 else group.columns


def _epilogue(group: ColumnGroup, scope: Scope) -> list[Arg]:
    """{number of ops, each {TileFn, n, args...}}: the steps, and a store after each value that others read."""
    ops: list[list[Arg]] = []
    if len(group.anchors) == 1 and group.anchors[0].output in scope.stored:
        ops.append(_inline("tile.store", [*scope.floats(group.anchors[0].output)]))
    for node in group.steps:
        ops.append(_inline(f"tile.{node.op.name}", STEPS[node.op.name](node, scope)))
        if node.op.name not in (*ENDS, "add") and node.output in scope.stored:  # these leave their result themselves
            ops.append(_inline("tile.store", [*scope.floats(node.output)]))
    return [Imm(len(ops)), *(arg for op in ops for arg in op)]


def _inline(name: str, args: list[Arg]) -> list[Arg]:
    return [Fn(name), Imm(len(args)), *args]


def _norm(node: Node) -> list[Arg]:
    """Weight, and bias where the norm has one, then eps."""
    return [*(TableArg(value.name) for value in node.operands[1:]), FloatBits(node.attrs["eps"])]


def _tile_norm(node: Node, scope: Scope) -> list[Arg]:
    return [*_norm(node), Imm(node.operands[1].shape[0].at({}))]


def _factor(node: Node, scope: Scope) -> list[Arg]:
    return [FloatBits(node.attrs["factor"])]


def _cap(node: Node, scope: Scope) -> list[Arg]:
    return [FloatBits(node.attrs["cap"])]


def _bias(node: Node, scope: Scope) -> list[Arg]:
    return [TableArg(node.operands[1].name)]


def _rope(node: Node, scope: Scope) -> list[Arg]:
    cos, sin = node.operands[2:4]
    return [TableArg(cos.name), TableArg(sin.name), Imm(node.attrs["head_dim"]), Imm(node.attrs["rotary"])]


def _kv_write(node: Node, scope: Scope) -> list[Arg]:
    return [GroupArg(node.attrs["group"]), Imm(node.attrs["layer"]), Imm(node.attrs["which"])]


def _add(node: Node, scope: Scope) -> list[Arg]:
    return [*scope.floats(node.operands[1]), *scope.floats(node.output)]


def _sigmoid_mul(node: Node, scope: Scope) -> list[Arg]:
    return [*scope.floats(node.operands[1])]


def _nothing(node: Node, scope: Scope) -> list[Arg]:
    return []


def _clamps(node: Node, scope: Scope) -> list[Arg]:
    return [FloatBits(node.attrs["alpha"]), FloatBits(node.attrs["limit"])]


def _quantize(node: Node, scope: Scope) -> list[Arg]:
    return [scope.pointer(scope.place(node.output)), Imm(node.output.width), Imm(node.attrs["span"])]


STEPS: dict[str, Callable[[Node, Scope], list[Arg]]] = {
    "bias": _bias, "rope": _rope, "kv_write": _kv_write, "add": _add, "quantize": _quantize, "silu_mul": _nothing,
    "gelu_mul": _nothing, "clamped_swiglu": _clamps, "gelu": _nothing, "gelu_erf": _nothing, "scale": _factor,
    "softcap": _cap, "sigmoid_mul": _sigmoid_mul, "head_norm": _tile_norm, "rms_norm": _tile_norm,
    "layer_norm": _tile_norm,
}  # fmt: skip


def _rows(phase: Phase, scope: Scope) -> list[Arg]:
    if phase.source is None:
        raise ValueError(f"{phase.anchor!r} has no source")
    rows, (group,) = phase.source.shape[0], phase.groups
    return [DimArg(rows), Imm(group.columns), *scope.floats(phase.source), *_epilogue(group, scope)]


def _attention(phase: Phase, scope: Scope) -> list[Arg]:
    node = phase.anchor
    q, q_ld = scope.floats(node.operands[0])
    attrs = node.attrs
    sinks: Arg = TableArg(node.operands[7].name) if len(node.operands) > 7 else NO_POINTER
    return [
        DimArg(node.output.shape[0]), q, q_ld, GroupArg(attrs["group"]), Imm(attrs["layer"]), Imm(attrs["heads"]),
        FloatBits(attrs["scale"]), FloatBits(attrs["softcap"]), sinks, *_workspace(node, scope),
        *_epilogue(phase.groups[0], scope),
    ]  # fmt: skip


def _moe(phase: Phase, scope: Scope) -> list[Arg]:
    """native/kernel.h, moe: the rows' activations and the first two weights, then the pairs' and the last one."""
    node, attrs = phase.anchor, phase.anchor.attrs
    x, logits, gate, _, _, *biases = node.operands
    logits_at, ld = scope.floats(logits)
    mixtures = sum(each.op.name == "moe" for each in node.output.program.nodes)
    active = scope.lasting("experts_active", 8 * mixtures)
    inner = int(gate.shape[1].at({}))
    between = scope.temporary("inner", pairs(node), act_row_bytes(inner, attrs["span"]) if attrs["span"] else 4 * inner)
    at, span = scope.pointer(between), Imm(attrs["span"])
    left = _inline("tile.quantize", [at, Imm(inner), span]) if span.value else _inline("tile.store", [at, Imm(inner)])
    gating = Gating(attrs["gating"], attrs["alpha"], attrs["limit"])
    numbers: list[Arg] = [FloatBits(value) for value in gating.attrs.values()]
    rows = scope.place(x)
    if rows.ld not in (0, x.width):
        raise ValueError(f"{node!r}: rows of {x!r} are not adjacent")
    return [
        DimArg(x.shape[0]), logits_at, ld, Imm(gate.shape[0].at({})), Imm(attrs["chosen"]), Imm(int(attrs["over_all"])),
        Imm(MOE_SHARE_ROWS), _workspace(node, scope)[0], Imm(block_rows(node)),
        ArenaArg(active.buffer, active.row_bytes, 8 * attrs["mixture"]),
        scope.pointer(rows), Imm(span_of(x)), Imm(x.width), Imm(inner),
        *_stack(node.operands[2:4], biases[:2], span_of(x), scope),
        Imm(2), *_inline(f"tile.{gating.name}", numbers), *left,
        at, span, Imm(inner), Imm(node.output.width),
        *_stack(node.operands[4:5], biases[2:], span.value, scope),
        *_epilogue(phase.groups[0], scope),
    ]  # fmt: skip


def _stack(weights: Sequence[Value], biases: Sequence[Value], span: int, scope: Scope) -> list[Arg]:
    """{number of weights, each {weight, format, bias}}."""
    args: list[Arg] = [Imm(len(weights))]
    for at, value in enumerate(weights):
        weight = scope.weights[value.name]
        args += [WeightArg(weight.name), _format(weight, span)]
        args.append(TableArg(biases[at].name) if biases else NO_POINTER)
    return args


def _sample(phase: Phase, scope: Scope) -> list[Arg]:
    node = phase.anchor
    logits, ld = scope.floats(node.operands[0])
    return [logits, ld, Imm(node.operands[0].width), *_workspace(node, scope), DimArg(node.output.shape[0])]


def _workspace(node: Node, scope: Scope) -> list[Arg]:
    nbytes = op_of(node).workspace(node, scope.bounds)
    placed = scope.temporary("workspace", Dim(None, 0, 1), nbytes)
    return [scope.pointer(placed), Imm(nbytes)]


BUILDERS: dict[str, Callable[[Phase, Scope], list[Arg]]] = {
    "embedding": _embedding, "linear": _linear, "rows": _rows, "attention": _attention, "moe": _moe,
    "sample": _sample,
}  # fmt: skip
