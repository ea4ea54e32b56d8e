"""A runner that computes nothing and believes nothing: it keeps a model of every page and checks each Step against it.

An entry of a page is the digest of the whole prefix up to its position, as KV depends on it. What a row sees must be
exactly the prefix of its sequence; a stale page, a wrong share or a forgotten copy shows as a wrong digest. Tokens are
a function of the prefix, the seed and the choice, so a brute-force `alone` gives what any schedule must give.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.engine.core import EngineSetup
from octavo.engine.roster import SchedulerConfig
from octavo.execution.step import (
    PAGE_TOKENS,
    Columns,
    ExecutionFacts,
    PagedGroup,
    RowRun,
    RunResult,
    SlotOpen,
    Step,
    StepResult,
    TokenLogprobs,
)
from octavo.request import FinishReason, Request
from octavo.stats import StepStats

NAN = -1  # the entry of a row that came out non-finite
GUESSED = -2  # the entry of a drafted row that does not count
MASK = (1 << 61) - 1


def chain(parent: int, token: int) -> int:
    return hash((parent, token, 0x9E3779B9)) & MASK


def next_token(prefix: int, seed: int, choice: int, vocab: int, forbidden: frozenset[int] | set[int]) -> int:
    """The id after a prefix; about one in `vocab` is a stop id unless forbidden."""
    token = hash((prefix, seed, choice)) % vocab
    while token in forbidden:
        token = (token + 1) % vocab
    return token


def alone(
    request: Request, vocab: int, eos: tuple[int, ...], max_model_len: int
) -> list[tuple[list[int], FinishReason]]:
    """What each choice of a request gives when nothing else exists: no batch, no cache, no chunks."""
    params = request.params
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos))
    limit = (
        max_model_len if params.max_tokens is None else min(max_model_len, len(request.prompt_ids) + params.max_tokens)
    )
    answers = []
    for choice in range(params.n):
        emitted = next((list(r.emitted_ids) for r in request.resume if r.choice == choice), [])
        prefix = 0
        for token in (*request.prompt_ids, *emitted):
            prefix = chain(prefix, token)
        while True:
            known = len(request.prompt_ids) + len(emitted)
            forbidden = stops if known < len(request.prompt_ids) + params.min_tokens else set()
            token = next_token(prefix, request.seed, choice, vocab, forbidden)
            emitted.append(token)
            prefix = chain(prefix, token)
            if token in stops:
                answers.append((emitted, FinishReason.STOP))
                break
            if known + 1 >= limit:
                answers.append((emitted, FinishReason.LENGTH))
                break
    return answers


@dataclass
class Slot:
    opened: SlotOpen
    ids: list[int]
    prefixes: list[int]  # digest of ids[: i + 1]
    computed: int | None = None
    tables: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))  # group -> page index -> page


class ScriptedRunner:
    """Implements StepRunner. Raises AssertionError at the first Step that is wrong.

    poison: seeds whose sampled rows come out non-finite. stop_rate: share of steps that are stopped and commit nothing.
    leave_rate: share of run-ahead steps after which an arrival ends the loop.
    """

    def __init__(
        self, facts: ExecutionFacts, *, stop_rate: float = 0.0, leave_rate: float = 0.0, seed: int = 0
    ) -> None:
        self.facts = facts
        self.slots: dict[int, Slot] = {}
        self.entries: dict[int, list[int | None]] = {page: [None] * PAGE_TOKENS for page in range(1, facts.pages)}
        self.users: dict[int, set[int]] = defaultdict(set)  # page -> slots that have it in a table
        self.poison: set[int] = set()
        self.steps: list[Step] = []  # the last few
        self.rows = 0
        self.loops = 0
        self._stale: set[tuple[int, int]] = set()  # entries that may be there already: of copies, of stopped steps
        self._owed_zero: set[int] = set()  # pages of stopped steps that were not zeroed
        self._random = random.Random(seed)
        self._stop_rate, self._leave_rate = stop_rate, leave_rate

    def run(self, step: Step) -> StepResult:
        self.steps = [*self.steps[-20:], step]
        self._check_shape(step)
        for slot in step.closes:
            self._close(slot)
        for opened in step.opens:
            self._open(opened)
        stopped = self._random.random() < self._stop_rate
        self._pages(step, skip_zero=stopped and self._random.random() < 0.5)
        if stopped:
            self._stop(step)
            return StepResult(
                step.number, tuple(RunResult(r.slot) for r in step.runs), self._stats(step, 0), aborted=True
            )
        self._owed_zero = {page for page in self._owed_zero if self.users.get(page)}  # who gets one later zeroes it
        assert not self._owed_zero, f"pages {self._owed_zero} were not zeroed again after a stopped step"
        results = [RunResult(run.slot) for run in step.runs]
        loops = 0
        for k in range(step.loop):
            ended = False
            for run, result in zip(step.runs, results, strict=True):
                ended |= self._row_run(run, result, k)
            loops += 1
            if ended or self._random.random() < self._leave_rate:
                break
        self.loops += loops
        stats = self._stats(step, loops, results)
        plain = all(run.count == 1 and run.sample and not run.draft for run in step.runs) and all(
            result == RunResult(result.slot, result.token_ids) and len(result.token_ids) == loops for result in results
        )
        if plain and self._random.random() < 0.8:  # the engine takes both
            ids = [result.token_ids[k] for k in range(loops) for result in results]
            return StepResult(step.number, (), stats, columns=Columns([run.slot for run in step.runs], ids, ended))
        return StepResult(step.number, tuple(results), stats)

    def _check_shape(self, step: Step) -> None:
        facts = self.facts
        assert step.runs, "an empty step"
        assert step.rows <= facts.max_rows and len(step.runs) <= facts.max_seqs
        slots = [run.slot for run in step.runs]
        assert len(set(slots)) == len(slots), "two runs of one slot"
        assert len(step.closes) == len(set(step.closes))
        assert 1 <= step.loop <= 8
        if step.loop > 1:
            assert all(run.count == 1 and run.sample for run in step.runs)
        self.rows += step.rows

    def _close(self, slot: int) -> None:
        gone = self.slots.pop(slot)
        for table in gone.tables.values():
            for page in table.values():
                self.users[page].discard(slot)

    def _open(self, opened: SlotOpen) -> None:
        assert 0 <= opened.slot < self.facts.max_seqs and opened.slot not in self.slots, "slot is in use"
        assert len(opened.ids) < opened.length_limit <= self.facts.max_model_len
        prefixes, prefix = [], 0
        for token in opened.ids:
            prefix = chain(prefix, token)
            prefixes.append(prefix)
        self.slots[opened.slot] = Slot(opened, list(opened.ids), prefixes)

    def _pages(self, step: Step, skip_zero: bool) -> None:
        zeroed = set(step.zero_pages)
        assert len(zeroed) == len(step.zero_pages), "a page is zeroed twice"
        given = {page for added in step.pages for page in added.pages}
        for page in zeroed:
            assert 0 < page < self.facts.pages
            # A page changes owner: whoever had it must not see it any more. (Else a stopped step is repeated.)
            for user in self.users.pop(page, set()) if page in given else ():
                for table in self.slots[user].tables.values():
                    for index in [i for i, p in table.items() if p == page]:
                        del table[index]
            if not skip_zero:
                self.entries[page] = [None] * PAGE_TOKENS
                self._stale -= {(page, i) for i in range(PAGE_TOKENS)}
        self._owed_zero = self._owed_zero | zeroed if skip_zero else self._owed_zero - zeroed
        for added in step.pages:
            slot = self.slots[added.slot]
            table = slot.tables[added.group]
            assert added.first == 0 or not table or added.first == max(table) + 1, "pages are not contiguous"
            for index, page in enumerate(added.pages, added.first):
                assert 0 < page < self.facts.pages and index not in table
                assert (index + 1) * PAGE_TOKENS < self.facts.max_model_len + PAGE_TOKENS, "a page beyond the context"
                if page not in zeroed:
                    assert None not in self.entries[page], (
                        "a page that is shared is not full, or one that is new not zeroed"
                    )
                table[index] = page
                self.users[page].add(added.slot)
        for source, target in step.copy_pages:
            assert target in zeroed and len(self.users[target]) == 1 and source not in zeroed
            if not skip_zero:
                self.entries[target] = list(self.entries[source])
                self._stale |= {(target, i) for i, entry in enumerate(self.entries[target]) if entry is not None}

    def _stop(self, step: Step) -> None:
        """Some rows were written, none is committed; a repetition writes the same again."""
        if not self._owed_zero:
            for run in step.runs[: self._random.randrange(len(step.runs) + 1)]:
                self._check_start(run)
                known = run.start + run.count - len(run.draft)
                for position in range(run.start, known):
                    self._write(run.slot, position, repeat=True)
                for position in range(known, run.start + run.count):
                    self._write(run.slot, position, repeat=True, value=GUESSED)
        for run in step.runs:
            if self.slots[run.slot].computed is None:
                self.slots[run.slot].computed = run.start

    def _check_start(self, run: RowRun) -> None:
        slot = self.slots[run.slot]
        assert slot.computed is None or slot.computed == run.start, (
            f"rows start at {run.start}, KV ends at {slot.computed}"
        )
        end = run.start + run.count - len(run.draft)
        assert run.start < end <= len(slot.ids)
        assert run.sample == (end == len(slot.ids))
        if run.draft:
            assert end == run.start + 1 and run.prompt_logprobs_from is None
            assert end + len(run.draft) < slot.opened.length_limit, "a draft that cannot be used"

    def _row_run(self, run: RowRun, result: RunResult, k: int) -> bool:
        """Compute the rows of a run (in the k-th loop its next row); True if the sequence ended."""
        slot = self.slots[run.slot]
        start, count = run.start + k, run.count - len(run.draft) if k == 0 else 1
        if k == 0:
            self._check_start(run)
        for position in range(start, start + count):
            self._write(run.slot, position)
        self._check_visible(slot, start, start + count)
        slot.computed = start + count
        if run.prompt_logprobs_from is not None and k == 0:
            assert start < run.prompt_logprobs_from <= start + count
            asked = range(run.prompt_logprobs_from, min(start + count, slot.opened.prompt_len - 1) + 1)
            result.prompt_logprobs = [TokenLogprobs(slot.ids[p], -(slot.prefixes[p - 1] % 997) / 100, 1) for p in asked]
        ended = run.sample and self._sample(slot, result)
        for position, guess in enumerate(run.draft, start + count):
            if not ended and len(slot.ids) == position + 1 and slot.ids[position] == guess:
                self._write(run.slot, position)
                self._check_visible(slot, position, position + 1)
                slot.computed = position + 1
                ended = self._sample(slot, result)
            else:
                self._write(run.slot, position, value=GUESSED)
        if run.draft and result.nonfinite:
            result.broken, result.nonfinite, result.token_ids, result.logprobs = True, False, [], None
        return ended

    def _sample(self, slot: Slot, result: RunResult) -> bool:
        opened, params = slot.opened, slot.opened.params
        if opened.seed in self.poison:
            result.nonfinite = True
            return True
        forbidden = set(opened.stop_ids) if len(slot.ids) < opened.prompt_len + params.min_tokens else set()
        token = next_token(slot.prefixes[-1], opened.seed, opened.choice, self.facts.vocab_size, forbidden)
        slot.ids.append(token)
        slot.prefixes.append(chain(slot.prefixes[-1], token))
        result.token_ids.append(token)
        if params.logprobs is not None:
            result.logprobs = result.logprobs or []
            result.logprobs.append(TokenLogprobs(token, -(slot.prefixes[-2] % 997) / 100, 1))
        return token in opened.stop_ids or len(slot.ids) >= opened.length_limit

    def _write(self, number: int, position: int, repeat: bool = False, value: int | None = None) -> None:
        """An entry of every group; a given `value` may be written over."""
        slot = self.slots[number]
        poisoned = slot.opened.seed in self.poison and position == len(slot.ids) - 1
        repeat = repeat or value is not None
        value = value if value is not None else NAN if poisoned else slot.prefixes[position]
        for group in range(len(self.facts.groups)):
            page = slot.tables[group].get(position // PAGE_TOKENS)
            assert page is not None, f"no page for position {position} in group {group}"
            assert self.users[page] == {number}, "a shared page is written to"
            place = (page, position % PAGE_TOKENS)
            fresh = self.entries[page][place[1]] is None
            assert fresh or place in self._stale, f"KV of position {position} is computed twice without need"
            self.entries[page][place[1]] = value
            if repeat:
                self._stale.add(place)
            else:
                self._stale.discard(place)

    def _check_visible(self, slot: Slot, start: int, end: int) -> None:
        poisoned = slot.opened.seed in self.poison
        for group in self.facts.groups:
            low = max(0, start - group.window + 1) if group.window else 0
            table = slot.tables[group.index]
            for position in range(low, end):
                page = table.get(position // PAGE_TOKENS)
                assert page is not None, f"the page of visible position {position} is gone"
                entry = self.entries[page][position % PAGE_TOKENS]
                assert entry == slot.prefixes[position] or (poisoned and entry == NAN), f"wrong KV at {position}"

    def _stats(self, step: Step, loops: int, results: Sequence[RunResult] = ()) -> StepStats:
        decode = sum(1 for run in step.runs if run.count - len(run.draft) == 1 and run.sample)
        drafted = sum(len(run.draft) for run in step.runs)
        accepted = sum(
            max(0, len(r.token_ids) - 1) for run, r in zip(step.runs, results, strict=False) if run.draft
        )  # fmt: skip
        seconds = 1e-3 * max(1, loops) + 1e-4 * step.rows
        return StepStats(
            step.number, step.rows - decode - drafted, decode * max(1, loops), drafted, accepted, len(step.runs),
            step.rows, loops, seconds, seconds,
        )  # fmt: skip


def make_facts(*, pages: int = 64, windows: tuple[int, ...] = (0,), max_rows: int = 128, max_seqs: int = 8,
               max_model_len: int = 160, vocab: int = 24) -> ExecutionFacts:  # fmt: skip
    groups = tuple(PagedGroup("sliding" if w else "full", i, w) for i, w in enumerate(windows))
    return ExecutionFacts(groups, pages, max_rows, max_seqs, max_model_len, vocab, "scripted")


def build(options: dict[str, object]) -> EngineSetup:
    """The factory of the supervisor's tests: options are `pages`, `delay` (seconds a step) and `fail`."""
    import time

    runner = ScriptedRunner(make_facts(pages=int(str(options.get("pages", 256))), max_model_len=2048, vocab=1000))
    delay = float(str(options.get("delay", 0.0)))
    plain = runner.run

    def slow(step: Step) -> StepResult:
        time.sleep(delay)
        return plain(step)

    if delay:
        runner.run = slow  # type: ignore[method-assign]
    if message := options.get("fail"):
        from octavo.errors import DoesNotFit

        raise DoesNotFit(str(message))
    return EngineSetup(runner, SchedulerConfig(secret=b"s" * 32, eos_ids=(0,), run_ahead=1), "scripted")
