"""Ceilings of this machine, measured through the native team: read bandwidth, int8 and bf16 rates.

The roofline of `profile`, `bench` and `plan`. Measured on demand, never at the start of a server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from octavo.execution.tape import Image, buffer, immediate, node_tape
from octavo.kernels import library

READ_BYTES = 1 << 30
READS = 12
_CHAINS = 12  # of native/kernels/ceilings.cc
_ITERATIONS = 10_000_000


@dataclass(frozen=True)
class Ceilings:
    """Best of several runs with `threads` threads of variant `isa`."""

    isa: str
    threads: int
    read_bytes_per_second: float
    int8_ops_per_second: float  # a multiply-add counts as two
    bf16_flops_per_second: float

    def best(self, other: Ceilings) -> Ceilings:
        """Of two measurements of the same machine and threads: the higher figure of each."""
        return replace(
            self,
            read_bytes_per_second=max(self.read_bytes_per_second, other.read_bytes_per_second),
            int8_ops_per_second=max(self.int8_ops_per_second, other.int8_ops_per_second),
            bf16_flops_per_second=max(self.bf16_flops_per_second, other.bf16_flops_per_second),
        )


def measure(*, isa: str = "auto", threads: int, reads: int = READS) -> Ceilings:
    """Best of `reads` reads. Takes about two seconds and READ_BYTES of memory."""
    machine = library.new_machine(isa=isa, threads=threads, scratch_bytes=4096)
    region = machine.allocate("ceiling", READ_BYTES + 8192)
    library.region_bytes(machine, region, READ_BYTES)[:] = 1  # touched, so that pages exist
    sink = machine.allocate("sink", 8 * threads)
    words = immediate(_ITERATIONS)
    out = buffer(sink, 0, 8 * threads)
    read = _best(machine, "ceiling.read", [buffer(region, 0, READ_BYTES), immediate(READ_BYTES), out], reads)
    int8 = _best(machine, "ceiling.int8", [words, out], 3)
    bf16 = _best(machine, "ceiling.bf16", [words, out], 3)
    bf16_pairs = 32 if machine.isa in library.BF16_DOT else 16
    rate = 2 * threads * _ITERATIONS * _CHAINS
    return Ceilings(machine.isa, threads, READ_BYTES / read, rate * 64 / int8, rate * bf16_pairs / bf16)


def _best(machine: Any, kernel: str, args: list[tuple[int, int, int, int, int]], runs: int) -> float:
    """Shortest of `runs` runs, in seconds."""
    image = Image()
    image.add(kernel, args)
    tape = node_tape(machine.load(image.words(), image.names))
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        machine.run_nodes(tape)
        best = min(best, time.perf_counter() - begin)
    return best
