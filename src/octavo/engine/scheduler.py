"""Which tokens run next: continuous batching, decodes first, prefill chunks in what is left of the step's time.

Sequences are served best first (priority, then arrival); blocks are taken in that order, so whoever must give up its
blocks is later in the order and not yet part of the step. It knows ids and blocks; where sequences wait is the roster's
affair, text, sockets and the executor's arrays are others'. One step is in flight at most.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from octavo.engine.cache_groups import Draft
from octavo.engine.cost_model import CostModel
from octavo.engine.drafting import Drafting
from octavo.engine.roster import BY_ORDER, MIN_PREFILL, Roster
from octavo.engine.sequence import Place, Sequence
from octavo.execution.step import PAGE_TOKENS, RowRun, SlotOpen, Step

RUN_AHEAD_SECONDS = 0.05  # of decode steps in one native call (docs/decisions/0006); an arrival ends it after a step
MOST_OPENINGS = 2**31 - 1  # an int32 of the slot table
URGENT = -(2**63)  # before every priority


@dataclass(slots=True)
class _Budget:
    """What prefill may still take of a step."""

    rows: int
    seconds: float
    given: int = 0  # prefill rows in the step so far
    others: int = 0  # sequences behind the present one that want prefill


@dataclass(slots=True)
class Counters:
    """Totals since start."""

    preemptions: int = 0
    queried_tokens: int = 0  # prompt tokens looked up in the prefix cache
    hit_tokens: int = 0
    forks: int = 0
    admitted: int = 0


class Scheduler:
    """Makes the steps of a roster. `schedule` puts one in flight, `step_done` ends it; between the two nothing that the
    step reads may change, so aborts wait."""

    def __init__(self, roster: Roster, cost: CostModel) -> None:
        self.roster = roster
        self.cache = roster.cache
        self.cost = cost
        self.counters = Counters()
        self._drafting = Drafting(roster.config, roster.cache, cost)
        self.flight: Draft | None = None  # the step in flight
        self.number = 0  # of the last step
        self._full = False  # someone waits, and only the end of a running sequence can let it in
        self._zero_again: list[int] = []
        self.mask_there: Callable[[Sequence], bool] = lambda sequence: True  # for sequences in roster.late

    # A step is made

    def schedule(self) -> Step | None:
        """The next step, or None when nothing is to be done. It is in flight until step_done()."""
        assert self.flight is None, "one step at a time"
        roster = self.roster
        if not (roster.running or roster.queue or roster.resumable or roster.forks):
            return None
        draft = Draft()
        loop = self._decode_all(draft) or self._mixed(draft)
        if not (draft.runs or draft.zero_pages):  # all wait for their masks
            return None
        self.number += 1
        self.flight = draft
        draft.closes, roster.closes = roster.closes, []
        return Step(
            self.number, tuple(draft.runs), tuple(draft.opens), tuple(draft.closes), tuple(draft.pages),
            tuple(draft.zero_pages), tuple(draft.copy_pages), loop,
        )  # fmt: skip

    def _decode_all(self, draft: Draft) -> int:
        """The common step: a row of each running sequence, where all decode, nobody waits and nobody guesses. How many
        decode steps may run natively; 0, and nothing has been done, where it is not so."""
        roster = self.roster
        if not roster.running or roster.config.proposer or self._zero_again:
            return 0
        if roster.queue or roster.resumable or roster.forks or roster.late:
            return 0
        keys, left, short = 0, 1 if roster.constrained else roster.config.run_ahead, []
        runs = []
        for sequence in roster.running:  # once, and little of each: it comes from memory
            known, start = len(sequence.ids), sequence.computed
            if known - start != 1 or sequence.next_logprob < sequence.prompt_len:
                return 0
            keys += known
            if sequence.length_limit - known < left:
                left = sequence.length_limit - known
            if sequence.room - start < roster.config.run_ahead:
                short.append(sequence)
            runs.append(RowRun(sequence.slot, start, 1, True))
        if not self._reserve(short, 1, draft):
            return 0
        draft.members, draft.runs = roster.running[:], runs
        self._full = False
        return self._ahead(short, left, len(runs), keys, draft)

    def _mixed(self, draft: Draft) -> int:
        """A step of whatever there is to do; how many decode steps may run natively."""
        roster = self.roster
        self._full = False
        decodes = keys = chunks = 0
        for sequence in roster.running:
            if len(sequence.ids) - sequence.computed == 1:
                decodes += 1
                keys += len(sequence.ids)
            else:
                chunks += 1
        left = roster.config.step_seconds - self.cost.predict(decodes, keys, prefill=True)
        waits = len(roster.queue) + len(roster.resumable)
        budget = _Budget(roster.max_rows - decodes, left, others=chunks + waits)
        self._drafting.begin(decodes)
        if not roster.running:
            self._zero_again = []  # nobody owns these pages any more
        preempted = self._run_running(draft, budget)
        if not preempted and not self._zero_again:  # a repeated step has pages enough to zero
            self._admit(draft, budget)
        loop = self._run_ahead(draft, keys) if budget.given == 0 and draft.runs else 1
        if self._zero_again:
            draft.zero_pages = list(dict.fromkeys(self._zero_again + draft.zero_pages))
            self._zero_again = []
        return loop

    def _run_running(self, draft: Draft, budget: _Budget) -> bool:
        """Rows for running sequences, best first. True if one had to give up its blocks."""
        preempted = False
        i = 0
        while i < len(self.roster.running):
            sequence = self.roster.running[i]
            if sequence in self.roster.late and not self.mask_there(sequence):
                i += 1
                continue
            remaining = len(sequence.ids) - sequence.computed
            guessed: tuple[int, ...] = ()
            if remaining == 1:
                if self._drafting.open:
                    guessed = self._draft(sequence, budget)
                count = 1 + len(guessed)
            else:
                budget.others -= 1
                count = self._chunk(sequence.computed, remaining, budget, self._outranked(sequence))
                if count == 0:
                    i += 1
                    continue
            end = sequence.computed + count
            while end > sequence.room and not self.cache.grow(sequence, end, draft):
                victim = self.roster.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    return True
            self._add_run(sequence, count, draft, budget, decode=remaining == 1, guessed=guessed)
            i += 1
        return preempted

    def _draft(self, sequence: Sequence, budget: _Budget) -> tuple[int, ...]:
        """Guessed ids behind the last known one, in rows that nobody who waits is owed."""
        rows = budget.rows
        if budget.others > 0 or self.roster.forks:
            rows -= max(0, MIN_PREFILL - budget.given) + len(self.roster.free_slots)
        guessed = self._drafting.of(sequence, rows, self.cache.pool.available - len(self.roster.running))
        if guessed:
            budget.rows -= len(guessed)
            budget.seconds -= self.cost.prefill_seconds(len(guessed), sequence.computed)
        return guessed

    def _outranked(self, sequence: Sequence) -> bool:
        best = self.roster.queue.best_priority()
        return best is not None and best < sequence.order[0] and bool(self.roster.free_slots)

    def _chunk(self, start: int, remaining: int, budget: _Budget, outranked: bool = False) -> int:
        """Prefill rows for a sequence: what fits the time, at least what the step owes, at most the rows.

        Of sequences that must be whole as many as fit the time, and one at least.
        """
        owed = max(0, MIN_PREFILL - budget.given)
        fit = self.cost.rows_within(budget.seconds, start)
        if self.roster.whole:
            return remaining if remaining <= budget.rows and (remaining <= fit or budget.given == 0) else 0
        if budget.others > 0 and remaining > 2 * fit:
            fit //= 2  # a long prompt leaves half of the time to those behind it
        if outranked:
            fit = 0
        count = min(remaining, budget.rows, max(owed, fit))
        if count < remaining:
            # Whole pages from the first chunk on: later chunks then start on a page, and tiles are full.
            aligned = (start + count) // PAGE_TOKENS * PAGE_TOKENS - start
            count = aligned if aligned >= max(1, min(owed, count)) else count
        return count

    def _add_run(
        self, sequence: Sequence, count: int, draft: Draft, budget: _Budget, *, decode: bool,
        guessed: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        start = sequence.computed
        if not decode:
            budget.rows -= count
            budget.given += count
            budget.seconds -= self.cost.prefill_seconds(count, start)
        first = None
        if sequence.next_logprob < sequence.prompt_len and start + count >= sequence.next_logprob:
            first = sequence.next_logprob
        draft.members.append(sequence)
        sample = start + count == len(sequence.ids) + len(guessed)
        draft.runs.append(RowRun(sequence.slot, start, count, sample, first, guessed))

    def _preempt(self, victim: Sequence) -> None:
        """Blocks and slot back; it will be recomputed. The caller has taken it from `running`."""
        self.roster.leave_slot(victim)
        self.roster.make_resumable(victim)
        self.counters.preemptions += 1

    # Admission

    def _admit(self, draft: Draft, budget: _Budget) -> None:
        """Let in who waits while slots, rows and blocks last: choices that share a prompt, then by order."""
        self._admit_forks(draft, budget)
        if self.roster.forks:
            return
        while self.roster.resumable or self.roster.queue:
            if not self.roster.free_slots:
                self._full = True
                return
            if budget.rows <= 0:
                return
            queued = self.roster.queue.peek(self.roster.clock(), self.roster.running)
            sequence = min([*self.roster.resumable[:1], *([queued] if queued else [])], key=BY_ORDER)
            budget.others -= 1
            if not self._admit_one(sequence, draft, budget):
                return

    def _admit_forks(self, draft: Draft, budget: _Budget) -> None:
        tokens = self.roster.config.block_size
        while self.roster.forks and self.roster.free_slots and budget.rows > 0:
            sequence = self.roster.forks[0]
            source = sequence.source
            if source is None or not self.cache.can_fork(source, sequence):
                self.roster.forks.popleft()
                sequence.source = None
                self.roster.make_resumable(sequence)
                continue
            # Besides the copied blocks a block a group is left, so that a fork does not preempt someone at once.
            if self.cache.pool.available < 2 * len(self.cache.windows):
                self._full = True
                return
            self.roster.forks.popleft()
            sequence.source = None
            sequence.slot = self.roster.free_slots.pop()
            self.cache.fork(source, sequence, draft)
            count = min(sequence.remaining, tokens - sequence.computed % tokens, budget.rows)
            self.cache.append_all(sequence, draft)
            grown = self.cache.grow(sequence, sequence.computed + count, draft)
            assert grown, "fork looked at the pool"
            self._enter(sequence, count, draft, budget)
            draft.forked.append(sequence)
            self.counters.forks += 1
        if self.roster.forks and not self.roster.free_slots:
            self._full = True

    def _admit_one(self, sequence: Sequence, draft: Draft, budget: _Budget) -> bool:
        """Admit a sequence if its known ids fit beside what running prompts still need."""
        pool, cache = self.cache.pool, self.cache
        promised = sum(
            max(0, cache.blocks_needed(len(s.ids)) - s.held_blocks()) for s in self.roster.running if s.remaining > 1
        )
        spare = min(len(self.roster.running), pool.total // 32)  # running decodes will want a block each before long
        slack = pool.available - promised - spare
        if self.roster.running and sequence.slack_seen is not None and slack <= sequence.slack_seen:
            self._full = True
            return False
        nodes = cache.match(sequence)
        shared, unowned = cache.unowned_hits(nodes)
        cost = max(0, cache.blocks_needed(len(sequence.ids)) - shared) + unowned
        if cost > slack and self.roster.running:
            sequence.slack_seen = slack
            self._full = True
            return False
        start = len(nodes) * self.roster.config.block_size
        remaining = len(sequence.ids) - start
        count = self._chunk(start, remaining, budget)
        if count <= 0:
            return False
        self._take_from_waiting(sequence, start)
        sequence.slot = self.roster.free_slots.pop()
        cache.take_hit(sequence, nodes)
        cache.append_all(sequence, draft)
        grown = cache.grow(sequence, start + count, draft)
        assert grown, "admission looked at the pool"
        self._count_admission(sequence, start)
        self._enter(sequence, count, draft, budget)
        return True

    def _take_from_waiting(self, sequence: Sequence, hit: int) -> None:
        if sequence.place is Place.QUEUED:
            now = self.roster.clock()
            self.roster.queue.pop(sequence, now, hit)
            if now - sequence.live.arrived_at > self.roster.config.patience:
                for each in sequence.live.sequences:  # else preemption would send it back behind every urgent request
                    each.order = (URGENT, *each.order[1:])
        else:
            self.roster.resumable.remove(sequence)

    def _count_admission(self, sequence: Sequence, hit: int) -> None:
        live = sequence.live
        self.counters.queried_tokens += len(sequence.ids)
        self.counters.hit_tokens += hit
        if live.cached_tokens < 0:
            live.cached_tokens = min(hit, sequence.prompt_len)
            live.queued = self.roster.clock() - live.arrived_at
            self.counters.admitted += 1

    def _enter(self, sequence: Sequence, count: int, draft: Draft, budget: _Budget) -> None:
        live = sequence.live
        sequence.place = Place.RUNNING
        sequence.slack_seen = None
        if sequence.constrained:
            self.roster.constrained += 1
            self.roster.openings = sequence.opening = self.roster.openings % MOST_OPENINGS + 1
        insort(self.roster.running, sequence, key=BY_ORDER)
        draft.opens.append(
            SlotOpen(
                sequence.slot, tuple(sequence.ids), sequence.prompt_len, live.request.params, live.request.seed,
                sequence.choice, sequence.length_limit, live.slot_stop_ids,
                live.request.bad_word_ids, live.request.breaker_bits, sequence.mu, live.request.second,
                sequence.opening,
            )
        )  # fmt: skip
        decode = sequence.remaining == 1
        if decode:
            budget.rows -= 1
        self._add_run(sequence, count, draft, budget, decode=decode)

    # Run-ahead

    def _run_ahead(self, draft: Draft, keys: int) -> int:
        """How many decode steps may run natively: when nobody could be let in meanwhile, and blocks are there."""
        waits = self.roster.queue or self.roster.resumable or self.roster.forks
        if waits and not self._full:
            return 1
        if len(draft.runs) != len(self.roster.running):
            return 1
        left = 1 if self.roster.constrained else self.roster.config.run_ahead
        for sequence, run in zip(draft.members, draft.runs, strict=True):
            left = min(left, sequence.length_limit - len(sequence.ids))
            if run.count != 1 or not run.sample or (sequence.drafter is not None and sequence.drafter.copying):
                return 1
        return self._ahead(draft.members, left, len(draft.runs), keys, draft)

    def _ahead(self, short: list[Sequence], left: int, rows: int, keys: int, draft: Draft) -> int:
        """At most `left` steps of `rows` decode rows, with their blocks; `short`: who may lack some for them."""
        loop = min(left, max(1, int(RUN_AHEAD_SECONDS / self.cost.predict(rows, keys, prefill=False))))
        while loop > 1 and not self._reserve(short, loop, draft):
            loop //= 2
        return max(1, loop)

    def _reserve(self, sequences: list[Sequence], steps: int, draft: Draft) -> bool:
        """Blocks for so many steps of each, or False and nothing changed."""
        missing = 0
        for sequence in sequences:
            missing += self.cache.shortage(sequence, sequence.computed + steps)
        if missing > self.cache.pool.available:
            return False
        for sequence in sequences:
            self.cache.grow(sequence, sequence.computed + steps, draft)
        return True

    # A step has ended

    def step_done(self) -> Draft:
        """The step in flight is over; its members may be changed again."""
        draft = self.flight
        assert draft is not None, "no step in flight"
        self.flight = None
        return draft

    def recompute(self, sequence: Sequence) -> None:
        """Blocks and slot of a running sequence back: what is in them must not be read."""
        self.roster.running.remove(sequence)
        self._preempt(sequence)

    def step_stopped(self, draft: Draft) -> None:
        """The step was stopped inside and committed nothing: its rows stay to be computed. Pages are zeroed again;
        copies are not repeated, as their sources may change owner first: such sequences start anew."""
        self._zero_again.extend(draft.zero_pages)
        for sequence in draft.forked:
            if sequence.place is Place.RUNNING:
                self.recompute(sequence)
