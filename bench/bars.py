"""The bars of the open issues at full size, one after the other; writes docs/status.md.

    python3 dev bars [NAME ...]      NAME: only these rows; the others keep their last figure
    python3 dev bars write           none: docs/status.md again from the figures that are there

Each row runs the command that its page names, reads its figure and judges it. A row that could not run says why. The
rows of speed_bars.py are read from the newest runs of compare.py in docs/benchmarks. Takes about an hour and a half on
two cores with all peers; nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import speed_bars
from peers import VARIABLES
from speed_bars import QWEN, SMOLLM2, VERDICTS

from octavo.config import EngineConfig
from octavo.machine import read_machine
from octavo.start import find_model

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "docs" / "benchmarks"
FIGURES = BENCHMARKS / "bars.json"
STATUS = ROOT / "docs" / "status.md"
MODELS = Path(os.environ.get("OCTAVO_TEST_MODELS") or "~/.cache/octavo-models").expanduser()  # of tests/real.py
GEMMA, SMALL_QWEN = "gemma-3-270m-q4_k_m.gguf", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"
UNMEASURED = "NOT MEASURED: "


@dataclass(frozen=True)
class Limit:
    """A number in a figure's text: the pattern's group. most: it must not exceed; else it must reach."""

    pattern: str
    must: float
    goal: float
    most: bool = True

    def word(self, figure: str) -> str:
        """One of VERDICTS."""
        found = re.search(self.pattern, figure)
        if found is None:
            return VERDICTS[0]
        sign = 1 if self.most else -1
        value = sign * float(found[1].replace(",", ""))
        return VERDICTS[1 if value > sign * self.must else 2 if value > sign * self.goal else 3]


@dataclass(frozen=True)
class Bar:
    """One line of docs/status.md. run: gives the figure's text, raises where it cannot be had. Without limits a figure
    that could be had meets the bar: its run judges."""

    name: str
    issue: str
    bar: str
    run: Callable[[], str]
    limits: tuple[Limit, ...] = ()

    def word(self, figure: str) -> str:
        """One of VERDICTS."""
        if not figure or figure.startswith(UNMEASURED):
            return VERDICTS[0]
        return min((limit.word(figure) for limit in self.limits), key=VERDICTS.index, default=VERDICTS[2])


def command(*words: str) -> str:
    """Standard output of a program run from the repository's root."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return done.stdout


def bench(script: str, *words: str) -> Callable[[], str]:
    """The last line of a script of bench/."""
    return lambda: command(sys.executable, f"bench/{script}", *words).strip().splitlines()[-1]


def table_rows(begin: str, script: str, *words: str) -> Callable[[], str]:
    """The rows of a script's table that begin so, in one line."""

    def run() -> str:
        output = command(sys.executable, f"bench/{script}", *words)
        found = [line.strip("| ") for line in output.splitlines() if re.match(begin, line)]
        if not found:
            raise RuntimeError(output[-300:])
        return " ; ".join(re.sub(r"[\s|]+", " ", line) for line in found)

    return run


def tests(*words: str) -> Callable[[], str]:
    """pytest's closing line, slow tests included."""

    def run() -> str:
        output = command(sys.executable, "-m", "pytest", "-q", "-n0", *words)
        found = re.search(r"\d+ passed.*", output)
        if found is None:
            raise RuntimeError(output[-300:])
        return found[0]

    return run


def compared() -> str:
    """compare.py for every bar on speed, into docs/benchmarks, where speed_bars.py reads it."""
    if not any(variable in os.environ for variable in VARIABLES):
        raise RuntimeError("no peer is installed: set the variables of bench/peers.py")
    short = ("--columns", "prefill 512,decode 1,decode 8,decode 32")
    runs = {
        "smollm2-135m": (SMOLLM2, ()),
        "qwen-1.5b": (QWEN, short),
        "smollm2-135m-avx2": (SMOLLM2, ("--isa", "avx2")),
    }
    for name, (model, words) in runs.items():
        out = BENCHMARKS / f"{time.strftime('%Y-%m-%d')}-{name}-{read_machine().cpu_id}.md"
        line = [sys.executable, "bench/compare.py", "--model", str(MODELS / model), "--out", str(out), *words]
        if subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:  # its stderr tells how far it is
            raise RuntimeError(f"{name} failed")
    return f"{len(runs)} runs in docs/benchmarks"


def perplexity(file: str = "") -> str:
    """The ratio of bench/perplexity.py on a file of MODELS, else the default model's."""
    path = MODELS / file if file else find_model(EngineConfig()).path
    output = command(sys.executable, "bench/perplexity.py", str(path))
    return next(line for line in output.splitlines() if line.startswith("ratio"))


def samplers() -> str:
    """Milliseconds of a step with every sampler on, by their order."""
    output = command(sys.executable, "-m", "bench.sampler")
    rows = re.findall(r"\| every sampler, (.*?) \| \S+ \| (\S+) \| \S+ \| (\S+) \|", output)
    return "; ".join(f"{name}: {ms} ms a step, of flat rows {flat}" for name, ms, flat in rows)


def python_share() -> str:
    """Python's share of a decode step of one sequence, as `octavo profile` finds it."""
    output = command(sys.executable, "-m", "octavo.cli.main", "profile", "smollm2:135m", "--batch", "1", "--json")
    decode = json.loads(output)["profiles"][0]
    return f"{100 * decode['python'] / decode['seconds']:.1f} % of a decode step of {1e3 * decode['seconds']:.2f} ms"


def soak() -> str:
    """The last line of an hour's soak, which ends with an error if anything was lost, wrong or left."""
    return command(sys.executable, "-m", "bench.soak", "--minutes", "60").strip().splitlines()[-1]


RATIO = (Limit(r"ratio\s+([\d.]+)", 1.005, 1.005),)
OTHERS = {"gemma": GEMMA, "qwen-0.5b": SMALL_QWEN, "qwen-1.5b": QWEN}  # the default model has its own row
BARS = (
    Bar("logits", "3.2", "reference against transformers: logits within 1e-3", tests("tests/models")),
    Bar("parity", "3.3", "native bit-equal to the oracle or within bounds", tests("tests/ops", "tests/execution")),
    Bar("perplexity", "3.3, 4", "within 0.5 % of float32", perplexity, RATIO),
    *(
        Bar(f"perplexity-{name}", "5.3", f"{file}: within 0.5 % of float32", partial(perplexity, file), RATIO)
        for name, file in OTHERS.items()
    ),
    Bar("invariance", "3.4", "equal bits in every variation", tests("tests/engine/test_invariance.py")),
    Bar("tokenizer", "3.5", "ids of transformers on 1 MB", tests("tests/tokenizer")),
    Bar(
        "machine", "3.6", "10^5 operations without a violated invariant, 1,000 aborts",
        tests("tests/engine/test_machine.py", "tests/engine/test_abort.py"),
    ),
    Bar(
        "samplers", "5.5", "32 rows of 152k ids, every sampler on: ≤ 2 ms a step", samplers,
        (Limit(r"default order: ([\d.]+)", 2, 2),),
    ),
    Bar("clients", "3.7", "the openai client on a live server", tests("tests/server")),
    Bar("hostile", "3.10", "200 mutated files: one clear error each", tests("tests/checkpoints/test_hostile.py")),
    Bar("speed", "3.8, 4", "the runs behind the rows below on ratios and ceilings", compared),
    Bar(
        "served", "4", "32 streams: served ≥ 90 % of offline (goal 95 %), front ≤ 30 µs of CPU a token",
        bench("served.py"), (Limit(r"served ([\d.]+)", 90, 95, most=False), Limit(r"front at most ([\d.]+)", 30, 30)),
    ),
    Bar(
        "shares", "6.6", "two keys of weights 3 : 1 that ask for more than there is: tokens 3 : 1 within 5 %",
        bench("shares.py"), (Limit(r"([\d.]+) % off", 5, 2),),
    ),
    Bar(
        "overload", "6.4, 6.6",
        "5 × capacity for a minute: goodput ≥ 95 %, no 5xx; 1,000 connections, 100 stalled readers and hostile "
        "constraints change the p99 gap of others by ≤ 10 %",
        bench("overload.py"),
        (
            Limit(r"goodput ([\d.]+)%", 95, 98, most=False), Limit(r"wait p99 ([\d.]+)", 1.5, 1),
            *(Limit(rf"{kind} ([+-][\d.]+)%", 10, 5) for kind in ("connections", "readers", "constraints")),
        ),
    ),
    Bar(
        "soak", "6.8", "an hour of everything: memory < 1 MiB per 10,000 requests, nothing lost, wrong or left",
        soak, tuple(Limit(rf"{name} ([+-][\d.]+)", 1, 0.5) for name in ("front", "engine", "grammar")),
    ),
    Bar(
        "startup", "3.1, 4", "`octavo serve` to the first token, file in the page cache: ≤ 2 s (goal 1 s)",
        bench("startup.py"), (Limit(r": ([\d.]+) s", 2, 1),),
    ),
    Bar(
        "startup-1.5b", "4", "the same of Qwen2.5-Coder-1.5B: ≤ 4 s (goal 2 s)",
        bench("startup.py", "--model", str(MODELS / QWEN)), (Limit(r": ([\d.]+) s", 4, 2),),
    ),
    Bar(
        "memory", "3.9, 4", "peak within 5 % of the plan; ≤ regions + 60 MiB + 70 MiB and the tokenizer",
        bench("memory.py"), (Limit(r"ratio ([\d.]+)", 1.05, 1.05), Limit(r"of the limit ([\d.]+)", 1, 1)),
    ),
    Bar("python", "4", "Python ≤ 5 % of a decode step of one sequence", python_share, (Limit(r"([\d.]+) %", 5, 5),)),
    Bar(
        "contention", "4", "with one core taken two threads keep 3/4 of each rate; with twice the threads no collapse",
        table_rows(r"\| (one|\d+ threads)", "contention.py", str(MODELS / SMOLLM2)),
        (
            *(Limit(r"one core taken" + r".*?\(([\d.]+)\)" * n, 0.75, 0.75, most=False) for n in (1, 2, 3)),
            Limit(r"threads on .*?\(([\d.]+)\)", 0.5, 0.5, most=False),
        ),
    ),
    Bar(
        "speculation", "4", "Qwen2.5-Coder-1.5B: ≥ 2 × plain decode on edits and on JSON, ≥ 0.98 × on free text",
        table_rows(r"\| (edit|json|free) \| ", "speculation.py", "--model", str(MODELS / QWEN)),
        (
            *(Limit(rf"{kind} ([\d.]+)", 2, 2, most=False) for kind in ("edit", "json")),
            Limit(r"free ([\d.]+)", 0.98, 1, most=False),
        ),
    ),
)  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or [bar.name for bar in BARS]
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for bar in BARS:
        if bar.name in wanted:
            print(f"{bar.name} …", file=sys.stderr, flush=True)
            begin = time.monotonic()
            try:
                figure = bar.run()
            except (RuntimeError, OSError) as error:
                figure = UNMEASURED + " ".join(str(error).split())
            print(f"{bar.name}: {figure} ({time.monotonic() - begin:.0f} s)", file=sys.stderr)
            figures[bar.name] = {"figure": figure, "date": time.strftime("%Y-%m-%d")}
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    STATUS.write_text(status(figures))


def status(figures: dict[str, dict[str, str]]) -> str:
    """docs/status.md: the table of bars, that of the bars on speed, then what stands in docs/missing.md."""
    rows = []
    for bar in BARS:
        found = figures.get(bar.name, {})
        figure, date = found.get("figure", ""), found.get("date", "")
        again = f"`python3 dev bars {bar.name}`"
        rows.append(f"| {bar.issue} | {bar.bar} | {bar.word(figure)} | {figure or 'not run yet'} | {date} | {again} |")
    comparisons = speed_bars.runs(BENCHMARKS)
    for each in speed_bars.BARS:
        verdict = speed_bars.verdict(each, comparisons)
        said = f"{verdict.word} | {verdict.text} | {verdict.date}"
        rows.append(f"| 4 | {each.name} | {said} | `python3 dev bars speed` |")
    head = "# Status\n\nWritten by `python3 dev bars`: every bar of the open issues with its latest figure.\n\n"
    table = "| issue | bar | verdict | latest figure | date | again with |\n|---|---|---|---|---|---|\n"
    missing = ROOT / "docs" / "missing.md"
    return head + table + "\n".join(rows) + "\n" + ("\n" + missing.read_text() if missing.exists() else "")


if __name__ == "__main__":
    main()
