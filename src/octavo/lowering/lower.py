"""lower(programs, facts): the only way to executable Programs: numerics, phases, layouts, one arena.

Every lowered node keeps the sub-Program that it replaced. Which memory a node gets is decided from the bounds, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.lowering.arena import plan_arena
from octavo.lowering.arguments import Placed, Scope, arguments, padded_columns
from octavo.lowering.layouts import group_layout, pack_plan, weight_use
from octavo.lowering.lowered import ArenaArg, Buffer, Lowered, LoweredNode, LoweredProgram, PackedWeight
from octavo.lowering.numerics import quantize_activations, widened_weights
from octavo.lowering.phases import Phase, form_phases
from octavo.ops.op import op_of
from octavo.ops.quantize import act_row_bytes, span_of
from octavo.ops.sample import sample
from octavo.program.check import check
from octavo.program.graph import Node, Program, Value
from octavo.program.symbols import Dim, R, Values
from octavo.program.trace import states_of, tables_of

READS = {"attention": 1, "sample": 1, "moe": 2}  # anchor -> how many of its first operands lie in the arena
HEAD_ROWS = 64  # rows of one head chunk (native/tape.h kHeadRows): bounds the logits


@dataclass(frozen=True)
class LoweringFacts:
    """What lowering must know besides the Programs.

    formats: the weights' formats by name. max_rows: T, token rows of a step; max_seqs: S; max_model_len: positions.
    threads: of the team, sizes the sampler's workspace. sums: super-blocks are summed in integers (numerics.py).
    """

    formats: Mapping[str, str]
    max_rows: int
    max_seqs: int
    max_model_len: int
    kv_dtype: str = "bf16"
    threads: int = 16
    sums: bool = False

    @property
    def bounds(self) -> Values:
        head = min(HEAD_ROWS, max(self.max_rows, self.max_seqs))
        return {"T": self.max_rows, "S": self.max_seqs, "R": head, "L": self.max_model_len, "threads": self.threads}


def sampler(vocab: int) -> Program:
    """The Program that samples a chunk of logit rows."""
    program = Program("sample")
    with program.within("sample"):
        program.output("token", sample(program.input("logits", (R, vocab), "f32")))
    return program


def lower(programs: Mapping[str, Program], facts: LoweringFacts) -> Lowered:
    """Traced Programs in the order in which a step runs them (`body`, `head`; `sample` is added after `head`).

    An input that has the name of an earlier Program's output is that output, in the arena until the step ends. Raises
    UnsupportedModel where a phase cannot take a node or a format is not built.
    """
    chosen = {name: quantize_activations(program, facts.formats, facts.sums) for name, program in programs.items()}
    if "head" in chosen and "logits" in chosen["head"].outputs:
        chosen["sample"] = sampler(chosen["head"].outputs["logits"].width)
    use = weight_use(chosen.values())
    widened = widened_weights(chosen.values(), facts.formats)
    weights = {
        name: pack_plan(name, facts.formats[name], shape, widen=name in widened) for name, shape in use.packed.items()
    }
    phases = []
    for name, program in chosen.items():
        check(program)
        phases += [(name, phase) for phase in form_phases(program)]
    places = _Places(chosen, phases, facts.bounds)
    lowered: dict[str, list[LoweredNode]] = {name: [] for name in chosen}
    for number, (name, phase) in enumerate(phases):
        lowered[name].append(_node(number, name, phase, places, weights))
    return Lowered(
        {name: LoweredProgram(name, tuple(lowered[name]), chosen[name]) for name in chosen},
        plan_arena(places.buffers.values(), facts.bounds),
        weights,
        use.vectors,
        tables_of(chosen),
        tuple(group_layout(group, facts.kv_dtype) for group in states_of(chosen)),
    )


def _node(number: int, name: str, phase: Phase, places: _Places, weights: Mapping[str, PackedWeight]) -> LoweredNode:
    args = arguments(phase, places.scope(number, name, weights))
    origin = _origin(name, phase, places)
    workspace = next((b.row_bytes for b in places.buffers.values() if b.name == f"{name}.{number}.workspace"), 0)
    buffers = {arg.buffer for arg in args if isinstance(arg, ArenaArg)}
    reads = {value.name: places.names[value] for value in origin.inputs.values() if value in places.names}
    writes = {value.name: places.names[value] for value in origin.outputs.values() if value in places.names}
    if not {*reads.values(), *writes.values()} <= buffers:
        raise AssertionError(f"{phase.anchor!r}: {reads} and {writes} are not all among the arguments {buffers}")
    scratch = op_of(phase.anchor).scratch(phase.anchor, places.bounds)
    return LoweredNode(phase.kernel, args, phase.region, origin, reads, writes, workspace, scratch)


def _origin(name: str, phase: Phase, places: _Places) -> Program:
    """The nodes of a phase as a Program of their own: inputs are what it reads, outputs what it leaves in memory."""
    nodes = phase.nodes
    made = dict.fromkeys(value for node in nodes for value in node.outputs)  # in order: reports name the first
    read = {value: None for node in nodes for value in node.operands if value not in made}
    left = {value for value in made if value in places.stored or value in places.names or value.dtype == "state"}
    return Program(
        f"{name}: {phase.kernel}",
        inputs={value.name: value for value in read if value.kind in ("input", "node")},
        outputs={value.name: value for value in made if value in left},
        nodes=nodes,
        weights={value.name: value for value in read if value.kind == "weight"},
        table_values={value.name: value for value in read if value.kind == "table"},
        states=list(phase.anchor.output.program.states),
        regions=[phase.region],
    )


class _Places:
    """Which values lie in the arena, in which buffers, from which phase to which."""

    def __init__(self, programs: Mapping[str, Program], phases: list[tuple[str, Phase]], bounds: Values) -> None:
        self.bounds = bounds
        self.phases = phases
        self.buffers: dict[str, Buffer] = {}
        self.names: dict[Value, str] = {}
        self.made: dict[Value, int] = {}
        self.last: dict[Value, int] = {}
        self.stored: set[Value] = set()
        linked = self._links(programs)
        for number, (_, phase) in enumerate(phases):
            for value in self._read(phase):
                known = linked.get(value, value)
                self.last[known] = number
                self.stored.add(known)
            for node in phase.nodes:
                self.made.update((value, number) for value in node.outputs)
        for program in programs.values():  # outputs stay until the step ends: the head runs in several chunks
            for value in program.outputs.values():
                self.stored.add(value)
                self.last[value] = len(phases) - 1
        for name, phase in phases:
            self._place(name, phase)
        self.names.update((value, self.names[source]) for value, source in linked.items())

    def _links(self, programs: Mapping[str, Program]) -> dict[Value, Value]:
        """Input of a Program -> the output of an earlier one that has its name."""
        known: dict[str, Value] = {}
        links: dict[Value, Value] = {}
        for program in programs.values():
            links.update((value, known[name]) for name, value in program.inputs.items() if name in known)
            known.update(program.outputs)
        return links

    def _read(self, phase: Phase) -> list[Value]:
        """Values that the phase reads from the arena."""
        found = [] if phase.source is None else [phase.source]
        found += phase.anchor.operands[: READS.get(phase.anchor.op.name, 0)]
        steps = (node for group in phase.groups for node in group.steps if node.op.name in ("add", "sigmoid_mul"))
        return found + [node.operands[1] for node in steps]

    def _place(self, name: str, phase: Phase) -> None:
        """Buffers for the values of a phase that others read, and for quantized rows."""
        for group in phase.groups:
            width = padded_columns(group)
            for node in group.anchors + group.steps:
                value = node.output
                if value.dtype == "f32" and (value in self.stored or node.op.name == "add"):  # tile.add always stores
                    self._new(name, value, 4 * width, width, self._taken_over(node))
                elif value.dtype == "acts":
                    self._new(name, value, act_row_bytes(value.width, span_of(value)), 0, None)

    def _taken_over(self, node: Node) -> str | None:
        """The buffer of a residual that ends with this addition: each element is read and written by one thread."""
        if node.op.name != "add":
            return None
        residual, number = node.operands[1], self.made[node.output]
        source = self.phases[number][1].source
        if residual not in self.names or self.last[residual] > number or source is residual:
            return None
        return self.names[residual] if self.buffers[self.names[residual]].ld == node.output.width else None

    def _new(self, program: str, value: Value, row_bytes: int, ld: int, inside: str | None) -> None:
        name = f"{program}.{value.name}"
        number = self.made[value]
        self.names[value] = name
        last = self.last.get(value, number)
        self.buffers[name] = Buffer(name, value.shape[0], row_bytes, ld, number, last, inside)

    def scope(self, number: int, program: str, weights: Mapping[str, PackedWeight]) -> Scope:
        """What the arguments of phase `number` ask for."""

        def place(value: Value) -> Placed:
            buffer = self.buffers[self.names[value]]
            return Placed(buffer.name, buffer.rows, buffer.row_bytes, buffer.ld)

        def temporary(kind: str, rows: Dim, row_bytes: int) -> Placed:
            name = f"{program}.{number}.{kind}"
            self.buffers[name] = Buffer(name, rows, row_bytes, 0, number, number)
            return Placed(name, rows, row_bytes, 0)

        def lasting(kind: str, row_bytes: int) -> Placed:
            name, end = f"{program}.{kind}", len(self.phases) - 1
            self.buffers[name] = Buffer(name, Dim(None, 0, 1), row_bytes, 0, 0, end)
            return Placed(name, Dim(None, 0, 1), row_bytes, 0)

        return Scope(place, temporary, lasting, self.stored, self.bounds, weights)
