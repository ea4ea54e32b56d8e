"""What other processes on our cores cost: tokens a second while busy loops hold cores, and with threads to spare.

python bench/contention.py MODEL.gguf [--rounds 3] [--out docs/benchmarks/NAME.md]

Busy loops that took t cores on c of them leave 1 - t / c of the quiet rate; pinned to a core, one takes half of it in a
fair schedule, and less where our threads move away. Conditions alternate inside a round. The table gives medians of the
rounds: the rate, its share of the quiet one of the same round, and the cores that the loops took meanwhile (their CPU
time). The engine with twice as many threads as cores comes after the other one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo import LLM, SamplingParams
from octavo.machine import read_machine

# name, requests at once, ids of a prompt, tokens made
WORK = (("decode 1", 1, 16, 96), ("decode 32", 32, 16, 16), ("prefill 512", 1, 512, 1))


@contextmanager
def busy(cores: list[int]) -> Iterator[list[int]]:
    """A process that does nothing but run, on each of the cores; their numbers."""
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code, str(core)]) for core in cores]
    try:
        time.sleep(0.3 if loops else 0.0)  # until they run
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_for(processes: list[int]) -> float:
    """CPU seconds of processes so far."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rate(llm: LLM, requests: int, prompt: int, output: int) -> float:
    """Tokens a second of one call: those of the prompt where one token is made, else those made."""
    prompts = [[(7 * i + 13 * r) % 1000 + 100 for i in range(prompt)] for r in range(requests)]
    begin = time.perf_counter()
    llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True), use_tqdm=False)
    return requests * (prompt if output == 1 else output) / (time.perf_counter() - begin)


Seen = dict[
    tuple[str, str], list[tuple[float, float]]
]  # (condition, work) -> tokens a second, cores taken, of each round


def measured(model: str, threads: int, loads: dict[str, list[int]], rounds: int) -> Seen:
    """Of an engine with so many threads."""
    llm = LLM(model, threads=threads, max_num_seqs=32, max_model_len=1024, enable_prefix_caching=False)
    seen: Seen = {}
    for number in range(rounds + 1):  # the first one warms up
        for condition, cores in loads.items():
            with busy(cores) as loops:
                for work, *shape in WORK:
                    begin, before = time.perf_counter(), run_for(loops)
                    tokens = rate(llm, *shape)
                    taken = (run_for(loops) - before) / (time.perf_counter() - begin)
                    if number > 0:
                        seen.setdefault((condition, work), []).append((tokens, taken))
    llm.close()
    return seen


def table(figures: Seen) -> str:
    """Rates, shares of the quiet ones, cores taken."""
    conditions = list(dict.fromkeys(condition for condition, _ in figures))
    names = [name for name, *_ in WORK]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for condition in conditions:
        cells = [cell(figures[condition, name], figures[conditions[0], name]) for name in names]
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(some: list[tuple[float, float]], quiet: list[tuple[float, float]]) -> str:
    share = statistics.median(tokens / base for (tokens, _), (base, _) in zip(some, quiet, strict=True))
    taken = statistics.median(cores for _, cores in some)
    return (
        f"{statistics.median(tokens for tokens, _ in some):,.0f} ({share:.2f}{f'; {taken:.2f} taken' if taken else ''})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    n = len(cores)
    loads = {f"quiet, {n} threads": [], "one core taken": cores[-1:], "all cores taken": cores}
    figures = measured(args.model, n, loads, args.rounds)
    figures |= measured(args.model, 2 * n, {f"{2 * n} threads on {n} cores": []}, args.rounds)
    where = f"{Path(args.model).name} on {n} cores of {read_machine().cpu_name}"
    head = f"{where}: tokens a second (share of quiet; cores taken)"
    text = f"{head}\n\n{table(figures)}\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
