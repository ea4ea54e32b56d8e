"""Every weight format alone: one linear of 1, 32 and 512 rows, and its share of what the machine could do at most.

    python bench/formats.py [--formats q4_k,q5_k] [--threads 2] [--rounds 5] [--isa auto]

The ceiling of a linear is the longer of two times: its packed bytes at the read bandwidth of the same threads, and its
operations at their int8 rate times the share of dots that its tiles have (ceiling.py; float formats: fma at the rate
of float32, half of that of bf16 dots). Formats take turns, the best of all rounds counts. Weights are random bytes, of
float formats random numbers. `--cpu-time` counts one thread's processor time: for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ceiling import SLOTS

from octavo.execution.ceilings import Ceilings, measure
from octavo.execution.layout import HEADER, step_layout
from octavo.execution.tape import Image, Word, buffer, dimension, immediate, node_tape
from octavo.kernels import library
from octavo.ops.quantize import GROUP, act_row_bytes
from octavo.quantization.format import FORMATS, format_named
from octavo.quantization.panels import PANEL, kernel_name, layout_for, pack, packed_bytes

K = 2048
ROWS = (1, 32, 512)
# Bytes of packed weights: more than the caches hold where they are read once; less where each is used 512 times.
BYTES = {1: 96 << 20, 32: 48 << 20, 512: 12 << 20}
SCRATCH = 4 << 20
REFERENCE = "q4_k"


@dataclass(frozen=True)
class Timing:
    """One linear: seconds, and those of its ceiling."""

    seconds: float
    ceiling: float

    @property
    def share(self) -> float:
        return self.ceiling / self.seconds


class Bench:
    """A machine with room for the weights of one format at a time."""

    def __init__(
        self, isa: str, threads: int, clock: Callable[[], float] = time.perf_counter, *, chooses: bool = False
    ) -> None:
        """chooses: the better way of many rows counts, as a measured processor has it (execution/autotune.py)."""
        self.clock, self.chooses = clock, chooses
        self.machine = library.new_machine(isa=isa, threads=threads, scratch_bytes=SCRATCH)
        self.weights = self.machine.allocate("weights", BYTES[1] + 8192)
        self.memory = library.region_bytes(self.machine, self.weights, BYTES[1] + 8192)
        self.acts = self.machine.allocate("acts", 512 * K * 4)
        rows = np.random.default_rng(0).standard_normal((512, K)).astype(np.float32)
        self.rows = {span: library.oracle_quantize(rows, span) if span else rows for span in (0, 32, 256)}
        layout = step_layout(rows=512, seqs=1, groups=1, page_ops=1)
        region = self.machine.allocate("step", layout.nbytes)
        self.machine.bind_step(region, list(layout.offsets), 512, 1, layout.bounds["R"], 1, 1)
        self.step = layout.views(library.region_bytes(self.machine, region, layout.nbytes))

    def _packed(self, name: str) -> np.ndarray:
        """Eight panels of random weights."""
        fmt = format_named(name)
        raw = np.random.default_rng(1).integers(0, 256, 8 * PANEL * fmt.row_bytes(K), dtype=np.uint8)
        if fmt.split is None:  # bytes would make infinities and denormal numbers, which take longer
            floats = np.random.default_rng(1).standard_normal(8 * PANEL * K).astype(np.float32)
            halves = floats.astype(np.float16) if name == "f16" else floats.view(np.uint16)[1::2]
            raw = np.ascontiguousarray(floats if name == "f32" else halves).view(np.uint8)
        if name == "mxfp4":
            raw[:: fmt.block_bytes] = 120  # any exponent would make denormal products, which take longer
        return pack(fmt, raw, 8 * PANEL, K)[1]

    def fill(self, name: str) -> None:
        """Puts weights of a format into memory."""
        piece = self._packed(name)
        for at in range(0, BYTES[1], piece.size):
            part = self.memory[at : at + piece.size]
            part[:] = piece[: part.size]
        view = library.region_bytes(self.machine, self.acts, 512 * K * 4)
        rows = self.rows[self._span(name)].reshape(-1).view(np.uint8)
        view[: rows.size] = rows

    def _span(self, name: str) -> int:
        """Values of a row that share a scale; 0 where a format reads floats."""
        fmt = format_named(name)
        if fmt.split is None:
            return 0
        return layout_for(fmt, K).span if library.sums_super_blocks(self.machine.isa) else GROUP

    def run(self, name: str, rows: int, repeats: int) -> tuple[float, int]:
        """Best seconds of one linear, and its columns."""
        fmt = format_named(name)
        layout = layout_for(fmt, K)
        panels = BYTES[rows] // packed_bytes(layout, PANEL, K)
        columns = panels * PANEL
        kernel = kernel_name(layout.id, self._span(name))
        tape = self._tape(self._span(name), kernel, columns)
        self.step["header"][[HEADER.index("rows"), HEADER.index("logit_rows")]] = rows
        best = float("inf")
        names = [f"unpack.{kernel}"] if layout.group and rows > 1 and self.chooses else []
        names += [f"matrix.{kernel}"] if names and self.machine.isa == "amx" else []
        built_in = {each: self.machine.tuned(each) for each in names}
        for way in (None, *names, "neither") if names else (None,):
            for each in names:
                self.machine.tune(each, built_in[each] if way is None else int(way == each))
            for _ in range(repeats):
                begin = self.clock()
                self.machine.run_nodes(tape, rows)
                best = min(best, self.clock() - begin)
        for each in names:
            self.machine.tune(each, built_in[each])
        return best, columns

    def _tape(self, span: int, layout: str, columns: int) -> np.ndarray:
        """A linear whose tiles go nowhere: the epilogue is empty."""
        image = Image()
        stride = act_row_bytes(K, span) if span else K * 4
        args: list[Word] = [dimension(1, "T"), immediate(K), immediate(0), immediate(0)]
        args += [
            buffer(self.acts, 0, 512 * stride),
            immediate(span),
            immediate(0),
            immediate(0),
            immediate(0),
        ]
        args += [immediate(1), immediate(PANEL), immediate(columns // PANEL), immediate(columns), immediate(1)]
        args += [buffer(self.weights, 0, BYTES[1]), image.entry(f"format.{layout}"), immediate(0)]
        image.add("linear", args)
        return node_tape(self.machine.load(image.words(), image.names))


def ceiling(name: str, rows: int, columns: int, ceilings: Ceilings) -> float:
    """Seconds below which no linear of this format can stay."""
    layout = layout_for(format_named(name), K)
    reading = packed_bytes(layout, columns, K) / ceilings.read_bytes_per_second
    operations = 2.0 * rows * columns * K
    if name in SLOTS:
        return max(reading, operations / (ceilings.int8_ops_per_second * SLOTS[name].share))
    return max(reading, operations / (ceilings.bf16_flops_per_second / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, which --threads must be")
    parser.add_argument(
        "--choose", action="store_true", help="the better of a format's ways counts, as when it is tuned"
    )
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time counts the time of one thread: give --threads 1")
    names = args.formats.split(",")
    before = measure(isa=args.isa, threads=args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    bench = Bench(args.isa, args.threads, clock, chooses=args.choose)
    best: dict[tuple[str, int], float] = {}
    columns: dict[tuple[str, int], int] = {}
    for _ in range(args.rounds):
        for name in names:
            bench.fill(name)
            for rows in ROWS:
                seconds, columns[name, rows] = bench.run(name, rows, 3)
                best[name, rows] = min(best.get((name, rows), seconds), seconds)
    after = measure(isa=args.isa, threads=args.threads)
    ceilings = max(before, after, key=lambda each: each.read_bytes_per_second)
    timings = {key: Timing(best[key], ceiling(*key, columns[key], ceilings)) for key in best}
    print(table(names, timings, columns, ceilings))


def table(
    names: list[str], timings: dict[tuple[str, int], Timing], columns: dict[tuple[str, int], int], ceilings: Ceilings
) -> str:
    """Markdown: per format and number of rows the rate, the share of the ceiling, and that share to Q4_K's."""
    lines = [
        f"{ceilings.isa}, {ceilings.threads} threads: {ceilings.read_bytes_per_second / 1e9:.1f} GB/s read, "
        f"{ceilings.int8_ops_per_second / 1e12:.2f} int8 TOP/s, "
        f"{ceilings.bf16_flops_per_second / 1e12:.2f} bf16 TFLOP/s.",
        "",
        "| format | bits | 1 row, GB/s | share | to Q4_K | 32 rows, GOP/s | share | to Q4_K "
        "| 512 rows, GOP/s | share | to Q4_K |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        layout = layout_for(format_named(name), K)
        cells = [name.upper(), f"{layout.block_bytes * 8 / layout.k_block / PANEL:.2f}"]
        for rows in ROWS:
            timing = timings[name, rows]
            work = packed_bytes(layout, columns[name, rows], K) if rows == 1 else 2 * rows * columns[name, rows] * K
            cells += [f"{work / timing.seconds / 1e9:,.1f}" if rows == 1 else f"{work / timing.seconds / 1e9:,.0f}"]
            cells.append(f"{timing.share:.0%}")
            ratio = timing.share / timings[REFERENCE, rows].share if (REFERENCE, rows) in timings else float("nan")
            cells.append(f"{ratio:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
