"""Fair shares: the queue against a model that knows the whole past, tokens in the ratio of weights, places to wait."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from octavo.engine.queue import RequestQueue
from octavo.engine.sequence import LiveRequest, Sequence
from octavo.errors import QueueFull
from octavo.request import Request, Resume
from octavo.sampling_params import SamplingParams
from tests.engine.harness import Harness
from tests.engine.scripted_runner import make_facts

WEIGHTS = {"a": 1.0, "b": 4.0, "c": 0.5}  # powers of two: sums are exact


def sequence(arrival: int, tenant: str, prompt: int, priority: int = 0, emitted: int = 0) -> Sequence:
    resume = (Resume(0, (1,) * emitted),) if emitted else ()
    request = Request(
        f"r{arrival}", (1,) * prompt, SamplingParams(), 0, tenant=tenant, weight=WEIGHTS[tenant], priority=priority,
        resume=resume,
    )  # fmt: skip
    return Sequence(LiveRequest(request, arrival, 0.0, 1000, frozenset(), (), 0), 0, 1)


class Told:
    """What the model knows of one class: everything that happened, in order."""

    def __init__(self) -> None:
        self.given: dict[str, Fraction] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.last = Fraction(0)  # the largest counter of somebody let in, at that moment

    def give(self, tenant: str, tokens: int) -> None:
        self.given[tenant] += Fraction(tokens) / Fraction(WEIGHTS[tenant])

    def came(self, new: Sequence) -> None:
        tenant = new.live.request.tenant
        others = {each.live.request.tenant for each in self.waiting}
        if tenant not in others:
            least = min((self.given[other] for other in others), default=self.last)
            self.given[tenant] = max(self.given.get(tenant, least), least)
        self.waiting.append(new)

    def next(self) -> Sequence:
        first = {}
        for each in sorted(self.waiting, key=lambda each: -each.live.arrival):
            first[each.live.request.tenant] = each
        return min(first.values(), key=lambda each: (self.given[each.live.request.tenant], each.live.arrival))


class QueueMachine(RuleBasedStateMachine):
    """A queue and the model of it under arrivals, admissions, tokens, endings; counted late by the one, at once by the
    other."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(1000, patience=1e9)
        self.classes: dict[int, Told] = {}
        self.number = 0

    @rule(tenant=st.sampled_from("abc"), prompt=st.integers(1, 40), priority=st.sampled_from((0, 0, 1)),
          emitted=st.sampled_from((0, 0, 3)))  # fmt: skip
    def arrive(self, tenant: str, prompt: int, priority: int, emitted: int) -> None:
        self.number += 1
        new = sequence(self.number, tenant, prompt, priority, emitted)
        self.queue.push(new)
        self.classes.setdefault(priority, Told()).came(new)

    def best(self) -> Told | None:
        waiting = [priority for priority, told in self.classes.items() if told.waiting]
        return self.classes[min(waiting)] if waiting else None

    @precondition(lambda self: self.best())
    @rule(hit=st.integers(0, 40))
    def admit(self, hit: int) -> None:
        told = self.best()
        assert told is not None
        running = [each for told in self.classes.values() for each in told.running]
        expected, got = told.next(), self.queue.peek(0.0, running)
        assert got is expected
        request = got.live.request
        hit = min(hit, len(request.prompt_ids) - 1)
        told.last = max(told.last, told.given[request.tenant])
        self.queue.pop(got, 0.0, hit)
        told.give(request.tenant, 0 if request.resume else len(request.prompt_ids) - hit)
        told.waiting.remove(got)
        told.running.append(got)

    @rule(tokens=st.lists(st.integers(0, 9), min_size=1, max_size=8))
    def run(self, tokens: list[int]) -> None:
        running = [(told, each) for told in self.classes.values() for each in told.running]
        for (told, each), count in zip(running, tokens, strict=False):
            each.ids += [1] * count
            told.give(each.live.request.tenant, count)

    @precondition(lambda self: any(told.running or told.waiting for told in self.classes.values()))
    @rule(lot=st.integers(0, 10_000))
    def leave(self, lot: int) -> None:
        """One that runs ends, or one that waits is taken away."""
        every = [(told, each) for told in self.classes.values() for each in (*told.running, *told.waiting)]
        told, each = every[lot % len(every)]
        if each in told.waiting:
            told.waiting.remove(each)
            self.queue.remove(each)
        else:
            told.running.remove(each)
        self.queue.charge(each)
        self.queue.over(each.live)
        if not (told.running or told.waiting):
            del self.classes[each.live.request.priority]

    @invariant()
    def holds(self) -> None:
        assert len(self.queue) == sum(len(told.waiting) for told in self.classes.values())
        for priority, told in self.classes.items():
            for each in told.running:
                self.queue.charge(each)
            assert {name: Fraction(value) for name, value in self.queue._shares[priority].given.items()} == told.given
        assert set(self.queue._shares) == set(self.classes)


def test_the_queue_is_its_model() -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(
    ("weights", "lengths"), [((3.0, 1.0), (24, 24)), ((3.0, 1.0), (60, 12)), ((0.5, 0.5), (9, 40))]
)
def test_tokens_are_given_by_weight(weights: tuple[float, float], lengths: tuple[int, int]) -> None:
    """Two keys that always have somebody waiting, with answers of other lengths than they said: tokens in the ratio of
    the weights within 5 %."""
    chance = random.Random(5)
    world = Harness(make_facts(pages=400, max_seqs=8, max_rows=64), run_ahead=1, prefix_caching=False)
    names: dict[str, int] = {}
    tokens: Counter[int] = Counter()

    def ask(whose: int) -> None:
        prompt = tuple(chance.randrange(1, 20) for _ in range(chance.randrange(1, 30)))
        length = chance.randrange(1, 2 * lengths[whose])
        tenant = ("ab"[whose], weights[whose])
        name = world.submit(prompt, tenant=tenant, max_tokens=length, ignore_eos=chance.random() < 0.8)
        assert name is not None
        names[name] = whose
        tokens[whose] += len(prompt)

    for number in range(40):
        ask(number % 2)
    while sum(tokens.values()) < 40_000:
        for output in world.step():
            tokens[names[output.request]] += len(output.token_ids)
            if output.finish is not None:
                ask(names[output.request])
    # Prompts that wait were counted when they came: a thousandth of the whole.
    assert tokens[0] / tokens[1] == pytest.approx(weights[0] / weights[1], rel=0.05)


def test_long_queues_keep_shares_and_classes() -> None:
    """Everybody waits longer than the patience of the queue: keys get their shares still, the urgent are first, and the
    humble are not forgotten."""
    clock = [0.0]
    world = Harness(make_facts(pages=400, max_seqs=2, max_rows=64), run_ahead=1, patience=60.0)
    world.core.roster.clock = lambda: clock[0]
    names: dict[str, str] = {}
    for number in range(400):
        for tenant, weight, priority in (("a", 3.0, 0), ("b", 1.0, 0), ("humble", 1.0, 5)):
            name = world.submit((1, 2, 3 + number % 9), tenant=(tenant, weight), priority=priority, max_tokens=10,
                                ignore_eos=True)  # fmt: skip
            names[str(name)] = tenant
    tokens: Counter[str] = Counter()
    while sum(tokens.values()) < 4000:
        clock[0] += 50.0
        for output in world.step():
            tokens[names[output.request]] += len(output.token_ids)
    assert tokens["a"] / tokens["b"] == pytest.approx(3, rel=0.05)
    assert 400 < tokens["humble"] <= 1000  # a quarter at most: now and then one of `b` has waited longer


def test_who_was_away_has_no_credit() -> None:
    """A key that comes late does not take everything until it has caught up with the hours before."""
    world = Harness(make_facts(pages=400, max_seqs=4, max_rows=64), run_ahead=1)
    for number in range(60):
        world.submit((1, 2, 3 + number % 9), tenant=("early", 1.0), max_tokens=20, ignore_eos=True)
    for _ in range(150):
        world.step()
    late = {world.submit((9, 8, 7), tenant=("late", 1.0), max_tokens=20, ignore_eos=True) for _ in range(60)}
    tokens: Counter[bool] = Counter()
    for _ in range(200):
        for output in world.step():
            tokens[output.request in late] += len(output.token_ids)
    assert tokens[True] == pytest.approx(tokens[False], rel=0.25)
    world.drain()


def test_a_full_queue_has_places_for_others() -> None:
    queue = RequestQueue(8)
    for number in range(9):
        queue.push(sequence(number, "a", 5))
    for number in range(9, 13):  # of weights 1 and 4 the second has six of eight places
        queue.check_room(1, sequence(number, "b", 5).live.request)
        queue.push(sequence(number, "b", 5))
    with pytest.raises(QueueFull):
        queue.check_room(1, sequence(20, "a", 5).live.request)
    for number in range(13, 15):
        queue.check_room(1, sequence(number, "b", 5).live.request)
        queue.push(sequence(number, "b", 5))
    with pytest.raises(QueueFull):
        queue.check_room(1, sequence(20, "b", 5).live.request)
