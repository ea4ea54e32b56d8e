"""Phases: {row-wise prologue, one anchor, epilogue}, formed in one pass in program order.

A row op joins the epilogue of the last phase if its data comes from there and its locality fits the column unit;
otherwise it waits for the linears that alone use it and becomes their prologue, or begins a phase of whole rows without
an anchor (a norm whose result is added to the residual stream, a norm over all heads). Linears on one input share a
phase: each is a column group (q, k, v), or two of them are one (gate and up, joined by silu_mul). What cannot be placed
is refused. It knows localities and operands, no memory and no argument list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import lcm

from octavo.errors import UnsupportedModel
from octavo.ops.op import Locality, op_of
from octavo.program.graph import Node, Program, Value

PANEL = 32  # columns of a weight panel
IN_PROLOGUE = ("gather_rows", "rms_norm", "layer_norm", "quantize")  # in this order
JOINS = ("silu_mul", "gelu_mul", "clamped_swiglu")  # make one group of two
IN_ROWS = ("rms_norm", "layer_norm")  # need a whole row: in a phase of rows
IN_EPILOGUE = (
    "bias", "scale", "softcap", "gelu", "gelu_erf", "head_norm", "rope", "kv_write", "sigmoid_mul", "add", "quantize",
    *IN_ROWS,
)  # fmt: skip
ENDS = ("kv_write", "quantize")  # leave the tile as it was
ROWS = "rows"  # the kernel of a phase without an anchor
NO_EPILOGUE = ("embedding", "sample")


@dataclass(eq=False)
class ColumnGroup:
    """Adjacent output columns that go through one epilogue: of one anchor, of gate and up together, or a whole row."""

    anchors: list[Node]  # none in a phase of rows
    unit: int
    columns: int  # per weight
    tip: Value  # what the tile holds
    steps: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class Phase:
    """One kernel call to be. `source` is what the prologue starts from; None where the anchor has no prologue.

    In a phase of rows `anchor` is the first row op, and `source` its data.
    """

    anchor: Node
    region: str
    prologue: list[Node]
    source: Value | None
    groups: list[ColumnGroup]

    @property
    def kernel(self) -> str:
        """The name of the native kernel."""
        return self.anchor.op.name if self.anchor.op.kind == "anchor" else ROWS

    @property
    def nodes(self) -> list[Node]:
        """Everything that the phase computes, operands before uses."""
        return self.prologue + [node for group in self.groups for node in group.anchors + group.steps]


def form_phases(program: Program) -> list[Phase]:
    """The phases of a Program in order. Raises UnsupportedModel for a node that none can take."""
    return _Former(program).form()


def _same_input(phase: Phase, node: Node) -> bool:
    return phase.anchor.operands[0] is node.operands[0]


class _Former:
    """The pass: `home` tells which phase and group made a value, `pending` holds row ops that wait for a linear."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.consumers = program.consumers()
        self.phases: list[Phase] = []
        self.home: dict[Value, tuple[int, ColumnGroup]] = {}
        self.pending: dict[Value, Node] = {}
        self.used: set[Node] = set()

    def form(self) -> list[Phase]:
        for node in self.program.nodes:
            if node.op.kind == "anchor":
                self._anchor(node)
            elif self._pair(node) or self._epilogue(node):
                continue
            elif self._feeds_linears(node) or not self._rows(node):
                self.pending[node.output] = node
        left = [node for node in self.pending.values() if node not in self.used]
        if left:
            raise UnsupportedModel(f"{self.program.name}: no phase can take {left[0]!r}")
        return self.phases

    def _anchor(self, node: Node) -> None:
        op = node.op.name
        if op == "linear":
            last = self.phases[-1] if self.phases else None
            if last and last.region == node.region and last.anchor.op.name == "linear" and _same_input(last, node):
                self._group(last, node, PANEL)
                return
            chain, source = self._chain(node)
            phase = Phase(node, node.region, chain, source, [])
        else:
            waiting = [value for value in node.operands if value in self.pending]
            if waiting:
                raise UnsupportedModel(f"{node!r} cannot take {waiting[0]!r} of a row op")
            phase = Phase(node, node.region, [], None, [])
        self.phases.append(phase)
        unit = PANEL
        if op == "attention":  # the heads of one key head
            unit = node.attrs["heads"] // node.attrs["kv_heads"] * node.attrs["head_dim"]
        self._group(phase, node, unit)

    def _group(self, phase: Phase, node: Node, unit: int) -> None:
        width = node.output.width
        group = ColumnGroup([node], unit, width, node.output)
        phase.groups.append(group)
        self.home[node.output] = (len(self.phases) - 1, group)

    def _chain(self, node: Node) -> tuple[list[Node], Value]:
        """The waiting row ops behind a linear's input, first to last, and the value that they start from."""
        chain: list[Node] = []
        value = node.operands[0]
        while value in self.pending:
            chain.insert(0, self.pending[value])
            value = self.pending[value].operands[0]
        names = [each.op.name for each in chain]
        if any(name not in IN_PROLOGUE for name in names) or names != sorted(names, key=IN_PROLOGUE.index):
            raise UnsupportedModel(f"{node!r} has no prologue for {', '.join(names)}")
        if "quantize" not in names and value.dtype == "acts":
            return [], value
        self.used.update(chain)
        return chain, value

    def _feeds_linears(self, node: Node) -> bool:
        """Whether linears of its region alone use the node, as their rows, so that it may be their prologue."""
        users = self.consumers.get(node.output, [])
        if node.op.name not in IN_PROLOGUE or node.output in self.program.outputs.values() or not users:
            return False
        return all(
            user.region == node.region
            and user.operands[0] is node.output
            and (user.op.name == "linear" or self._feeds_linears(user))
            for user in users
        )

    def _rows(self, node: Node) -> bool:
        """A phase of whole rows that begins with this op, on a value that lies in memory."""
        source = node.operands[0]
        if node.op.name not in IN_EPILOGUE or source in self.pending or source.dtype != "f32":
            return False
        group = ColumnGroup([], source.width, source.width, source)
        self.phases.append(Phase(node, node.region, [], source, [group]))
        if self._take(node, len(self.phases) - 1, group):
            return True
        self.phases.pop()
        return False

    def _pair(self, node: Node) -> bool:
        """silu_mul(gate, up): two fresh column groups of the last phase become one of two weights."""
        if node.op.name not in JOINS or not self.phases:
            return False
        found = [self.home.get(value) for value in node.operands]
        if None in found or any(home[0] != len(self.phases) - 1 for home in found if home):
            return False
        gate, up = (home[1] for home in found if home)
        phase = self.phases[-1]
        fresh = all(not group.steps and len(group.anchors) == 1 for group in (gate, up))
        alone = all(self.consumers[value] == [node] for value in node.operands)
        if gate is up or not fresh or not alone or gate.columns != up.columns or phase.anchor.op.name != "linear":
            return False
        merged = ColumnGroup(gate.anchors + up.anchors, PANEL, gate.columns, node.output, [node])
        phase.groups = [merged if group is gate else group for group in phase.groups if group is not up]
        self.home[node.output] = (len(self.phases) - 1, merged)
        return True

    def _epilogue(self, node: Node) -> bool:
        if node.op.name not in IN_EPILOGUE or not self.phases:
            return False
        data = node.operands[0]
        at, group = self.home.get(data, (-1, None))
        phase = self.phases[-1]
        if group is None or at != len(self.phases) - 1 or group.tip is not data or phase.region != node.region:
            return False
        return phase.anchor.op.name not in NO_EPILOGUE and self._take(node, at, group)

    def _take(self, node: Node, at: int, group: ColumnGroup) -> bool:
        """The node as the next step of a group of phase `at`, if it fits and what else it reads is there."""
        if not self._fits(node, self.phases[at], group):
            return False
        for other in node.operands[1:]:  # must lie in memory before the phase runs
            if other.kind == "node" and (other in self.pending or self.home[other][0] >= at):
                return False
        group.steps.append(node)
        self.home[node.output] = (at, group)
        if node.op.name not in ENDS:
            group.tip = node.output
        return True

    def _fits(self, node: Node, phase: Phase, group: ColumnGroup) -> bool:
        """Whether the op's locality is at most the column unit; heads and spans widen the unit of a linear."""
        locality = op_of(node).locality
        span = node.attrs["span"] if locality == Locality.GROUP else 1
        if phase.kernel == ROWS:
            return bool(group.columns % span == 0)
        if locality == Locality.GROUP:
            if group.columns % span or (phase.anchor.op.name != "linear" and group.unit % span):
                return False
            group.unit = lcm(group.unit, span)
            return True
        if locality == Locality.HEAD:
            head_dim = node.attrs["head_dim"]
            if len(group.anchors) > 1 or (phase.anchor.op.name != "linear" and group.unit % head_dim):
                return False
            group.unit = lcm(group.unit, head_dim)
            return True
        return locality == Locality.ELEMENT
