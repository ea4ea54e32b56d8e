"""The native executor: a lowered model in memory, run by one native call a step.

It owns the regions (weights, tables, arena, KV pool, slot table, flat step, scratch), turns lowered arguments into
addresses, and loads the Programs. It knows neither which tokens run next nor what a Step is: the runner writes the flat
memory, `execute` runs what lies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.execution import tape
from octavo.execution.layout import FlatLayout, slot_layout, step_layout
from octavo.execution.node_work import work_of
from octavo.execution.packed_file import PackedFile
from octavo.execution.step import PAGE_TOKENS, ExecutionFacts, PagedGroup
from octavo.execution.weights import Place, Progress, aligned_offsets, float_table, load_weights, place_weights
from octavo.kernels import library
from octavo.lowering.lowered import (
    ArenaArg,
    Arg,
    DimArg,
    FloatBits,
    Fn,
    GroupArg,
    Imm,
    Lowered,
    LoweredProgram,
    StepField,
    TableArg,
    WeightArg,
)
from octavo.models.source import WeightSource
from octavo.program.symbols import Dim
from octavo.quantization.kv import kv_layout

SCRATCH_MATRIX = 146 * 1024  # what the matrix unit works on (native/kernels/matrix_super.h, SuperRoom)
SCRATCH_TILE = 512 * 1024  # output tile of a thread: 1,024 rows x 128 columns of float, half of an L2


@dataclass(frozen=True)
class Bounds:
    """What sizes every region. pages: of 16 tokens, the null page included."""

    max_rows: int
    max_seqs: int
    max_model_len: int
    pages: int
    threads: int


@dataclass(frozen=True)
class Regions:
    """Bytes of every region, known before anything is allocated: the plan's lines."""

    weights: int
    tables: int
    arena: int
    kv: int
    slots: int
    step: int
    scratch: int


@dataclass(frozen=True)
class Layouts:
    """Where everything lies: made from a lowered model and its bounds, without touching memory."""

    lowered: Lowered
    bounds: Bounds
    places: Mapping[str, Place]
    tables: Mapping[str, int]  # name -> offset in the tables' region
    step: FlatLayout
    slots: FlatLayout
    page_bytes: int
    regions: Regions


def lay_out(lowered: Lowered, sources: Mapping[str, WeightSource], bounds: Bounds, vocab: int) -> Layouts:
    """Sizes and offsets of everything."""
    places, weight_bytes = place_weights(sources, {name: weight.layout for name, weight in lowered.weights.items()})
    sizes = [(name, 4 * count) for name, count in lowered.vectors.items()]
    tables, table_bytes = aligned_offsets(sizes + [(name, table.nbytes) for name, table in lowered.tables.items()])
    groups = max(1, len(lowered.groups))
    step = step_layout(rows=bounds.max_rows, seqs=bounds.max_seqs, groups=groups, page_ops=groups * page_ops(bounds))
    pages = -(-bounds.max_model_len // PAGE_TOKENS)
    slots = slot_layout(slots=bounds.max_seqs, ids=bounds.max_model_len, groups=groups, pages=pages, vocab=vocab)
    page_bytes = max((group.page_bytes for group in lowered.groups), default=0)
    scratch = thread_scratch(lowered) * bounds.threads
    regions = Regions(
        weight_bytes, table_bytes, lowered.arena.nbytes, bounds.pages * page_bytes, slots.nbytes, step.nbytes, scratch
    )
    return Layouts(lowered, bounds, places, tables, step, slots, page_bytes, regions)


def page_ops(bounds: Bounds) -> int:
    """Pages of a group that a step may zero or copy at most: those of its rows, and at either end of each sequence one
    block of 4 pages more (engine/cache_groups.py page_operations)."""
    return -(-bounds.max_rows // PAGE_TOKENS) + 8 * bounds.max_seqs


def thread_scratch(lowered: Lowered) -> int:
    """Bytes of scratch of one thread: 16 rows of activations, an unpacked panel, a tile."""
    longest = max((weight.k for weight in lowered.weights.values()), default=0)
    acts = (
        16 * 4 * longest
    )  # 16 rows per thread (SHARE_ROWS); a quantized row takes half of a float row, with rests 3/4
    panel = max(2 * 32 * longest + 16 * longest, SCRATCH_MATRIX)  # two panels of bytes, scales and minima
    own = max((node.scratch for node in lowered.nodes()), default=0)
    return -(-(max(acts, own) + panel + SCRATCH_TILE) // 4096) * 4096


class NativeExecutor:
    """A model in memory, ready to run steps."""

    def __init__(self, layouts: Layouts, vocab: int, fingerprint: str, *, isa: str = "auto") -> None:
        bounds, lowered = layouts.bounds, layouts.lowered
        self.layouts = layouts
        self.machine = library.new_machine(isa=isa, threads=bounds.threads, scratch_bytes=thread_scratch(lowered))
        sizes = layouts.regions
        self._regions = {
            kind: self.machine.allocate(kind, getattr(sizes, kind))
            for kind in ("weights", "tables", "arena", "kv", "slots", "step")
        }
        self.step = layouts.step.views(self._memory("step", sizes.step))
        self.slots = layouts.slots.views(self._memory("slots", sizes.slots))
        self._bind(layouts)
        groups = tuple(
            PagedGroup(each.group.name, each.group.index, each.group.window, each.group.kind == "whole")
            for each in lowered.groups
        )
        self.facts = ExecutionFacts(
            groups, bounds.pages, bounds.max_rows, bounds.max_seqs, bounds.max_model_len, vocab, fingerprint
        )
        self.programs = {name: self._load(program) for name, program in lowered.programs.items()}
        if "sample" in self.programs:
            self._tape = tape.decode_tape(self.programs["body"], self.programs["head"], self.programs["sample"])
        else:
            self._tape = tape.vector_tape(self.programs["body"], self.programs.get("head"))

    def load(
        self,
        checkpoint: Checkpoint,
        sources: Mapping[str, WeightSource],
        progress: Progress | None = None,
        packed: PackedFile | None = None,
    ) -> bool:
        """Fill weights and tables from the checkpoint; True if the weights came from the packed file."""
        sizes, lowered = self.layouts.regions, self.layouts.lowered
        tables = self._memory("tables", sizes.tables)
        values = {name: float_table(checkpoint, sources[name]) for name in lowered.vectors}
        values |= {name: table.make().reshape(-1) for name, table in lowered.tables.items()}
        for name, value in values.items():
            at = self.layouts.tables[name]
            tables[at : at + value.nbytes] = value.astype(np.float32, copy=False).view(np.uint8)
        if packed is None or not packed.use(self._map_weights):
            region = self._memory("weights", sizes.weights)
            load_weights(
                checkpoint, self.layouts.places, region, threads=self.layouts.bounds.threads, progress=progress
            )
            return False
        return True

    def _map_weights(self, descriptor: int, nbytes: int) -> None:
        self.machine.map_file(self._regions["weights"], descriptor, nbytes)

    def execute(self) -> bool:
        """Run the step that lies in the flat memory; False when it was stopped and committed nothing."""
        return bool(self.machine.run(self._tape) == 0)

    def tune(self, values: Mapping[str, int]) -> bool:
        """Set values of native/tuning.h, which change no bit; False, and none is set, if one of them cannot be."""
        before: dict[str, int] = {}
        try:
            for name, value in values.items():
                before[name] = self.machine.tuned(name)
                self.machine.tune(name, value)
        except (ValueError, TypeError):  # TypeError: more than 64 bits
            for name, value in before.items():
                self.machine.tune(name, value)
            return False
        return True

    def watch(self, control: int) -> None:
        """Use the control page at this address (engine/flight_record.py): arrived, seen, stop, progress, node."""
        self.machine.bind_control(control)

    def watch_masks(self, lines: int, slots: int, stride: int) -> None:
        """Take masks from a table (grammar/table.py): address of its lines, their number, bytes of a mask. 0: none."""
        self.machine.bind_masks(lines, slots, stride)

    @property
    def isa(self) -> str:
        return str(self.machine.isa)

    def memory(self) -> dict[str, int]:
        """Bytes really taken, by kind: the allocator's counters."""
        return dict(self.machine.memory())

    def region_index(self, kind: str) -> int:
        """The machine's number of a region: for Programs of one's own."""
        return int(self._regions[kind])

    def arena_view(self, buffer: str, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes of an arena buffer: verify, profile and tests look here."""
        offset = self.layouts.lowered.arena.offsets[buffer]
        return self._memory("arena", self.layouts.regions.arena)[offset : offset + nbytes]

    def output(self, program: str, name: str) -> npt.NDArray[np.float32]:
        """A declared output of a Program: rows up to the bound, of its width; valid until the next step."""
        lowered = self.layouts.lowered
        value = lowered.programs[program].program.outputs[name]
        buffer = lowered.arena.buffers[f"{program}.{value.name}"]
        room = self.arena_view(buffer.name, lowered.arena.sizes[buffer.name]).view(np.float32)
        return room[: room.size // buffer.ld * buffer.ld].reshape(-1, buffer.ld)[:, : value.width]

    def region(self, kind: str) -> npt.NDArray[np.uint8]:
        """All bytes of a region, for verify and tests."""
        return self._memory(kind, getattr(self.layouts.regions, kind))

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _memory(self, kind: str, nbytes: int) -> npt.NDArray[np.uint8]:
        return library.region_bytes(self.machine, self._regions[kind], nbytes)

    def _bind(self, layouts: Layouts) -> None:
        machine, step, slots = self.machine, layouts.step, layouts.slots
        machine.bind_arena(self._regions["arena"])
        machine.bind_step(
            self._regions["step"], list(step.offsets), step.bounds["T"], step.bounds["S"], step.bounds["R"],
            step.bounds["G"], step.bounds["Z"],
        )  # fmt: skip
        machine.bind_slots(
            self._regions["slots"], list(slots.offsets), slots.bounds["N"], slots.bounds["L"], slots.bounds["G"],
            slots.bounds["P"], slots.bounds["V32"],
        )  # fmt: skip
        for each in layouts.lowered.groups:
            group = each.group
            machine.add_group(
                self._regions["kv"], layouts.bounds.pages, layouts.page_bytes, 0, group.layers, group.kv_heads,
                group.head_dim, kv_layout(each.layout).number, group.window,
            )  # fmt: skip

    def _load(self, program: LoweredProgram) -> int:
        image = tape.Image()
        for number, node in enumerate(program.nodes):
            args, work = [self.word(image, arg) for arg in node.args], work_of(node, self.layouts.lowered)
            image.add(node.name, args, region=number, work=work)
        return int(self.machine.load(image.words(), image.names))

    def word(self, image: tape.Image, arg: Arg) -> tape.Word:
        """A lowered argument as the five words of the image."""
        made: tape.Word = WORDS[type(arg)](self, image, arg)
        return made

    def _weight(self, _: tape.Image, arg: WeightArg) -> tape.Word:
        place = self.layouts.places[arg.name]
        return tape.buffer(self._regions["weights"], place.offset, place.nbytes)

    def _table(self, _: tape.Image, arg: TableArg) -> tape.Word:
        lowered = self.layouts.lowered
        nbytes = 4 * lowered.vectors[arg.name] if arg.name in lowered.vectors else lowered.tables[arg.name].nbytes
        return tape.buffer(self._regions["tables"], self.layouts.tables[arg.name], nbytes)

    def _arena(self, _: tape.Image, arg: ArenaArg) -> tape.Word:
        at = self.layouts.lowered.arena.offsets[arg.buffer] + arg.offset
        return tape.buffer(self._regions["arena"], at, arg.nbytes - arg.offset)

    def _step_field(self, _: tape.Image, arg: StepField) -> tape.Word:
        layout = self.layouts.step
        index = [field.name for field in layout.fields].index(arg.name)
        return tape.buffer(self._regions["step"], layout.offsets[index], self.step[arg.name].nbytes)


def experts_active(executor: NativeExecutor) -> list[int]:
    """Of each mixture of experts, in order: how many experts had rows in the last step."""
    sizes = executor.layouts.lowered.arena.sizes
    found = []
    for program in executor.layouts.lowered.programs.values():
        count = sum(node.op.name == "moe" for node in program.program.nodes)
        buffer = f"{program.name}.experts_active"
        if buffer in sizes:
            found += executor.arena_view(buffer, 8 * count).view(np.int64).tolist()
    return found


def _dimension(_: NativeExecutor, __: tape.Image, arg: DimArg) -> tape.Word:
    size: Dim = arg.dim
    scale = 0 if size.symbol is None else size.scale
    return tape.dimension(scale, size.symbol or "1", size.offset, size.divisor)


WORDS: dict[type, Any] = {
    Imm: lambda _, __, arg: tape.immediate(arg.value),
    FloatBits: lambda _, __, arg: tape.float_bits(arg.value),
    Fn: lambda _, image, arg: image.entry(arg.name),
    GroupArg: lambda _, __, arg: tape.immediate(arg.index),
    DimArg: _dimension,
    WeightArg: NativeExecutor._weight,
    TableArg: NativeExecutor._table,
    ArenaArg: NativeExecutor._arena,
    StepField: NativeExecutor._step_field,
}
