"""The bars that compare.py measures, each against the newest run in docs/benchmarks that has its figures.

A requirement is a ratio to an engine or a share of a ceiling, at least: what must be reached, and the goal. Engines of
one bar may come from different runs (each ratio is within its own run). Fewer rounds than ROUNDS settle nothing: such a
figure is shown where there is no better one. It runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import OURS, Comparison

SMOLLM2, QWEN = "SmolLM2-135M-Instruct.Q4_1.gguf", "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"
LLAMA, IK, OPENVINO, VLLM, NARROW = "llama.cpp", "ik_llama.cpp", "OpenVINO", "vLLM", "llama.cpp without AVX-512"
BANDWIDTH, CEILING = "read bandwidth", "the computed ceiling"
PEERS = (LLAMA, IK, OPENVINO, VLLM)
ROUNDS = 5  # that the issue asks of a run
VERDICTS = ("not measured", "MISSED", "met", "goal met")


@dataclass(frozen=True)
class Need:
    """against: an engine, BANDWIDTH or CEILING. 0: none asked."""

    against: str
    must: float
    goal: float


@dataclass(frozen=True)
class SpeedBar:
    """One line of the issue's table, or one column of one."""

    model: str
    column: str
    needs: tuple[Need, ...]
    wide: bool = True  # an AVX-512 variant; else avx2

    @property
    def name(self) -> str:
        short = "SmolLM2-135M Q4_1" if self.model == SMOLLM2 else "Qwen2.5-Coder-1.5B Q4_K_M"
        return f"{short}{'' if self.wide else ', AVX2'}: {self.column}"


def _ahead(engines: Sequence[str], must: float, goal: float) -> tuple[Need, ...]:
    return tuple(Need(engine, must, goal) for engine in engines)


COLUMNS = ("prefill 512", "prefill 4096", "decode 1", "decode 8", "decode 32", "decode 1 at 4096")
BARS = (
    SpeedBar(SMOLLM2, "decode 1", (Need(IK, 1.2, 0), Need(LLAMA, 1.7, 0), Need(BANDWIDTH, 0.75, 0.85))),
    SpeedBar(SMOLLM2, "decode 8", (Need(LLAMA, 1, 0), Need(OPENVINO, 2, 3))),
    SpeedBar(SMOLLM2, "decode 32", (Need(LLAMA, 1, 0), Need(OPENVINO, 1.7, 2.2), Need(VLLM, 0, 3))),
    SpeedBar(
        SMOLLM2, "prefill 512",
        (Need(LLAMA, 1, 0), Need(OPENVINO, 1.15, 1.3), Need(IK, 1.6, 2), Need(CEILING, 0.75, 0.88)),
    ),
    SpeedBar(SMOLLM2, "prefill 4096", _ahead(PEERS, 1, 1.5)),
    SpeedBar(SMOLLM2, "decode 1 at 4096", _ahead(PEERS, 1, 1.5)),
    SpeedBar(QWEN, "decode 1", (*_ahead([LLAMA, IK], 1, 0), Need(BANDWIDTH, 0.85, 0.92))),
    SpeedBar(QWEN, "decode 8", _ahead([OPENVINO], 1.6, 2)),
    SpeedBar(QWEN, "decode 32", _ahead([OPENVINO], 1.4, 1.8)),
    SpeedBar(QWEN, "prefill 512", _ahead([OPENVINO, IK], 1.15, 1.4)),
    *(SpeedBar(SMOLLM2, column, _ahead([NARROW], 1, 1.3), wide=False) for column in COLUMNS),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the newest figures say of a bar: the worst of its requirements; what is missed is, whatever else lacks."""

    text: str  # "1.51 × ik_llama.cpp (must 1.2) · 93 % of read bandwidth (must 75, goal 85)"
    word: str  # one of VERDICTS
    date: str


def runs(folder: Path) -> list[Comparison]:
    """The comparisons of a folder, newest first."""
    found = [(path, Comparison.read(path)) for path in folder.glob("*.json") if path.name != "bars.json"]
    return [each for _, each in sorted(found, key=lambda pair: (pair[1].date, pair[0].name), reverse=True)]


def verdict(bar: SpeedBar, comparisons: Sequence[Comparison]) -> Verdict:
    """Of the newest run with each requirement's figure."""
    found = [_newest(bar, need.against, comparisons) for need in bar.needs]
    date = max((each.date for each in found if each), default="")
    texts = [_words(need, each, date) for need, each in zip(bar.needs, found, strict=True)]
    words = [_word(need, each) for need, each in zip(bar.needs, found, strict=True)]
    word = VERDICTS[1] if VERDICTS[1] in words else min(words, key=VERDICTS.index)
    return Verdict(" · ".join(texts), word, date)


@dataclass(frozen=True)
class Figure:
    """Of one requirement. unit: the run used the matrix unit, the computed ceiling is that of the vector units."""

    value: float
    rounds: int
    date: str
    unit: bool


def _newest(bar: SpeedBar, against: str, comparisons: Sequence[Comparison]) -> Figure | None:
    """Of the newest run with ROUNDS rounds, else of the newest one."""
    short = None
    for each in comparisons:
        if each.model == bar.model and (each.isa != "avx2") == bar.wide and bar.column in each.rates[OURS]:
            shares = {BANDWIDTH: each.bandwidth, CEILING: each.ceiling}
            value = shares[against](bar.column) if against in shares else each.ratio(against, bar.column)
            if value is None:
                continue
            engine = OURS if against in shares else against
            figure = Figure(value, len(each.rates[engine][bar.column]), each.date, each.isa == "amx")
            if figure.rounds >= ROUNDS:
                return figure
            short = short or figure
    return short


def _words(need: Need, figure: Figure | None, date: str) -> str:
    """date: that of the row; another one is said."""
    share = need.against in (BANDWIDTH, CEILING)
    asked = ((word, value) for word, value in (("must", need.must), ("goal", need.goal)) if value)
    notes = [f"{word} {100 * value:.0f} %" if share else f"{word} {value:g}" for word, value in asked]
    if figure is None:
        return f"{need.against}: not measured ({', '.join(notes)})"
    if figure.rounds < ROUNDS:
        notes.append(f"{figure.rounds} of {ROUNDS} rounds")
    if figure.date != date:
        notes.append(figure.date)
    units = " of the vector units, beside the matrix unit" if need.against == CEILING and figure.unit else ""
    told = f"{100 * figure.value:.0f} % of" if share else f"{figure.value:.2f} ×"
    return f"{told} {need.against}{units} ({', '.join(notes)})"


def _word(need: Need, figure: Figure | None) -> str:
    if figure is None or figure.rounds < ROUNDS:
        return VERDICTS[0] if need.must else VERDICTS[2]
    if figure.value < need.must:
        return VERDICTS[1]
    return VERDICTS[2] if figure.value < need.goal else VERDICTS[3]
