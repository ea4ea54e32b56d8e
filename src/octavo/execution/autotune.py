"""Constants that differ between processors and change no bit, measured once on a model's own weights.

Measured are, in this order: what a phase costs and what one thread reads and computes (native/tuning.h, Costs), how far
one row's stream is prefetched, up to how many rows every thread does the prologue for itself, and from how many rows a
panel of each format is unpacked, or goes to the matrix unit where there is one. Nodes are `linear` alone, on rows of
zeros: integer products take the same time whatever they multiply. It knows no model and no step; tuned_file.py keeps
what is found.

A value replaces the built-in one only if it was faster in all but one of the rounds, and by MARGIN in the median:
rounds take the candidates in turn, so that a disturbance meets one round, not one candidate. Not measured: pieces of
taken phases, which matter only while another process holds a core; how far a thread fetches ahead of a barrier, which
made no difference (native/kernels/linear.cc).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.execution import tape
from octavo.execution.native import NativeExecutor
from octavo.execution.tape import ALL_THREADS, Image, NodeWork
from octavo.execution.tuned_file import Tuned
from octavo.lowering.arguments import SHARE_ROWS
from octavo.lowering.lowered import PackedWeight
from octavo.ops.quantize import GROUP, act_row_bytes
from octavo.quantization.panels import PANEL, SUPER, kernel_name, layout_named

LEAST_BYTES = 32 << 20  # of packed weights: below, a step is short whatever is chosen
MARGIN = 0.02
ROUNDS = 9
SECONDS = 0.4  # beyond, what is not measured keeps its built-in value
STREAM = 64 << 20  # bytes of a measured pass: twice an L3 of 32 MiB, 1.5 ms of 45 GB/s
PIECE = 4 << 20  # bytes of one weight that several rows are measured on: they compute for longer than memory reads
EMPTY = 200  # nodes that do nothing
AHEAD = {"8": 8, "4": 4, "6": 6, "12": 12, "16": 16}  # candidates, the built-in one first
OWN_ROWS = (2, 4, 8, 16)  # rows of a prologue
ROWS = (8, 12, 16, 24, 32, 64)  # rows of unpacking; below 7 there is one tile and nothing to share
NEVER = 1 << 30  # rows
ALONE = NodeWork("1")  # nothing to do: for one thread
EPS = 1e-6
Program = NDArray[np.int64]
Times = dict[str, list[float]]  # candidate -> seconds of each round


@dataclass(frozen=True)
class Linear:
    """A `linear` to measure: the first `columns` of a weight, with a prologue or with rows that are ready."""

    weight: PackedWeight
    columns: int
    prologue: bool = False


class Tuner:
    """Measures on an executor whose weights are loaded and that runs no step. Leaves its tuning as it found it."""

    def __init__(self, executor: NativeExecutor) -> None:
        self._executor, self._machine = executor, executor.machine
        lowered = executor.layouts.lowered
        self._formats = lowered.multiplied()
        packed = (lowered.weights[name] for name in self._formats)
        self._packed = [each for each in packed if layout_named(each.layout).group]
        self._end = time.perf_counter() + SECONDS

    def measure(self) -> Tuned:
        """Values that are better than the built-in ones, and costs. Empty where the model is small or in floats."""
        begin = time.perf_counter()
        if sum(each.nbytes for each in self._packed) < LEAST_BYTES:
            return Tuned({})
        longest = max(each.k for each in self._packed)
        nbytes = max(ROWS) * (act_row_bytes(longest, SUPER) + 4 * longest) + 4 * longest
        self._room = self._machine.allocate("tuning", nbytes)
        try:
            values, figures = self._costs()
            for name, found in self._choices():
                value, times = found
                figures[name] = times
                if value is not None:
                    values[name] = value
        finally:
            self._machine.release(self._room)
        return Tuned(values, figures, time.perf_counter() - begin)

    # -- what is measured --------------------------------------------------------------------------------------------

    def _costs(self) -> tuple[dict[str, int], dict[str, Mapping[str, float]]]:
        """phase_ns, bytes_us, operations_us: the best of the rounds, as for ceilings."""
        piece = self._piece(self._packed[0])
        idle = [piece] * EMPTY
        together, alone = self._program(idle), self._program(idle, ALONE)
        stream = self._program(self._stream(), ALONE)
        narrow = self._program([piece], ALONE)
        one_thread = self._machine.threads == 1
        phase = max(1e-9, self._best(together, 0) - self._best(alone, 0)) / EMPTY / self._machine.threads
        reading = sum(self._bytes(each) for each in self._stream()) / self._best(stream, 1)
        computing = 2 * 32 * piece.columns * piece.weight.k / self._best(narrow, 32)
        figures = {"phase_ns": phase * 1e9, "bytes_us": reading / 1e6, "operations_us": computing / 1e6}
        values = {name: max(1, round(value)) for name, value in figures.items()}
        if one_thread:
            del values["phase_ns"]
        return values, {"costs": figures}

    def _choices(self) -> Iterable[tuple[str, tuple[int | None, dict[str, float]]]]:
        stream = self._program(self._stream())
        yield "ahead_steps", self._choose("ahead_steps", AHEAD, lambda: self._seconds(stream, 1))
        piece = self._piece(self._packed[0])
        shared = self._program([Linear(piece.weight, piece.columns, prologue=True)])
        first = {own: own + 1 for own in (SHARE_ROWS, *(rows // 2 for rows in OWN_ROWS))}
        yield "share_rows", self._choose_rows("share_rows", shared, (0, SHARE_ROWS), first)
        for layout in dict.fromkeys(self._formats[each.name] for each in self._packed):
            weight = next(each for each in self._packed if self._formats[each.name] == layout)
            built_in = self._machine.tuned(f"unpack.{layout}")
            first = {rows: rows or NEVER for rows in (built_in, 0, *ROWS)}
            program = self._program([self._piece(weight)])
            yield f"unpack.{layout}", self._choose_rows(f"unpack.{layout}", program, (1, 0), first)
            if self._machine.isa == "amx":
                name = f"matrix.{layout}"
                first = {rows: rows or NEVER for rows in (self._machine.tuned(name), 0, *ROWS)}
                yield name, self._choose_rows(name, program, (1, 0), first)

    # -- how it is chosen --------------------------------------------------------------------------------------------

    def _choose(
        self, name: str, candidates: Mapping[str, int], seconds: Callable[[], float]
    ) -> tuple[int | None, dict[str, float]]:
        """The value to set, None for the built-in one (the first), and the median relative times."""
        built_in = self._machine.tuned(name)
        times: Times = {each: [] for each in candidates}
        try:
            for _ in range(ROUNDS):
                if time.perf_counter() > self._end:
                    break
                for each, value in candidates.items():
                    self._machine.tune(name, value)
                    times[each].append(seconds())
        finally:
            self._machine.tune(name, built_in)
        best, relative = better(times)
        return (None if best is None else candidates[best]), relative

    def _choose_rows(
        self, name: str, program: Program, ways: tuple[int, int], first: Mapping[int, int]
    ) -> tuple[int | None, dict[str, float]]:
        """The same for a number of rows from which a node goes another way.

        ways: values of `name` that make all rows go the way of many, and that of few. first: candidate, the built-in
        one first -> the least rows that are many."""
        many, few = ways
        built_in = self._machine.tuned(name)
        rows_of = OWN_ROWS if name == "share_rows" else ROWS
        times: Times = {str(each): [] for each in first}
        try:
            for _ in range(ROUNDS):
                if time.perf_counter() > self._end:
                    break
                took: dict[tuple[int, bool], float] = {}
                for rows in rows_of:
                    for way in (many, few):
                        self._machine.tune(name, way)
                        took[rows, way == many] = self._seconds(program, rows)
                for each, least in first.items():
                    times[str(each)].append(sum(took[rows, rows >= least] / rows for rows in rows_of))
        finally:
            self._machine.tune(name, built_in)
        best, relative = better(times)
        return (None if best is None else int(best)), relative

    # -- running -----------------------------------------------------------------------------------------------------

    def _best(self, program: Program, rows: int) -> float:
        return min(self._seconds(program, rows) for _ in range(4))

    def _seconds(self, program: Program, rows: int) -> float:
        begin = time.perf_counter()
        self._machine.run_nodes(program, rows)
        return time.perf_counter() - begin

    def _stream(self) -> list[Linear]:
        """Pieces of together STREAM bytes at least, or of all weights: about as long as phases are."""
        found: list[Linear] = []
        for weight in self._packed:
            if sum(self._bytes(each) for each in found) >= STREAM:
                break
            found.append(self._piece(weight))
        return found

    def _piece(self, weight: PackedWeight) -> Linear:
        panels = -(-weight.n // PANEL)
        return Linear(weight, PANEL * max(1, min(panels, PIECE * panels // weight.matrix_bytes)))

    def _bytes(self, linear: Linear) -> int:
        return linear.weight.matrix_bytes * linear.columns // linear.weight.n

    def _program(self, linears: Sequence[Linear], work: NodeWork = ALL_THREADS) -> Program:
        image = Image()
        for linear in linears:
            image.add("linear", self._args(image, linear), work=work)
        return tape.node_tape(self._machine.load(image.words(), image.names))

    def _args(self, image: Image, linear: Linear) -> list[tape.Word]:
        """native/kernel.h, linear: one group of units of a panel, without an epilogue; its tiles go nowhere."""
        weight, k = linear.weight, linear.weight.k
        name = self._formats[weight.name]
        span = SUPER if name == kernel_name(weight.layout, SUPER) else GROUP
        floats = max(ROWS) * act_row_bytes(k, span)
        acts = tape.buffer(self._room, 0, floats)
        number = tape.immediate
        src = [number(0), number(0)]
        prologue = [number(0)]
        if linear.prologue:
            src = [tape.buffer(self._room, floats, max(ROWS) * 4 * k), number(k)]
            norm = tape.buffer(self._room, floats, 4 * k)
            prologue = [number(1), image.entry("row.rms_norm"), number(2), norm, tape.float_bits(EPS)]
        place = self._executor.layouts.places[weight.name]
        data = tape.buffer(self._executor.region_index("weights"), place.offset, place.nbytes)
        units = -(-linear.columns // PANEL)
        group = [number(PANEL), number(units), number(linear.columns), number(1), data]
        head = [tape.dimension(1, "T"), number(k), *src, acts, number(span), number(SHARE_ROWS), number(0)]
        return [*head, *prologue, number(1), *group, image.entry(f"format.{name}"), number(0)]


def better(times: Times) -> tuple[str | None, dict[str, float]]:
    """The candidate that beats the first one by MARGIN in the median, and in all rounds but one; and all medians of
    times relative to the first one's in the same round."""
    first, *others = times
    rounds = len(times[first])
    if rounds < 3:
        return None, {}
    ratios = {each: [mine / base for mine, base in zip(times[each], times[first], strict=True)] for each in others}
    medians = {each: statistics.median(all_of) for each, all_of in ratios.items()}
    sure = [each for each in others if sum(ratio < 1 for ratio in ratios[each]) >= rounds - 1]
    best = min(sure, key=lambda each: medians[each], default=None)
    if best is not None and medians[best] > 1 - MARGIN:
        best = None
    return best, {first: 1.0} | {each: round(median, 4) for each, median in medians.items()}
