"""An engine dies, and every stream goes on with the very tokens that it would have had; who kills it is found out."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from octavo.engine.quarantine import Quarantine
from octavo.errors import EngineKiller
from octavo.execution.step import Step
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from tests.engine.mortal import Death, Fate, MortalRunner, World

MOST_STEPS = 200


def mixed(count: int, seed: int = 0, tokens: tuple[int, int] = (5, 60)) -> list[Request]:
    """Requests of every kind: several choices, logprobs, of the prompt too, stop ids, limits, shared prompts."""
    chance = random.Random(seed)
    base = [chance.randrange(1, 60) for _ in range(90)]
    made = []
    for number in range(count):
        prompt = tuple(base[: chance.randrange(1, 90)]) if number % 2 else tuple(chance.choices(range(1, 60), k=30))
        params = SamplingParams(
            n=chance.choice((1, 1, 1, 2, 3)),
            max_tokens=chance.randrange(*tokens),
            ignore_eos=chance.random() < 0.7,
            logprobs=chance.choice((None, None, 0, 2)),
            prompt_logprobs=chance.choice((None, None, None, 1)),
            stop_token_ids=chance.sample(range(1, 60), chance.choice((0, 0, 1))),
            min_tokens=chance.choice((0, 0, 4)),
        )
        made.append(Request(f"r{number}", prompt, params, seed=1000 + number))
    return made


def once_at(when: int) -> Fate:
    """Dies in the `when`-th step of all engines together."""
    steps = 0

    def fate(runner: MortalRunner, step: Step) -> None:
        nonlocal steps
        steps += 1
        if steps == when:
            raise Death

    return fate


async def test_a_death_at_each_of_the_first_steps() -> None:
    """Every stream is what it is without a death; nothing is lost, no block is leaked."""
    long = Request("long", (1, 2), SamplingParams(max_tokens=MOST_STEPS + 10, ignore_eos=True), seed=1)
    requests = [*mixed(23), long]
    whole = await World(run_ahead=1).run(requests)
    for when in range(1, MOST_STEPS + 1):
        world = World(once_at(when), run_ahead=1)
        assert await world.run(requests) == whole, f"death in step {when}"
        assert len(world.losses) == 1


async def test_engine_after_engine_dies() -> None:
    """Every twentieth step kills, whoever is in it: all come through."""
    requests = mixed(40, seed=3)
    whole = await World().run(requests)
    chance = random.Random(5)

    def fate(runner: MortalRunner, step: Step) -> None:
        if chance.random() < 0.05:
            raise Death

    world = World(fate)
    answers = await world.run(requests)
    refused = [each for each in answers if each.error is not None]
    assert len(refused) <= 1  # dying alone twice by chance is possible, and looks like guilt
    assert [a for a in answers if a.error is None] == [
        w for a, w in zip(answers, whole, strict=True) if a.error is None
    ]
    assert len(world.losses) > 5


def poisoned(poison: dict[int, int]) -> Fate:
    def fate(runner: MortalRunner, step: Step) -> None:
        if runner.rows_of(step, poison):
            raise Death

    return fate


@pytest.mark.parametrize("culprit", [0, 1, 15, 16, 30, 31])
@pytest.mark.parametrize("after", [0, 7])
async def test_one_poisonous_request_among_many(culprit: int, after: int) -> None:
    """Only it is refused; finding it takes log2 of the batch and one deaths, of which one counts."""
    requests = [
        Request(f"r{i}", (1 + i, 2, 3), SamplingParams(max_tokens=40, ignore_eos=True), seed=1000 + i)
        for i in range(32)
    ]
    whole = await World().run(requests)
    world = World(poisoned({1000 + culprit: 3 + after}))
    answers = await world.run(requests)
    error = answers[culprit].error
    assert isinstance(error, EngineKiller) and error.status == 500 and error.code == "engine_killer"
    assert answers[culprit].ids[0] == whole[culprit].ids[0][: len(answers[culprit].ids[0])]
    for number, (given, wanted) in enumerate(zip(answers, whole, strict=True)):
        assert number == culprit or given == wanted
    assert len(world.losses) <= 6 and world.losses[-1].guilty == f"r{culprit}"
    assert [loss.isolating for loss in world.losses] == [False] + [True] * (len(world.losses) - 1)
    repeated = replace(requests[culprit], params=replace(requests[0].params, seed=77), seed=77, request_id="again")
    again = await world.run([repeated, requests[(culprit + 1) % 32]])
    assert isinstance(again[0].error, EngineKiller) and "known" in again[0].error.message
    assert again[1].error is None and len(world.losses) <= 6  # a repetition kills nobody


async def test_two_poisonous_requests_and_one_that_comes_later() -> None:
    requests = mixed(32, seed=8, tokens=(30, 60))
    whole = await World().run(requests)
    world = World(poisoned({1003: 0, 1021: 0, 2000: 0}))
    world.arrivals = [Request("late", (9, 9), SamplingParams(max_tokens=5), seed=2000)]
    answers = await world.run(requests)
    guilty = [number for number, each in enumerate(answers) if each.error is not None]
    assert guilty == [3, 21, 32] and all(isinstance(answers[n].error, EngineKiller) for n in guilty)
    assert all(answers[n] == whole[n] for n in range(32) if n not in guilty)


async def test_a_lonely_request_is_tried_again_once() -> None:
    request = Request("alone", (1, 2, 3), SamplingParams(max_tokens=9, ignore_eos=True), seed=4)
    world = World(once_at(1))
    (given,) = await world.run([request])
    assert given.error is None and len(given.ids[0]) == 9 and not world.losses[0].isolating
    world = World(poisoned({4: 0}))
    (given,) = await world.run([request])
    assert isinstance(given.error, EngineKiller)
    assert [loss.isolating for loss in world.losses] == [False, True]


async def test_aborts_that_cross_a_death() -> None:
    """What the dead engine was told to end does not come back, and no more does a choice that a stop string ended."""
    world = World(once_at(4), run_ahead=1)
    params = SamplingParams(n=2, max_tokens=50, ignore_eos=True)
    stream = world.client.open(Request("r", (1, 2), params, seed=1))
    await stream.start(lambda: None)
    other = world.client.open(Request("s", (1, 2), params, seed=1))
    await other.start(lambda: None)
    finishes = []
    for turn in range(200):
        if turn == 3:
            stream.abort(0, kept=1)
            await world.client.abort("s")
        try:
            world.link.loop.turn(0.0)
        except Death:
            await world.die()
        await asyncio_turn()
        finishes += [(item.choice, str(item.finish)) for item in stream.take() or () if item.finish]
        finishes += [(10 + item.choice, str(item.finish)) for item in other.take() or () if item.finish]
    assert sorted(finishes) == [(1, "length"), (10, "abort"), (11, "abort")] and len(world.losses) == 1
    assert stream.done and other.done
    stream.close()
    other.close()


async def asyncio_turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_paused_stream_goes_on_where_it_was() -> None:
    """pause() gives back what the engine holds; a second start() brings the rest of the same answer."""
    world = World(run_ahead=2)
    request = Request("r", (1, 2, 3), SamplingParams(n=2, max_tokens=40, ignore_eos=True, logprobs=1), seed=9)
    (whole,) = await world.run([request])
    stream = world.client.open(request)
    ids: list[list[int]] = [[], []]
    for _ in range(12):
        await stream.start(lambda: None)
        for _ in range(4):
            world.link.loop.turn(0.0)
            await asyncio_turn()
            for item in stream.take() or ():
                assert item.index == len(ids[item.choice])
                ids[item.choice] += item.token_ids
        stream.pause()
        world.link.loop.turn(0.0)
        assert world.link.core.stats().blocks_owned == 0 and world.client.open_requests == 0
        if stream.done:
            break
    assert ids == whole.ids and stream.done


def test_the_rules_of_the_search() -> None:
    """On names alone: halves, then alone, with nobody beside the last one who has not shown that it is innocent."""
    search = Quarantine()
    assert not search.active and search.admits("x")
    assert not search.died(["a", "b", "c", "d", "e"], []).isolating
    assert [search.admits(name) for name in "abcdex"] == [True, True, True, False, False, True]
    assert not search.settle(lambda name: name == "a") and search.active
    verdict = search.died(["b", "c", "x"], [])
    assert verdict.isolating and verdict.guilty is None
    assert [search.admits(name) for name in "bcdex"] == [True, False, False, False, False]
    verdict = search.died(["b", "x"], ["x"])
    assert verdict.guilty == "b" and [search.admits(name) for name in "acde"] == [False, True, False, False]
    assert search.settle(lambda name: name == "c")  # d and e are next
    assert search.admits("d") and search.admits("e") and search.admits("a")
    assert not search.left("d") and search.left("e") and not search.active


def test_one_suspect_beside_another_is_tried_again() -> None:
    search = Quarantine()
    search.died(["a"], [])
    verdict = search.died(["a", "x"], [])  # x may have done it
    assert verdict.guilty is None and not verdict.isolating
    assert search.admits("a") and not search.admits("x")
    assert search.died(["a"], []).guilty == "a"
