"""A mixture of experts alone: rows of decoding and of a prompt, and the share of what the machine could do at most.

    python bench/moe.py [--formats q4_k,q4_k,q6_k] [--experts 32] [--chosen 4] [--width 2048] [--inner 768]
                        [--threads 2] [--rounds 5] [--isa auto]

Formats are those of gate, up and down. The ceiling of a run is the longer of two times: the packed bytes of the experts
that have rows at the read bandwidth of the same threads, and the operations at their int8 rate times the share of dots
that the tiles have (ceiling.py). Layers follow each other whose rows choose different experts, so that together they
read more than the caches hold. Weights are random bytes, rows and logits random numbers.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from ceiling import SLOTS

from octavo.execution.ceilings import Ceilings, measure
from octavo.execution.layout import step_layout
from octavo.execution.tape import Image, Word, buffer, dimension, immediate, node_tape
from octavo.kernels import library
from octavo.ops.moe import BLOCK_BYTES, BLOCK_ROWS, SHARE_ROWS
from octavo.ops.quantize import GROUP, act_row_bytes
from octavo.quantization.format import format_named
from octavo.quantization.panels import LAYOUTS, PANEL, SUPER, kernel_name, layout_for, pack, packed_bytes

# Where a block's float16 scales (and minima) stand. They are set so that products are numbers as models have them:
# random scales may be denormal or infinite, for which what joins gate and up takes three times as long.
SCALES = {
    "q4_0": (0, 2), "q4_1": (0, 4), "q5_0": (0, 2), "q5_1": (0, 4), "q8_0": (0, 2), "q4_k": (0, 4), "q5_k": (0, 4),
    "q6_k": (208, 210), "q3_k": (108, 110), "q2_k": (80, 84), "iq4_nl": (0, 2), "iq4_xs": (0, 2), "mxfp4": (0, 1),
}  # fmt: skip
SMALL = 2.0**-10
ROWS = (1, 4, 16, 64, 512)
SCRATCH = 8 << 20
MOST = max(ROWS)


@dataclass(frozen=True)
class Shape:
    """Experts of a layer, those of a row, columns outside and inside; formats of gate, up and down."""

    experts: int
    chosen: int
    width: int
    inner: int
    formats: tuple[str, str, str]

    @property
    def matrices(self) -> list[tuple[str, int, int]]:
        """Layout, columns and K of each weight."""
        sizes = [(self.inner, self.width), (self.inner, self.width), (self.width, self.inner)]
        return [(layout_for(format_named(name), k).id, n, k) for name, (n, k) in zip(self.formats, sizes, strict=True)]

    @property
    def expert_bytes(self) -> int:
        return sum(packed_bytes(LAYOUTS[layout], n, k) for layout, n, k in self.matrices)

    def spans(self, sums: bool) -> tuple[int, int]:
        """Values that share a scale in the rows of gate and up, and of down."""
        gate, up, down = (LAYOUTS[layout].span if sums else GROUP for layout, _, _ in self.matrices)
        return min(gate, up), down


class Bench:
    """A machine with one stack of experts, read by as many nodes as it takes until every expert had a row."""

    def __init__(self, shape: Shape, isa: str, threads: int) -> None:
        self.shape, self.spans = shape, shape.spans(library.sums_super_blocks(isa))
        self.machine = library.new_machine(isa=isa, threads=threads, scratch_bytes=SCRATCH)
        layout = step_layout(rows=MOST, seqs=1, groups=1, page_ops=1)
        region = self.machine.allocate("step", layout.nbytes)
        self.machine.bind_step(region, list(layout.offsets), MOST, 1, layout.bounds["R"], 1, 1)
        random = np.random.default_rng(0)
        self.weights = [self._put(self._stack(name, n, k), 8192) for name, (_, n, k) in self._named()]
        self.acts = self._put(library.oracle_quantize(self._rows(random), self.spans[0]))
        self.inner = self._room(MOST * shape.chosen * act_row_bytes(shape.inner, SUPER))
        self.routes, self.active = self._room(8 * MOST * shape.chosen), self._room(64)
        self.out = self._room(4 * MOST * shape.width)

    def _rows(self, random: np.random.Generator) -> np.ndarray:
        return random.standard_normal((MOST, self.shape.width)).astype(np.float32)

    def _named(self) -> list[tuple[str, tuple[str, int, int]]]:
        return list(zip(self.shape.formats, self.shape.matrices, strict=True))

    def _stack(self, name: str, n: int, k: int) -> np.ndarray:
        fmt = format_named(name)
        raw = np.random.default_rng(1).integers(0, 256, (n * k // fmt.block, fmt.block_bytes), dtype=np.uint8)
        first, last = SCALES[name]
        halves = np.full((last - first) // 2, SMALL, np.float16).view(np.uint8)
        raw[:, first:last] = 120 if name == "mxfp4" else halves  # an exponent
        return np.tile(pack(fmt, raw.reshape(-1), n, k)[1], self.shape.experts)

    def _room(self, nbytes: int) -> Word:
        return buffer(self.machine.allocate("operands", nbytes), 0, nbytes)

    def _put(self, values: np.ndarray, slack: int = 0) -> Word:
        nbytes = values.nbytes + slack
        region = self.machine.allocate("operands", nbytes)
        library.region_bytes(self.machine, region, nbytes)[: values.nbytes] = values.reshape(-1).view(np.uint8)
        return buffer(region, 0, nbytes)

    def nodes(self, rows: int) -> tuple[np.ndarray, int]:
        """A tape of nodes of `rows` rows, and how many experts have rows in all of them together."""
        shape, random = self.shape, np.random.default_rng(rows)
        image, seen = Image(), 0
        for first in range(0, shape.experts, min(shape.experts, rows * shape.chosen)):
            logits = random.standard_normal((rows, shape.experts)).astype(np.float32)
            if rows * shape.chosen < shape.experts:  # every row has its own
                for row in range(rows):
                    for place in range(shape.chosen):
                        logits[row, (first + row * shape.chosen + place) % shape.experts] += 100
            order = np.argsort(-logits, axis=1, kind="stable")
            seen += len(np.unique(order[:, : shape.chosen]))
            image.add("moe", self._args(image, self._put(logits)))
        return node_tape(self.machine.load(image.words(), image.names)), seen

    def _args(self, image: Image, logits: Word) -> list[Word]:
        shape, number = self.shape, immediate
        block = max(16, min(BLOCK_ROWS, BLOCK_BYTES // act_row_bytes(shape.width)))
        head = [dimension(1, "T"), logits, *map(number, (shape.experts, shape.experts, shape.chosen, 0, SHARE_ROWS))]
        args = [*head, self.routes, number(block), self.active]
        (gate, up, down), acts = (
            self.shape.matrices,
            (number(self.spans[0]), number(shape.width), number(shape.inner), number(2)),
        )
        args += [self.acts, *acts]
        for (layout, _, _), weight in zip((gate, up), self.weights, strict=False):
            args += [weight, image.entry(f"format.{kernel_name(layout, self.spans[0])}"), number(0)]
        args += [number(2), image.entry("tile.silu_mul"), number(0)]
        args += [image.entry("tile.quantize"), number(3), self.inner, number(shape.inner), number(self.spans[1])]
        args += [self.inner, number(self.spans[1]), number(shape.inner), number(shape.width), number(1)]
        args += [self.weights[2], image.entry(f"format.{kernel_name(down[0], self.spans[1])}"), number(0)]
        return [*args, number(1), image.entry("tile.store"), number(2), self.out, number(shape.width)]

    def seconds(self, tape: np.ndarray, rows: int) -> float:
        begin = time.perf_counter()
        self.machine.run_nodes(tape, rows)
        return time.perf_counter() - begin


def ceiling(shape: Shape, pairs: int, active: int, ceilings: Ceilings) -> tuple[float, float]:
    """Seconds that reading and multiplying take at least."""
    reading = active * shape.expert_bytes / ceilings.read_bytes_per_second
    computing = 0.0
    for name, (_, n, k) in zip(shape.formats, shape.matrices, strict=True):
        computing += 2.0 * pairs * n * k / (ceilings.int8_ops_per_second * SLOTS[name].share)
    return reading, computing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="q4_k,q4_k,q6_k")
    for name, default in (
        ("experts", 32),
        ("chosen", 4),
        ("width", 2048),
        ("inner", 768),
        ("threads", 2),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--isa", default="auto")
    args = parser.parse_args()
    gate, up, down = args.formats.split(",")
    shape = Shape(args.experts, args.chosen, args.width, args.inner, (gate, up, down))
    if shape.inner % PANEL or shape.width % PANEL or not set(shape.formats) <= SCALES.keys():
        parser.error(f"widths are multiples of 32, formats of {', '.join(SCALES)}")
    before = measure(isa=args.isa, threads=args.threads)
    bench = Bench(shape, args.isa, args.threads)
    tapes = {rows: bench.nodes(rows) for rows in ROWS}
    best = dict.fromkeys(ROWS, float("inf"))
    for _ in range(args.rounds):
        for rows in ROWS:
            best[rows] = min(best[rows], *(bench.seconds(tapes[rows][0], rows) for _ in range(3)))
    after = measure(isa=args.isa, threads=args.threads)
    print(table(shape, best, {rows: seen for rows, (_, seen) in tapes.items()}, max(before, after, key=_bandwidth)))


def _bandwidth(ceilings: Ceilings) -> float:
    return ceilings.read_bytes_per_second


def table(shape: Shape, best: dict[int, float], active: dict[int, int], ceilings: Ceilings) -> str:
    """Markdown: per number of rows the time of a layer, rates, and shares of both ceilings."""
    formats = ", ".join(name.upper() for name in shape.formats)
    lines = [
        f"{ceilings.isa}, {ceilings.threads} threads: {ceilings.read_bytes_per_second / 1e9:.1f} GB/s read, "
        f"{ceilings.int8_ops_per_second / 1e12:.2f} int8 TOP/s. {shape.experts} experts of {shape.width} x "
        f"{shape.inner}, {shape.chosen} a row; {formats}.",
        "",
        "| rows | experts a layer | us a layer | GB/s | of bandwidth | GOP/s | of operations | of the ceiling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows, seconds in best.items():
        layers = -(-shape.experts // min(shape.experts, rows * shape.chosen))
        pairs = layers * rows * shape.chosen
        reading, computing = ceiling(shape, pairs, active[rows], ceilings)
        rate, work = active[rows] * shape.expert_bytes / seconds, 6 * pairs * shape.width * shape.inner / seconds
        lines.append(
            f"| {rows} | {active[rows] / layers:g} | {seconds / layers * 1e6:,.0f} | {rate / 1e9:.1f} "
            f"| {reading / seconds:.0%} | {work / 1e9:,.0f} | {computing / seconds:.0%} "
            f"| {max(reading, computing) / seconds:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
