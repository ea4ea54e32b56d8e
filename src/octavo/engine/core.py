"""The engine without a loop: submit and abort between steps, `step()` runs one and gives what is new.

It knows ids, never text, and no socket; loop.py turns it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.engine import faults
from octavo.engine.constraints import Constraints
from octavo.engine.cost_model import CostModel
from octavo.engine.flight_record import FlightRecord
from octavo.engine.grammars import GrammarSetup, failed
from octavo.engine.messages import Abort, ChoiceOutput, EngineInfo, EngineStats, PromptOutput
from octavo.engine.roster import Roster, SchedulerConfig
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Place, Sequence
from octavo.errors import InvalidRequest, OctavoError
from octavo.execution.step import ExecutionFacts, RowRun, RunResult, Step, StepResult
from octavo.request import FinishReason, Request
from octavo.stats import STEP_TOKENS

IDLE_SECONDS = 0.5  # an idle engine turns its loop this often, so that its progress word says that it is alive
MASK_SECONDS = 0.0005  # and this often where all wait for masks, or for what is being compiled
NONFINITE = "The model gave a non-finite logit (NaN or infinity) for this request."
BARRED = "allowed_token_ids, bad_words and min_tokens left no token to choose from."


class StepRunner(Protocol):
    """execution.runner.Runner, or a scripted one in tests."""

    facts: ExecutionFacts

    def run(self, step: Step) -> StepResult:
        """Carry out a step."""


@dataclass(frozen=True)
class EngineSetup:
    """What start-up has built and decided. nodes: of a step, to predict the time of one (for the watch on hangs).
    watch: told the address of the control page (flight_record.py) before the first step. pinned: see EngineInfo.
    grammars: None: without."""

    runner: StepRunner
    scheduler: SchedulerConfig
    model_name: str
    cost: CostModel = field(default_factory=CostModel)
    summary: tuple[str, ...] = ()
    nodes: int = 1
    watch: Callable[[int], None] | None = None
    pinned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grammars: GrammarSetup | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a step of decode rows gave, in columns (messages.Tokens): nobody in it began or ended."""

    members: list[Sequence]
    indices: list[int]
    ids: list[int]

    def items(self) -> list[ChoiceOutput]:
        """The same as an object for each choice."""
        count = len(self.members)
        return [
            ChoiceOutput(sequence.request_id, sequence.choice, index, self.ids[at::count])
            for at, (sequence, index) in enumerate(zip(self.members, self.indices, strict=True))
        ]


class EngineCore:
    """One model, its requests, its steps. Not thread-safe: one thread calls it."""

    def __init__(self, setup: EngineSetup, flight: FlightRecord | None = None, epoch: int = 0) -> None:
        self.setup = setup
        self.epoch = epoch
        self.roster = Roster(setup.scheduler, setup.runner.facts)
        self.scheduler = Scheduler(self.roster, setup.cost)
        self.constraints = Constraints(setup.grammars, setup.runner.facts, self.roster, self.scheduler)
        self._stalled = False  # there was work, but nothing to run
        self._runner = setup.runner
        self._flight = flight
        self._recorded: list[Sequence] = []  # members of the last step that the flight record was told of
        if setup.watch is not None and flight is not None:
            setup.watch(flight.address)
        self._waiting_aborts: list[Abort] = []
        self._ended: list[ChoiceOutput] = []  # outputs of choices that ended between steps
        self._prompt_rows = self._generated = self._nonfinite = self._steps = 0
        self._drafts = self._drafted = self._accepted = 0
        self._native_seconds = self._engine_seconds = 0.0
        self._step_tokens, self._step_rows = [0] * (len(STEP_TOKENS) + 1), 0
        self._last: StepResult | None = None

    @property
    def info(self) -> EngineInfo:
        facts, roster = self._runner.facts, self.roster
        return EngineInfo(
            self.setup.model_name, roster.max_model_len, facts.vocab_size, self.setup.scheduler.eos_ids,
            facts.fingerprint, roster.cache.pool.total * roster.cache.block_tokens // len(facts.groups),
            self.setup.summary, facts.vector, {name: dict(values) for name, values in self.setup.pinned.items()},
        )  # fmt: skip

    @property
    def has_work(self) -> bool:
        return not self.roster.idle or bool(self._ended)

    @property
    def patience(self) -> float:
        """Seconds for which the loop may wait for messages."""
        if self.has_work:
            return MASK_SECONDS if self._stalled else 0.0
        return MASK_SECONDS if self.constraints.waits else IDLE_SECONDS

    def submit(self, request: Request, again: bool = False) -> None:
        """Take a request; InvalidRequest or QueueFull. again: see Roster.submit."""
        request.params.check_vocabulary(self._runner.facts.vocab_size)
        worst = max((*request.prompt_ids, *(i for r in request.resume for i in r.emitted_ids)), default=0)
        if worst >= self._runner.facts.vocab_size or min(request.prompt_ids, default=0) < 0:
            raise InvalidRequest("A token id of the prompt is outside the vocabulary.", param="prompt")
        if request.params.structured_outputs is not None:
            self.constraints.ask(request, again)
        else:
            self.roster.submit(request, again)

    def settle(self) -> list[tuple[str, OctavoError]]:
        """Between steps: what became of grammars that were compiled. Gives requests that are refused, and why."""
        settled = self.constraints.settle()
        for sequence, why in settled.failed:
            if sequence.place is not Place.DONE:
                self._ended.append(self._fail_constrained(sequence, why))
        return settled.refused

    def close(self) -> None:
        """End what works for this engine beside it."""
        self.constraints.close()

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request or one choice, in whatever state. Unknown and finished ones are no error: messages cross."""
        if self.scheduler.flight is not None:
            self._waiting_aborts.append(Abort(self.epoch, request_id, choice))
            return
        live = self.roster.requests.get(request_id)
        if live is None:
            if choice is None:
                self._ended += self.constraints.cancel(request_id)
            return
        for sequence in list(live.sequences):
            if sequence.place is not Place.DONE and choice in (None, sequence.choice):
                self._ended.append(self._end(sequence, FinishReason.ABORT))

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; running sequences go on."""
        self.roster.cache.reset()

    def step(self) -> list[ChoiceOutput] | Decoded:
        """Run one step. Gives the new ids of every choice, and what ended since the last one."""
        begin = time.perf_counter()
        outputs, self._ended = self._ended, []
        step = self.scheduler.schedule()
        self._stalled = step is None
        if step is None:
            return outputs
        self._record(step)
        assert self.scheduler.flight is not None
        self.constraints.before(step, self.scheduler.flight.members)
        faults.point("core.before_run")
        before = time.perf_counter()
        result = self._runner.run(step)
        after = time.perf_counter()
        if self._flight is not None:
            self._flight.end()
        faults.point("core.before_update")
        given = self.update(step, result)
        self._engine_seconds += time.perf_counter() - begin - (after - before)
        if not outputs:
            return given
        return outputs + (given.items() if isinstance(given, Decoded) else given)

    def _record(self, step: Step) -> None:
        """The flight record says what is about to run, before it may kill us."""
        if self._flight is None:
            return
        draft = self.scheduler.flight
        assert draft is not None
        if draft.members != self._recorded:  # lists made anew in each step, of sequences that equal themselves alone
            self._recorded = draft.members
            self._flight.name([sequence.live.digest for sequence in draft.members])
        rows = step.rows
        predicted = self.setup.cost.predict(rows, rows, prefill=rows > len(step.runs))
        ahead = step.loop if rows == len(step.runs) else max(1 + len(run.draft) for run in step.runs)
        self._flight.begin(step.number, predicted / self.setup.nodes, ahead)

    # What a step gave

    def update(self, step: Step, result: StepResult) -> list[ChoiceOutput] | Decoded:
        """Take the results of the step in flight into its sequences; gives their outputs."""
        draft = self.scheduler.step_done()
        outputs: list[ChoiceOutput] | Decoded = []
        columns = result.columns
        if result.aborted:
            self.scheduler.step_stopped(draft)
        else:
            if columns is None or columns.finished or any([sequence.silent for sequence in draft.members]):
                outputs = self._advance_each(draft.members, step, result)
            else:
                outputs = self._decode(draft.members, columns.ids)
            self._observe(step, result)
        self.constraints.after()
        if self._waiting_aborts:
            self._abort_waiting()
        return outputs

    def _abort_waiting(self) -> None:
        for abort in self._waiting_aborts:
            self.abort(abort.request, abort.choice)
        self._waiting_aborts.clear()

    def _decode(self, members: list[Sequence], ids: list[int]) -> Decoded:
        """The common step: a row of each, and nobody has begun or ended."""
        count, tokens = len(members), self.roster.cache.block_tokens
        loops = len(ids) // count
        indices = []
        for at, sequence in enumerate(members):
            indices.append(sequence.emitted)
            sequence.emitted += loops
            sequence.ids += ids[at::count]
            before = sequence.computed
            sequence.computed = after = before + loops
            if after // tokens > before // tokens:
                self.roster.cache.commit(sequence)
        if self.roster.constrained:  # then it was a loop of one step
            self.constraints.learn(members, ids)
        self._generated += len(ids)
        return Decoded(members, indices, ids)

    def _advance_each(self, members: list[Sequence], step: Step, result: StepResult) -> list[ChoiceOutput]:
        outputs = []
        tokens = self.roster.cache.block_tokens
        for sequence, run, given in zip(members, step.runs, result.runs, strict=True):
            output = self._advance(sequence, run, given)
            if output is not None:
                outputs.append(output)
            if sequence.place is Place.RUNNING and sequence.computed // tokens > run.start // tokens:
                self.roster.cache.commit(sequence)
        return outputs

    def _advance(self, sequence: Sequence, run: RowRun, given: RunResult) -> ChoiceOutput | None:
        """KV exists for the rows that ran, and the ids that were sampled are known."""
        if given.nonfinite:
            if given.barred and sequence.constrained:
                return self._fail_constrained(sequence, "no token may follow")
            return self._fail(sequence, BARRED if given.barred else NONFINITE)
        if run.draft:
            self._learn(sequence, run, given)
            if given.broken:
                return None
        ids, finish, stop = _until_end(sequence, given.token_ids)
        kept = len(ids)
        sequence.computed = run.start + run.count - len(run.draft) + max(0, kept - 1)
        if given.prompt_logprobs is not None and sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs += given.prompt_logprobs
            sequence.next_logprob += len(given.prompt_logprobs)
        if not run.sample:
            return None
        if given.late:
            lost = self.constraints.late(sequence)
            return self._fail_constrained(sequence, "no token may follow, or it is too complex") if lost else None
        if given.vector is not None:
            output = self._end(sequence, FinishReason.STOP)
            output.vector = given.vector
            return output
        sequence.ids += ids
        self._generated += kept
        if sequence.constrained and finish is None:
            self.constraints.learn([sequence], ids)
        if sequence.silent:
            sequence.silent = False
            output = self._output(sequence, ids, given, finish)
            output.stop_id = stop
            if sequence.live.held:
                self.roster.prompt_done(sequence)
        else:
            logprobs = given.logprobs and given.logprobs[:kept]
            output = ChoiceOutput(sequence.request_id, sequence.choice, sequence.emitted, ids, logprobs, finish, stop)
        if given.mu is not None:
            sequence.mu = output.mu = given.mu
        sequence.emitted += kept
        if finish is not None:
            self.roster.cache.commit(sequence)
            self.roster.finish(sequence)
        return output

    def _fail_constrained(self, sequence: Sequence, why: str) -> ChoiceOutput:
        """Its grammar leaves no way on: this choice ends with an error."""
        error, output = failed(why), self._end(sequence, FinishReason.ERROR)
        output.error, output.kind = error.message, type(error).__name__
        return output

    def _learn(self, sequence: Sequence, run: RowRun, given: RunResult) -> None:
        """What became of a draft. If a row was non-finite, it is decided without drafts whose fault that is."""
        drafter = sequence.drafter
        assert drafter is not None
        self._drafts += 1
        if given.broken:
            drafter.off = True
            self.scheduler.recompute(sequence)
        else:
            drafter.learn(len(run.draft), len(given.token_ids) - 1)

    def _output(
        self, sequence: Sequence, ids: list[int], given: RunResult | None, finish: FinishReason | None
    ) -> ChoiceOutput:
        live = sequence.live
        logprobs = None if given is None or given.logprobs is None else given.logprobs[: len(ids)]
        output = ChoiceOutput(sequence.request_id, sequence.choice, sequence.emitted, ids, logprobs, finish)
        if sequence.choice == 0 and not live.prompt_told:
            live.prompt_told = True
            output.prompt = PromptOutput(max(0, live.cached_tokens), sequence.prompt_logprobs, live.queued)
            sequence.prompt_logprobs = None
        return output

    def _end(self, sequence: Sequence, finish: FinishReason) -> ChoiceOutput:
        output = self._output(sequence, [], None, finish)
        self.roster.finish(sequence)
        return output

    def _fail(self, sequence: Sequence, why: str) -> ChoiceOutput:
        """A row had no logit to choose from: this choice ends with an error, and nobody finds its blocks."""
        self.roster.cache.disown(sequence)
        failed = [sequence, *(s for s in sequence.live.sequences if s.place is Place.HELD)]  # these would fail alike
        self._nonfinite += len(failed)
        outputs = [self._end(each, FinishReason.ERROR) for each in failed[::-1]]
        for output in outputs:
            output.error = why
        self._ended += outputs[:-1]
        return outputs[-1]

    def _observe(self, step: Step, result: StepResult) -> None:
        stats = result.stats
        self._steps += 1
        self._last = result
        self._prompt_rows += stats.prefill_rows
        self._drafted += stats.draft_rows
        self._accepted += stats.accepted
        self._native_seconds += stats.native_seconds
        loops = max(1, stats.loops)
        rows = stats.prefill_rows + stats.decode_rows // loops
        self._step_tokens[bisect_left(STEP_TOKENS, rows + stats.draft_rows)] += loops
        self._step_rows += (rows + stats.draft_rows) * loops
        if rows and stats.native_seconds > 0 and not stats.draft_rows:  # drafted rows are neither decode nor prefill
            seconds = stats.native_seconds / loops
            self.setup.cost.observe(rows, stats.visible_keys, stats.prefill_rows > 0, seconds)

    def stats(self) -> EngineStats:
        pool, counters = self.roster.cache.pool, self.scheduler.counters
        masks, nanoseconds = self.constraints.cost
        return EngineStats(
            running=len(self.roster.running),
            waiting=self.roster.waiting,
            blocks_total=pool.total,
            blocks_free=pool.free,
            blocks_cached=pool.cached,
            blocks_owned=pool.owned,
            steps=self._steps,
            prompt_tokens=self._prompt_rows,
            generated_tokens=self._generated,
            preemptions=counters.preemptions,
            queried_tokens=counters.queried_tokens,
            hit_tokens=counters.hit_tokens,
            nonfinite=self._nonfinite,
            drafts=self._drafts,
            draft_tokens=self._drafted,
            accepted_tokens=self._accepted,
            native_seconds=self._native_seconds,
            engine_seconds=self._engine_seconds,
            masks=masks,
            mask_seconds=nanoseconds * 1e-9,
            step_tokens=list(self._step_tokens),
            step_rows=self._step_rows,
            last_step=None if self._last is None else self._last.stats,
        )


def _until_end(sequence: Sequence, ids: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
    """The ids up to the end of the sequence, if it is among them; why it ended, and the stop id. The executor leaves
    its loop at the end of a sequence; ids after it count for nothing."""
    known = len(sequence.ids)
    for kept, token in enumerate(ids, 1):
        if token in sequence.stop_ids:
            return ids[:kept], FinishReason.STOP, token
        if known + kept >= sequence.length_limit:
            return ids[:kept], FinishReason.LENGTH, None
    return ids, None, None
