"""A comparison: what compare.py measured in one run, as JSON and as Markdown, and the ratios that follow.

It knows nothing of how anything is run. Rates are medians; a ratio or a share is the median over the rounds of that
within a round, since a shared machine drifts from round to round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ceiling import Work

from octavo.execution.ceilings import Ceilings

OURS = "octavo"


@dataclass
class Comparison:
    """One run of compare.py. rates: engine -> column -> tokens a second of each round."""

    model: str  # file name
    date: str
    cpu: str
    isa: str
    threads: int
    rounds: int
    ceilings: dict[str, list[Ceilings]]  # column -> of each round, measured directly before and after our turn
    bytes: dict[str, int]  # decode column -> packed weights and visible KV of a step
    batches: dict[str, int]  # decode column -> sequences
    work: dict[str, Work]  # prefill column -> what the computed ceiling counts; empty where the variant has none
    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)  # engine -> column -> best setting
    tried: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # engine -> column -> setting -> rate
    failed: dict[str, str] = field(default_factory=dict)  # engine -> why it left

    @classmethod
    def read(cls, path: Path) -> Comparison:
        data = json.loads(path.read_text())
        data["ceilings"] = {column: [Ceilings(**each) for each in some] for column, some in data["ceilings"].items()}
        data["work"] = {column: Work(**each) for column, each in data["work"].items()}
        return cls(**data)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @property
    def columns(self) -> list[str]:
        return list(self.rates[OURS])

    def median(self, engine: str, column: str) -> float | None:
        values = self.rates.get(engine, {}).get(column)
        return statistics.median(values) if values else None

    def ratio(self, engine: str, column: str) -> float | None:
        """Ours to the engine's."""
        ours, theirs = self.rates[OURS].get(column, []), self.rates.get(engine, {}).get(column, [])
        pairs = [a / b for a, b in zip(ours, theirs, strict=False)]
        return statistics.median(pairs) if pairs else None

    def bandwidth(self, column: str) -> float | None:
        """Share of the measured read bandwidth that a decode column reaches."""
        if column not in self.bytes:
            return None
        step = self.bytes[column] / self.batches[column]
        return self._share(column, lambda rate, at: step * rate / at.read_bytes_per_second)

    def ceiling(self, column: str) -> float | None:
        """Share of the computed ceiling that a prefill column reaches."""
        if column not in self.work:
            return None
        tokens = int(column.split()[-1])
        return self._share(column, lambda rate, at: self.work[column].seconds(at) * rate / tokens)

    def _share(self, column: str, of_round: Callable[[float, Ceilings], float]) -> float | None:
        """Median over the rounds, each with the ceilings that were measured around our turn in it."""
        pairs = zip(self.rates[OURS].get(column, []), self.ceilings.get(column, []), strict=False)
        shares = [of_round(rate, ceilings) for rate, ceilings in pairs]
        return statistics.median(shares) if shares else None

    def markdown(self) -> str:
        """Where, then the table: medians (least to most), ratios, shares; then settings and what left."""
        lines = [
            f"CPU {self.cpu}, {self.threads} threads, variant {self.isa}; ceilings, median of the turns: "
            f"{self._ceilings()}",
            "",
            f"{self.model}, {self.rounds} rounds in turns, tokens a second, median (least to most); decode: 128 ids in "
            "(or what the column says), 64 out, over the whole batch; ratios: median of those within a round",
            "",
            "| | " + " | ".join(self.columns) + " |",
            "|---|" + "---|" * len(self.columns),
        ]
        for engine in self.rates:
            lines.append(self._row(engine, [self._cell(engine, column) for column in self.columns]))
        for engine in self.rates:
            if engine != OURS:
                ratios = [self.ratio(engine, column) for column in self.columns]
                lines.append(self._row(f"{OURS} / {engine}", [f"{r:.2f} ×" if r else "–" for r in ratios]))
        computed = "of the computed ceiling" + (" of the vector units" if self.isa == "amx" else "")
        for name, share in (("of read bandwidth", self.bandwidth), (computed, self.ceiling)):
            shares = [share(column) for column in self.columns]
            if any(shares):
                lines.append(self._row(f"{OURS}: share {name}", [f"{100 * s:.0f} %" if s else "–" for s in shares]))
        for engine, settings in self.settings.items():
            lines += ["", f"{engine}, best settings: " + "; ".join(f"{c}: {s}" for c, s in settings.items()) + "."]
        lines += [f"\n{engine} left: {' '.join(why.split())}" for engine, why in self.failed.items()]
        return "\n".join(lines) + "\n"

    def _ceilings(self) -> str:
        def figure(name: str) -> str:
            values = sorted(getattr(each, name) / 1e9 for some in self.ceilings.values() for each in some)
            return f"{statistics.median(values):,.1f} ({values[0]:,.1f} to {values[-1]:,.1f})"

        text = f"read {figure('read_bytes_per_second')} GB/s, int8 {figure('int8_ops_per_second')} GOP/s, bf16 "
        text += f"{figure('bf16_flops_per_second')} GFLOP/s"
        for column, work in self.work.items():
            rates = [int(column.split()[-1]) / work.seconds(each) for each in self.ceilings.get(column, [])]
            if rates:
                text += f", computed {column} {statistics.median(rates):,.0f} tok/s"
        return text

    def _cell(self, engine: str, column: str) -> str:
        values = self.rates[engine].get(column)
        if not values:
            return "–"
        digits = 1 if max(values) < 100 else 0
        return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"

    @staticmethod
    def _row(name: str, cells: list[str]) -> str:
        return "| " + " | ".join([name, *cells]) + " |"
