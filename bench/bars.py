"""The bars of the open issues at full size, one after the other; writes docs/status.md.

    python3 dev bars [NAME ...]      NAME: only these rows; the others keep their last figure

Each row runs the command that its page names and reads its figure. A row that could not run says why. Takes about half
an hour on two cores; nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from octavo.config import EngineConfig
from octavo.start import find_model

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "benchmarks" / "bars.json"
STATUS = ROOT / "docs" / "status.md"


@dataclass(frozen=True)
class Bar:
    """One line of docs/status.md. run: gives the figure's text, raises where it cannot be had."""

    name: str
    issue: str
    bar: str
    run: Callable[[], str]


def command(*words: str) -> str:
    """Standard output of a program run from the repository's root."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return done.stdout


def bench(script: str, *words: str) -> Callable[[], str]:
    """The last line of a script of bench/."""
    return lambda: command(sys.executable, f"bench/{script}", *words).strip().splitlines()[-1]


def tests(*words: str) -> Callable[[], str]:
    """pytest's closing line, slow tests included."""

    def run() -> str:
        output = command(sys.executable, "-m", "pytest", "-q", "-n0", *words)
        found = re.search(r"\d+ passed.*", output)
        if found is None:
            raise RuntimeError(output[-300:])
        return found[0]

    return run


def compared(model: str) -> Callable[[], str]:
    """Ratios of bench/compare.py against llama.cpp; the table goes to docs/benchmarks."""

    def run() -> str:
        out = f"docs/benchmarks/{time.strftime('%Y-%m-%d')}-{Path(model).stem.replace(':', '-')}.md"
        output = command(sys.executable, "bench/compare.py", "--model", model, "--out", out)
        ratios = [line for line in output.splitlines() if line.startswith("| octavo / ")]
        if not ratios:
            raise RuntimeError("no peer is installed: set LLAMA_BENCH_DIR (bench/peers.py)")
        return f"prefill 512, decode 1, 8, 32: {'; '.join(ratios)} ({out})"

    return run


def perplexity() -> str:
    """The ratio of bench/perplexity.py on the default model's file."""
    output = command(sys.executable, "bench/perplexity.py", str(find_model(EngineConfig()).path))
    return next(line for line in output.splitlines() if line.startswith("ratio"))


BARS = (
    Bar("logits", "3.2", "reference against transformers: logits within 1e-3", tests("tests/models")),
    Bar("parity", "3.3", "native bit-equal to the oracle or within bounds", tests("tests/ops", "tests/execution")),
    Bar("perplexity", "3.3", "within 0.5 % of float32", perplexity),
    Bar("invariance", "3.4", "equal bits in every variation", tests("tests/engine/test_invariance.py")),
    Bar("tokenizer", "3.5", "ids of transformers on 1 MB", tests("tests/tokenizer")),
    Bar(
        "machine", "3.6", "10^5 operations without a violated invariant, 1,000 aborts",
        tests("tests/engine/test_machine.py", "tests/engine/test_abort.py"),
    ),
    Bar("clients", "3.7", "the openai client on a live server", tests("tests/server")),
    Bar("speed", "3.8", "≥ 1.0 × llama.cpp in each column", compared("smollm2:135m")),
    Bar("memory", "3.9", "peak within 5 % of the plan", bench("memory.py")),
    Bar("hostile", "3.10", "200 mutated files: one clear error each", tests("tests/checkpoints/test_hostile.py")),
    Bar("served", "4", "served ≥ 90 % of offline, front ≤ 30 µs a token", bench("served.py")),
    Bar("startup", "3.1, 4", "second start to first token ≤ 2 s", bench("startup.py")),
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
                figure = f"NOT MEASURED: {' '.join(str(error).split())}"
            print(f"{bar.name}: {figure} ({time.monotonic() - begin:.0f} s)", file=sys.stderr)
            figures[bar.name] = {"figure": figure, "date": time.strftime("%Y-%m-%d")}
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    STATUS.write_text(status(figures))


def status(figures: dict[str, dict[str, str]]) -> str:
    """docs/status.md: the table of bars, then what stands in docs/missing.md."""
    rows = [
        f"| {bar.issue} | {bar.bar} | {figures.get(bar.name, {}).get('figure', 'not run yet')} | "
        f"{figures.get(bar.name, {}).get('date', '')} | `python3 dev bars {bar.name}` |"
        for bar in BARS
    ]
    head = "# Status\n\nWritten by `python3 dev bars`: every bar of the open issues with its latest figure.\n\n"
    table = "| issue | bar | latest figure | date | again with |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    missing = ROOT / "docs" / "missing.md"
    return head + table + ("\n" + missing.read_text() if missing.exists() else "")


if __name__ == "__main__":
    main()
