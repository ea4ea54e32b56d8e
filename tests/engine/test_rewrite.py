"""Stream.rewrite: a choice goes on behind other ids than it gave, whatever the engine was doing meanwhile."""

from __future__ import annotations

import random

import pytest

from octavo.execution.step import Step
from octavo.request import Request, Resume
from octavo.sampling_params import SamplingParams
from tests.engine.mortal import Death, MortalRunner, World
from tests.engine.test_survival import asyncio_turn

FORCED = [7, 8, 9]
PARAMS = SamplingParams(n=2, max_tokens=60, ignore_eos=True, frequency_penalty=0.5, temperature=0.8)
REQUEST = Request("r", (1, 2, 3), PARAMS, seed=9)


async def run(world: World, request: Request, kept: int | None) -> list[list[int]]:
    """Ids of every choice as a reader has them, who rewrites choice 0 once it has `kept` ids."""
    stream = world.client.open(request)
    known = {resume.choice: list(resume.emitted_ids) for resume in request.resume}
    ids = [known.get(choice, []) for choice in range(request.params.n)]
    await stream.start(lambda: None)
    for _ in range(2000):
        try:
            world.link.loop.turn(0.0)
        except Death:
            await world.die()
        await asyncio_turn()
        for item in stream.take() or ():
            if kept is not None and item.choice == 0 and len(ids[0]) + len(item.token_ids) >= kept:
                ids[0] = [*ids[0], *item.token_ids][:kept] + FORCED
                stream.rewrite(0, kept, FORCED)
                kept = None
                continue
            if item.index == len(ids[item.choice]):  # what came in the same batch behind the rewriting is void
                ids[item.choice] += item.token_ids
        if stream.done:
            break
    assert stream.done and kept is None
    stream.close()
    world.link.loop.turn(0.0)
    stats = world.link.core.stats()
    assert stats.blocks_owned == stats.running == stats.waiting == 0 and not world.client.open_requests
    return ids


@pytest.mark.parametrize("run_ahead", [1, 4])
async def test_it_is_the_answer_that_follows_those_ids(run_ahead: int) -> None:
    whole = await run(World(run_ahead=run_ahead), REQUEST, None)
    for kept in (1, 2, 5, 17, 40, 56):
        begun = Resume(0, (*whole[0][:kept], *FORCED))
        oracle = await run(World(run_ahead=1), Request("o", (1, 2, 3), PARAMS, seed=9, resume=(begun,)), None)
        made = await run(World(run_ahead=run_ahead), REQUEST, kept)
        assert made == oracle and made[1] == whole[1] and len(made[0]) == 60


async def test_it_survives_the_engine() -> None:
    """A death before, at or after the rewriting; a second one would be held against the only request that is there."""
    expected = await run(World(run_ahead=2), REQUEST, 20)
    for number in range(40):
        dice = random.Random(number)
        left = 1

        def fate(runner: MortalRunner, step: Step, dice: random.Random = dice) -> None:
            nonlocal left
            if left and dice.random() < 0.06:
                left -= 1
                raise Death

        assert await run(World(fate, run_ahead=2), REQUEST, 20) == expected
