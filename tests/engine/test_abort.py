"""Aborts at every state: no block, slot or entry stays, and nobody else notices."""

import random

import pytest

from octavo.engine.sequence import Place
from octavo.request import FinishReason
from tests.engine.harness import Harness
from tests.engine.scripted_runner import make_facts

PROMPT = tuple(random.Random(4).randrange(1, 24) for _ in range(150))


def busy_world(**config: object) -> tuple[Harness, str]:
    """Two slots, small chunks, one neighbour that runs throughout; and its request."""
    world = Harness(make_facts(pages=60, max_seqs=3, max_rows=64), block_size=16, step_seconds=0.001, **config)
    neighbour = world.submit(PROMPT[:5], max_tokens=60, ignore_eos=True)
    world.step()
    assert neighbour is not None
    return world, neighbour


def finish(world: Harness, victim: str, neighbour: str) -> None:
    """The victim is gone at once, and the neighbour's answer is what it is alone (the harness compares)."""
    world.abort(victim)
    world.check()
    assert victim not in world.core.roster.requests
    world.drain()
    world.step()
    world.check_idle()
    assert world.books[victim].finishes[0].finish is FinishReason.ABORT
    assert world.books[neighbour].finishes[0].finish is FinishReason.LENGTH


def test_queued():
    world, neighbour = busy_world()
    victim = world.submit(PROMPT, max_tokens=5)
    assert world.core.roster.requests[victim].sequences[0].place is Place.QUEUED
    finish(world, victim, neighbour)
    assert world.books[victim].answers[0] == []


@pytest.mark.parametrize("chunks", range(1, 6))
def test_in_each_prefill_chunk(chunks):
    world, neighbour = busy_world()
    victim = world.submit(PROMPT, max_tokens=50, ignore_eos=True)
    for _ in range(chunks):
        world.step()
    computed = world.core.roster.requests[victim].sequences[0].computed
    assert 0 < computed <= 150
    finish(world, victim, neighbour)


@pytest.mark.parametrize("steps", range(1, 12, 2))
def test_in_each_decode_step(steps):
    world, neighbour = busy_world(run_ahead=1)
    victim = world.submit(PROMPT[:20], max_tokens=50, ignore_eos=True)
    for _ in range(1 + steps):
        world.step()
    assert len(world.books[victim].answers[0]) == 1 + steps
    finish(world, victim, neighbour)


@pytest.mark.parametrize("steps", range(4))
def test_while_a_step_runs(steps):
    """The abort waits for the end of the step; the ids that the step gave still come."""
    world, neighbour = busy_world(run_ahead=1)
    victim = world.submit(PROMPT[:20], max_tokens=50, ignore_eos=True)
    for _ in range(steps):
        world.step()
    world.step_with_aborts([victim])
    world.check()
    assert victim not in world.core.roster.requests
    world.drain()
    world.check_idle()
    assert world.books[victim].finishes[0].finish is FinishReason.ABORT and neighbour


def test_preempted():
    world = Harness(make_facts(pages=14, max_seqs=3, max_rows=64), block_size=16, prefix_caching=False)
    first = world.submit(PROMPT[:60], max_tokens=90, ignore_eos=True)
    victim = world.submit(PROMPT[1:61], max_tokens=90, ignore_eos=True)
    while not world.core.roster.resumable:
        world.step()
    assert world.core.roster.resumable[0].live.request.request_id == victim
    finish(world, victim, first)


@pytest.mark.parametrize("choice", [None, 0, 1, 4])
@pytest.mark.parametrize("steps", range(8))
def test_choices(choice, steps):
    """n = 5 with three slots: held, to be forked, running, waiting again; any one of them or all."""
    world, neighbour = busy_world(run_ahead=1)
    victim = world.submit(PROMPT[:70], n=5, max_tokens=10, ignore_eos=True)
    for _ in range(steps):
        world.step()
    world.abort(victim, choice)
    world.check()
    world.drain()
    world.step()
    world.check_idle()
    book = world.books[victim]
    ended = {c for c, output in book.finishes.items() if output.finish is FinishReason.ABORT}
    assert ended == (set(range(5)) if choice is None else {choice}) and neighbour


def test_unknown_and_finished_are_no_errors():
    world, neighbour = busy_world()
    world.core.abort("never seen")
    world.core.abort(neighbour, 7)
    world.drain()
    world.core.abort(neighbour)
    world.step()
    world.check_idle()


def test_nonfinite_ends_one_request_and_leaves_no_prefix():
    world, neighbour = busy_world()
    poisoned = world.submit(PROMPT[:100], max_tokens=20, poison=True, n=3)
    world.drain()
    assert {o.finish for o in world.books[poisoned].finishes.values()} == {FinishReason.ERROR}
    assert world.core.stats().nonfinite == 3
    again = world.submit(PROMPT[:100], max_tokens=20)
    world.drain()
    assert world.books[again].prompt.cached_tokens == 0
    world.check_idle()
    assert world.books[neighbour].finishes[0].finish is FinishReason.LENGTH


def test_a_thousand_random_aborts():
    """1,000 requests, each aborted at a random moment, over little memory: nothing stays, blocks go round."""
    rng = random.Random(9)
    world = Harness(make_facts(pages=40, max_seqs=6, max_rows=64), seed=3, stop_rate=0.02, leave_rate=0.2,
                    block_size=32, step_seconds=0.002)  # fmt: skip
    doomed: list[str] = []
    aborted = made = 0
    while aborted < 1000:
        if len(doomed) < 12:
            cut = rng.randrange(120)
            made += 1
            prompt = PROMPT[: cut + 1] + (made % 23 + 1,)
            doomed.append(world.submit(prompt, n=rng.choice((1, 1, 3)), max_tokens=100, ignore_eos=True) or "")
        for _ in range(rng.randrange(3)):
            world.step()
        if rng.random() < 0.7:
            victim = doomed.pop(rng.randrange(len(doomed)))
            if rng.random() < 0.3:
                world.step_with_aborts([victim])
            world.abort(victim)
            aborted += 1
        if aborted % 50 == 0:
            world.check()
    for victim in doomed:
        world.abort(victim)
    world.step()
    world.check_idle()
    assert world.core.roster.cache.prefixes.size <= 2 * world.core.roster.cache.pool.total + 1
