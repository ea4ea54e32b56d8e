"""Where a step's time goes: per kind of phase its calls, time, bytes, operations, and share of the measured roofline.

Scripted Steps run on a loaded model. Times come from the native library, node by node; bytes and operations from what
the ops declare, with the symbols of the step that ran. It knows no model: everything is read off the lowered nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo.errors import ContextLengthExceeded, DoesNotFit
from octavo.execution.ceilings import Ceilings
from octavo.execution.native import NativeExecutor, experts_active
from octavo.execution.node_work import multiplies_integers, operations, traffic
from octavo.execution.runner import Runner
from octavo.execution.step import PAGE_TOKENS, ExecutionFacts, PagesAppended, RowRun, SlotOpen, Step
from octavo.lowering.lower import HEAD_ROWS
from octavo.lowering.lowered import Lowered, LoweredNode
from octavo.program.symbols import Values
from octavo.sampling_params import SamplingParams

DECODE_STEPS, PREFILLS = 16, 5  # measured; the one of the median time is shown
WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """All nodes of one kind. seconds: until the last thread was done. integer: its products are of integers."""

    label: str
    integer: bool
    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    operations: int = 0

    def roof_seconds(self, ceilings: Ceilings) -> float:
        """The time that the machine's ceilings leave at least: of its bytes or of its operations, the longer."""
        peak = ceilings.int8_ops_per_second if self.integer else ceilings.bf16_flops_per_second
        return max(self.bytes / ceilings.read_bytes_per_second, self.operations / peak)


@dataclass(frozen=True)
class Profile:
    """One measured piece of work. seconds = those of the rows + idle + python."""

    name: str  # decode, prefill
    batch: int
    context: int  # keys that a decode row sees; tokens of the prompt
    tokens: int  # rows computed
    steps: int
    rows: tuple[Row, ...]
    seconds: float
    idle: float  # inside the native call and in no node: waking the team, pages, committing ids
    python: float  # of the runner, outside the native call


@dataclass(frozen=True)
class _Run:
    """What one run of a piece of work gave: times of all nodes and the symbols of each step."""

    seconds: float
    native: float
    nanoseconds: tuple[int, ...]
    values: tuple[Values, ...]


class Profiler:
    """Runs and measures pieces of work on a model that nobody else is using."""

    def __init__(self, executor: NativeExecutor, runner: Runner) -> None:
        self._executor, self._machine = executor, executor.machine
        self._lowered = executor.layouts.lowered
        self._most_zeroed = len(executor.step["zero_page"])
        self._runner = runner
        self._facts = runner.facts

    def decode(self, batch: int, context: int) -> Profile:
        """A decode step of `batch` sequences whose rows see `context` keys and, in later steps, a few more."""
        opened = self._open(batch, context, decode_length(context))
        try:
            runs = []
            for end in range(context, decode_length(context) + 1):
                step = Step(0, tuple(RowRun(slot, end - 1, 1, True) for slot in opened))
                runs.append(self._measured([step]))
        finally:
            self._close(opened)
        return self._profile("decode", batch, context, _median(runs[WARM_UP:]))

    def prefill(self, length: int) -> Profile:
        """A prompt of `length` tokens, in steps of as many rows as the model was loaded for."""
        most = self._facts.max_rows
        chunks = [range(first, min(first + most, length)) for first in range(0, length, most)]
        steps = [Step(0, (RowRun(0, chunk.start, len(chunk), chunk.stop == length),)) for chunk in chunks]
        runs = []
        for _ in range(WARM_UP + PREFILLS):
            opened = self._open(1, length, length)
            try:
                runs.append(self._measured(steps))
            finally:
                self._close(opened)
        return self._profile("prefill", 1, length, _median(runs[WARM_UP:]))

    def _open(self, batch: int, known: int, end: int) -> range:
        """Sequences of `known` ids with zeroed pages up to position `end`. Raises what says that they do not fit."""
        facts = self._facts
        if end > facts.max_model_len:
            raise ContextLengthExceeded(facts.max_model_len, known, end - known)
        pages = -(-end // PAGE_TOKENS)
        needed = batch * pages * len(facts.groups)
        if batch > facts.max_seqs or needed > facts.pages - 1:
            raise DoesNotFit(
                f"profile of {batch} sequences of {end} tokens needs {needed} pages and {batch} slots; there are "
                f"{facts.pages - 1} and {facts.max_seqs}. Give a smaller --batch or --context, or more with "
                "--kv-cache-memory and --max-num-seqs."
            )
        params = SamplingParams(temperature=0.0, max_tokens=None)
        given = iter(range(1, 1 + needed))
        for slot in range(batch):
            own = {group.index: tuple(next(given) for _ in range(pages)) for group in facts.groups}
            opening = SlotOpen(slot, (1,) * known, known, params, 0, 0, facts.max_model_len, ())
            appended = tuple(PagesAppended(slot, group, 0, some) for group, some in own.items())
            self._runner.run(Step(0, opens=(opening,), pages=appended))
        for first in range(1, 1 + needed, self._most_zeroed):  # also makes the memory real
            last = min(first + self._most_zeroed, 1 + needed)
            self._runner.run(Step(0, zero_pages=tuple(range(first, last))))
        return range(batch)

    def _close(self, slots: Iterable[int]) -> None:
        self._runner.run(Step(0, closes=tuple(slots)))

    def _measured(self, steps: Sequence[Step]) -> _Run:
        self._machine.profile(True)  # also sets the times to 0
        try:
            stats, values = [], []
            for step in steps:
                stats.append(self._runner.run(step).stats)
                values.append(symbols(step, self._facts, self._lowered) | self._experts())
            nodes = sum(1 for _ in self._lowered.nodes())
            nanoseconds = tuple(self._machine.node_times()[:nodes])  # the model's Programs were loaded first
        finally:
            self._machine.profile(False)
        return _Run(
            sum(each.total_seconds for each in stats),
            sum(each.native_seconds for each in stats),
            nanoseconds,
            tuple(values),
        )

    def _experts(self) -> dict[str, int]:
        """The metric symbols of mixtures of experts, as the last step left them."""
        counts = experts_active(self._executor)
        return {f"experts_active.{mixture}": count for mixture, count in enumerate(counts)}

    def _profile(self, name: str, batch: int, context: int, run: _Run) -> Profile:
        rows = table(self._lowered, run.nanoseconds, run.values)
        idle = run.native - sum(row.seconds for row in rows)
        tokens = sum(values["T"] for values in run.values)
        python = run.seconds - run.native
        return Profile(name, batch, context, tokens, len(run.values), rows, run.seconds, idle, python)


def decode_length(context: int) -> int:
    """Positions that Profiler.decode reaches."""
    return context + DECODE_STEPS + WARM_UP - 1


def _median(runs: Sequence[_Run]) -> _Run:
    """The run whose time is the median: its figures belong together."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def symbols(step: Step, facts: ExecutionFacts, lowered: Lowered) -> dict[str, int]:
    """The values of all symbols in a step with one decode loop: rows, sequences, logit rows, and the metric symbols."""
    found = {"T": step.rows, "S": len(step.runs), "R": sum(run.sample for run in step.runs)}
    for group in facts.groups:
        layout = lowered.groups[group.index]
        token = layout.page_bytes // (PAGE_TOKENS * layout.group.layers)
        visible = seen = 0
        for run in step.runs:
            ends = range(run.start + 1, run.start + run.count + 1)
            lows = [max(0, end - group.window) if group.window else 0 for end in ends]
            visible += sum(ends) - sum(lows)
            seen += ends[-1] - lows[0]
        found[f"visible_keys.{group.index}"] = visible
        found[f"kv_seen.{group.index}"] = seen * token
        found[f"kv_written.{group.index}"] = step.rows * token
    return found


def table(lowered: Lowered, nanoseconds: Sequence[int], steps: Sequence[Values]) -> tuple[Row, ...]:
    """Nodes of a kind put together, in the order in which the first of each runs."""
    rows: dict[tuple[str, bool], Row] = {}
    times = iter(nanoseconds)
    for name, program in lowered.programs.items():
        calls = [values for step in steps for values in _calls(step, in_chunks=name != "body")]
        for node in program.nodes:
            key = (label(name, node, lowered), multiplies_integers(node))
            row = rows.get(key, Row(*key))
            read, done = traffic(node, lowered), operations(node)
            rows[key] = Row(
                *key,
                row.calls + len(calls),
                row.seconds + next(times) / 1e9,
                row.bytes + sum(read.at(values) for values in calls),
                row.operations + sum(done.at(values) for values in calls),
            )
    return tuple(rows.values())


def _calls(step: Values, in_chunks: bool) -> list[Values]:
    """The symbols of each call of a Program in a step: head and sampler run by chunks of logit rows."""
    if not in_chunks:
        return [step]
    return [{**step, "R": min(HEAD_ROWS, step["R"] - first)} for first in range(0, step["R"], HEAD_ROWS)]


def label(program: str, node: LoweredNode, lowered: Lowered) -> str:
    """`linear q4_1 gate_proj+up_proj`, `attention`, `head q4_1 embed_tokens`: kind, formats, roles of its weights."""
    weights = [lowered.weights[name] for name in node.origin.weights if name in lowered.weights]
    formats = dict.fromkeys(weight.format for weight in weights)
    roles = [weight.name.removesuffix(".weight").rpartition(".")[2] for weight in weights]
    return " ".join(filter(None, [node.name if program == "body" else program, "+".join(formats), "+".join(roles)]))
