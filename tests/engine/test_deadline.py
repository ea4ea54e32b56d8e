"""A request's deadline: what runs ends with what it has, what has nothing fails, whatever became of the engine."""

from __future__ import annotations

import asyncio
import time

from octavo.errors import DeadlineExceeded
from octavo.execution.step import Step
from octavo.request import FinishReason, Request
from octavo.sampling_params import SamplingParams
from tests.engine.mortal import Answer, Death, MortalRunner, World, answer

STEP = 0.004  # seconds that each step takes here: 390 tokens are far beyond the deadline
DEADLINE = 0.4


def slow(runner: MortalRunner, step: Step) -> None:
    time.sleep(STEP)


def request(name: str, tokens: int = 390, deadline: float | None = DEADLINE, n: int = 1) -> Request:
    params = SamplingParams(n=n, max_tokens=tokens, ignore_eos=True)
    at = None if deadline is None else time.monotonic() + deadline
    return Request(name, (1, 2, 3), params, seed=8, deadline=at)


async def alone(wanted: Request) -> Answer:
    """What it gives without a deadline."""
    (made,) = await World(run_ahead=1).run([wanted])
    return made


async def test_what_runs_ends_with_what_it_has() -> None:
    whole = await alone(request("whole", deadline=None, n=3))
    world = World(slow, run_ahead=1)
    cut, other = await world.run([request("cut", n=3), request("other", 200, None)])
    assert set(cut.finishes.values()) == {(FinishReason.LENGTH, None)} and cut.error is None
    for ids, expected in zip(cut.ids, whole.ids, strict=True):
        assert 0 < len(ids) < 390 and ids == expected[: len(ids)]
    assert len(other.ids[0]) == 200  # nobody else is touched


async def test_who_ended_before_is_not_touched() -> None:
    (made,) = await World(run_ahead=1).run([request("short", 5, 60.0)])
    assert len(made.ids[0]) == 5 and made.finishes == {0: (FinishReason.LENGTH, None)}


async def test_who_has_nothing_fails() -> None:
    """It waits behind others, or comes too late; no engine runs it."""
    world = World(slow, run_ahead=1, max_batched_tokens=4)  # of three rows a step one is for prompts
    first = [request(f"first{number}", 300, None) for number in range(3)]
    *_, waited, late = await world.run([*first, request("waits", 5), request("late", 5, -1.0)])
    for each in (waited, late):
        assert isinstance(each.error, DeadlineExceeded) and each.error.status == 504 and not each.finishes


async def test_while_no_engine_is_there() -> None:
    """The engine dies and none comes before the deadline: what was begun ends with what it has, the rest fails."""
    world = World(slow, run_ahead=1)
    begun = asyncio.create_task(answer(world.client, request("begun")))
    for _ in range(10):
        await asyncio.sleep(0)
        world.link.loop.turn(0.0)
    fresh = asyncio.create_task(answer(world.client, request("fresh")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await world.client.lose()
    cut, failed = await asyncio.gather(begun, fresh)
    assert 0 < len(cut.ids[0]) < 390 and cut.finishes == {0: (FinishReason.LENGTH, None)}
    assert isinstance(failed.error, DeadlineExceeded)
    assert not world.client.open_requests


async def test_after_a_death() -> None:
    """The next engine goes on with it, and the deadline is still the one of before."""
    whole = await alone(request("whole", deadline=None))
    deaths = 0

    def fate(runner: MortalRunner, step: Step) -> None:
        nonlocal deaths
        time.sleep(STEP)
        if step.number == 10 and deaths < 2:
            deaths += 1
            raise Death

    world = World(fate, run_ahead=1)
    (made,) = await world.run([request("again")])
    assert deaths == 2 and made.finishes == {0: (FinishReason.LENGTH, None)}
    assert 20 < len(made.ids[0]) < 390 and made.ids[0] == whole.ids[0][: len(made.ids[0])]
