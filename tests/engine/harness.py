"""A core over a scripted runner, with the books that a brute-force model keeps: what each request must give, who owns
what, and that nobody waits for ever."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.engine.core import Decoded, EngineCore, EngineSetup
from octavo.engine.cost_model import CostModel
from octavo.engine.messages import ChoiceOutput
from octavo.engine.roster import MIN_PREFILL, SchedulerConfig
from octavo.engine.sequence import Place
from octavo.errors import QueueFull
from octavo.execution.step import ExecutionFacts
from octavo.request import FinishReason, Request
from octavo.sampling_params import SamplingParams
from octavo.speculation.proposer import NOTHING, Proposal
from tests.engine.scripted_runner import ScriptedRunner, alone, chain, make_facts

EOS = (0,)


def items(given: list[ChoiceOutput] | Decoded) -> list[ChoiceOutput]:
    """What a step gave, as an object for each choice."""
    return given.items() if isinstance(given, Decoded) else given


@dataclass
class Book:
    """What is known of a request from the outside."""

    request: Request
    expected: list[tuple[list[int], FinishReason]]
    answers: dict[int, list[int]] = field(default_factory=dict)
    finishes: dict[int, ChoiceOutput] = field(default_factory=dict)
    aborted: set[int] = field(default_factory=set)
    prompt: object = None


class Guesses:
    """Guesses at the answers of the books: each id is right with probability `good`."""

    def __init__(self, books: dict[str, Book], good: float, chance: random.Random) -> None:
        self._books, self._good, self._random = books, good, chance

    def propose(self, ids: Sequence[int], limit: int) -> Proposal:
        for book in reversed(self._books.values()):
            for answer, _ in book.expected:
                whole = [*book.request.prompt_ids, *answer]
                if len(whole) > len(ids) and whole[: len(ids)] == ids:
                    count = self._random.randrange(limit + 1)
                    made = [i if self._random.random() < self._good else 0 for i in whole[len(ids) : len(ids) + count]]
                    return Proposal(made, self._random.choice((1, 2, 5, 40)))
        return NOTHING


class Harness:
    """Submit, abort and step; every output and every invariant is checked as it comes."""

    def __init__(
        self, facts: ExecutionFacts | None = None, *, seed: int = 0, stop_rate: float = 0.0, leave_rate: float = 0.0,
        guesses: float | None = None, **config: object,
    ) -> None:  # fmt: skip
        """guesses: how good drafted ids are, 0 to 1; None: no speculation."""
        self.facts = facts or make_facts()
        self.runner = ScriptedRunner(self.facts, stop_rate=stop_rate, leave_rate=leave_rate, seed=seed)
        self.books: dict[str, Book] = {}
        self.random = random.Random(seed)
        cost = CostModel()
        if guesses is not None:
            config["proposer"] = lambda: Guesses(self.books, guesses, self.random)
            cost.tabulate({1: 1e-3, 2: 1e-3})  # a row more is free: whatever may be right is tried
        made = SchedulerConfig(secret=b"k" * 32, eos_ids=EOS, **config)  # type: ignore[arg-type]
        self.core = EngineCore(EngineSetup(self.runner, made, "scripted", cost))
        self.refused = 0
        self._number = 0

    # Operations

    def submit(self, prompt: tuple[int, ...], *, seed: int | None = None, priority: int = 0, salt: str = "",
               tenant: tuple[str, float] = ("", 1.0), poison: bool = False, resume: tuple = (), **params: object
               ) -> str | None:  # fmt: skip
        """Submit a request; its id, or None if the queue was full. tenant: with its weight."""
        self._number += 1
        seed = self._number if seed is None else seed
        request = Request(f"r{self._number}", prompt, SamplingParams(**params), seed, salt=salt, tenant=tenant[0],
                          weight=tenant[1], priority=priority, resume=resume)  # fmt: skip
        if poison:
            self.runner.poison.add(seed)
        limit = self.core.roster.max_model_len
        try:
            self.core.submit(request)
        except QueueFull as error:
            assert error.retry_after is not None and error.retry_after >= 1
            self.refused += 1
            return None
        expected = [([], FinishReason.ERROR)] * request.params.n if poison else alone(
            request, self.facts.vocab_size, EOS, limit)  # fmt: skip
        self.books[request.request_id] = Book(request, expected)
        return request.request_id

    def abort(self, request_id: str, choice: int | None = None) -> None:
        book = self.books.get(request_id)
        if book is not None:
            every = range(book.request.params.n)
            book.aborted |= {c for c in every if choice in (None, c) and c not in book.finishes}
        self.core.abort(request_id, choice)

    def step(self) -> list[ChoiceOutput]:
        """One step of the engine, its outputs checked."""
        core = self.core
        outputs, core._ended = core._ended, []
        step = core.scheduler.schedule()
        if step is not None:
            self._check_progress()
            outputs += items(core.update(step, self.runner.run(step)))
        for output in outputs:
            self._take(output)
        return outputs

    def step_with_aborts(self, victims: list[str]) -> None:
        """A step while which aborts come in: they wait for its end."""
        core = self.core
        outputs, core._ended = core._ended, []
        step = core.scheduler.schedule()
        if step is None:
            core._ended = outputs + core._ended
            return
        for victim in victims:
            self.abort(victim)
        outputs += items(core.update(step, self.runner.run(step)))
        for output in outputs:
            self._take(output)

    def drain(self, limit: int = 100_000) -> int:
        """Step until nothing is left; the number of steps. Everyone must have been served by then."""
        steps = 0
        while self.core.has_work:
            self.step()
            steps += 1
            assert steps < limit, "someone starves"
        for name, book in self.books.items():
            assert set(book.finishes) == set(range(book.request.params.n)), f"{name} was never finished"
        return steps

    # What must hold

    def _take(self, output: ChoiceOutput) -> None:
        book = self.books[output.request]
        assert output.choice not in book.finishes, "output after the end"
        answer = book.answers.setdefault(output.choice, self._resumed(book, output.choice))
        assert output.index == len(answer), "ids are missing or double"
        answer += output.token_ids
        if output.prompt is not None:
            assert output.choice == 0 and book.prompt is None
            book.prompt = output.prompt
            if output.finish is not FinishReason.ABORT and output.finish is not FinishReason.ERROR:
                self._check_prompt(book, output.prompt.prompt_logprobs)
        expected, finish = book.expected[output.choice]
        if finish is not FinishReason.ERROR:
            assert answer == expected[: len(answer)], "other ids than alone"
        if book.request.params.logprobs is not None and output.token_ids:
            assert output.logprobs is not None and [e.token_id for e in output.logprobs] == output.token_ids
        if output.finish is None:
            return
        book.finishes[output.choice] = output
        if output.choice in book.aborted and output.finish is FinishReason.ABORT:
            return
        assert output.finish == finish
        if finish is FinishReason.STOP:
            assert output.stop_id == answer[-1]
        if finish is FinishReason.ERROR:
            assert output.error
        else:
            assert answer == expected

    @staticmethod
    def _resumed(book: Book, choice: int) -> list[int]:
        return next((list(r.emitted_ids) for r in book.request.resume if r.choice == choice), [])

    @staticmethod
    def _check_prompt(book: Book, logprobs: object) -> None:
        ids = book.request.prompt_ids
        if book.request.params.prompt_logprobs is None or len(ids) == 1:
            return
        prefix, expected = 0, []
        for position, token in enumerate(ids):
            if position:
                expected.append((token, -(prefix % 997) / 100))
            prefix = chain(prefix, token)
        assert [(e.token_id, e.logprob) for e in logprobs] == expected  # type: ignore[attr-defined]

    def _check_progress(self) -> None:
        """The first in order gets rows in every step, and waiting prefill its share."""
        draft, roster = self.core.scheduler.flight, self.core.roster
        assert draft is not None and roster.running
        assert roster.running[0] in draft.members, "the first in order gets nothing"
        # A choice that was resumed gets the rest of its copied block first, the remainder in the next step.
        wanted = sum(s.remaining for s in roster.running if s.remaining > 1 and s not in draft.forked)
        given = sum(r.count for r, s in zip(draft.runs, draft.members, strict=True) if s.remaining > 1)
        decodes = sum(1 for s in roster.running if s.remaining == 1)
        assert given >= min(MIN_PREFILL, wanted, roster.max_rows - decodes), "prefill gets less than the step owes"

    def check(self) -> None:
        """Every invariant of blocks, slots, places and the prefix tree."""
        roster = self.core.roster
        pool, prefixes, size = roster.cache.pool, roster.cache.prefixes, roster.cache.block_tokens
        pool.check()
        assert pool.free + pool.cached + pool.owned == pool.total
        owners: Counter[int] = Counter()
        slots: set[int] = set()
        running = {id(s) for s in roster.running}
        for live in roster.requests.values():
            assert live.open == sum(s.place is not Place.DONE for s in live.sequences)
            for s in live.sequences:
                assert (s.place is Place.RUNNING) == (id(s) in running) == (s.slot >= 0)
                assert s.place is Place.RUNNING or not s.owned()
                assert s.place is not Place.HELD or live.held
                owners.update(s.owned())
                if s.slot >= 0:
                    assert s.slot not in slots
                    slots.add(s.slot)
                for held in s.blocks:
                    for i, block in enumerate(held):
                        if block >= 0 and pool.owners(block) > 1:
                            assert (i + 1) * size <= s.computed, "a block with two owners that is still written to"
        assert sorted(roster.running, key=lambda s: s.order) == roster.running
        assert not slots & set(roster.free_slots)
        assert len(slots) + len(roster.free_slots) == roster.max_running
        for block in range(pool.total):
            assert pool.owners(block) == owners[block], f"block {block}"
        self._check_tree(prefixes, roster)

    def _check_tree(self, prefixes: object, roster: object) -> None:
        references: Counter[int] = Counter()
        nodes = list(prefixes._nodes.values())  # type: ignore[attr-defined]
        for node in nodes:
            if node.parent is not None:
                references[id(node.parent)] += 1
            references[id(node)] += sum(block >= 0 for block in node.blocks)
            for group, block in enumerate(node.blocks):
                assert block < 0 or prefixes._place[block] == (node, group)  # type: ignore[attr-defined]
        for s in roster.running:  # type: ignore[attr-defined]
            if s.tail is not None and s.generation == prefixes.generation:  # type: ignore[attr-defined]
                references[id(s.tail)] += 1
        pool = roster.cache.pool  # type: ignore[attr-defined]
        for block in range(pool.total):
            known = prefixes._place[block] is not None  # type: ignore[attr-defined]
            assert known == bool(pool._known[block]), f"pool and cache disagree on block {block}"
        for node in nodes:
            assert node.references == references[id(node)] > 0, "a node that nothing refers to, or refers to too often"

    def check_idle(self) -> None:
        """Nothing is left of anyone."""
        self.check()
        roster = self.core.roster
        assert roster.cache.pool.owned == 0
        assert not roster.requests and not roster.running and not roster.resumable and not roster.forks
        assert len(roster.queue) == 0 and len(roster.free_slots) == roster.max_running
        queue = roster.queue
        assert not queue._shares and not queue._lines and not queue._waiting and not queue._weights
