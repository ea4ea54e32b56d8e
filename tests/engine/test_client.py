"""The front's half over an engine in a thread: the same answers as over a socket, errors before the first item."""

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from octavo.engine.client import EngineClient
from octavo.engine.core import EngineSetup
from octavo.engine.flight_record import ARRIVED
from octavo.engine.roster import SchedulerConfig
from octavo.errors import ContextLengthExceeded, EngineDied, InvalidRequest, QueueFull, Unavailable
from octavo.execution.step import Step, StepResult
from octavo.request import FinishReason, Request
from octavo.sampling_params import SamplingParams
from tests.engine.scripted_runner import ScriptedRunner, alone, make_facts

VOCAB = 24


def setup(runner: ScriptedRunner | None = None, **config: object) -> EngineSetup:
    runner = runner or ScriptedRunner(make_facts(pages=200, max_model_len=400))
    made = SchedulerConfig(secret=b"k" * 32, eos_ids=(0,), **config)  # type: ignore[arg-type]
    return EngineSetup(runner, made, "scripted", summary=("a line",))


def request(name: str, prompt: tuple[int, ...] = (1, 2, 3), **params: object) -> Request:
    return Request(name, prompt, SamplingParams(**params), seed=8)


async def collect(client: EngineClient, wanted: Request) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(wanted.params.n)]
    async for items in client.submit(wanted):
        for item in items:
            answers[item.choice] += item.token_ids
    return answers


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    made = await EngineClient.in_process(setup())
    yield made
    await made.close()


async def test_many_requests_give_what_each_gives_alone(client):
    wanted = [request(f"r{i}", (1 + i % 20, 2, 3), n=1 + i % 4, max_tokens=20) for i in range(40)]
    answers = await asyncio.gather(*(collect(client, each) for each in wanted))
    assert answers == [[ids for ids, _ in alone(each, VOCAB, (0,), 400)] for each in wanted]
    assert client.open_requests == 0
    stats = await client.stats()
    assert stats.blocks_owned == stats.running == stats.waiting == 0 and stats.steps > 0
    assert client.info.model_name == "scripted" and client.info.summary == ("a line",) and client.info.eos_ids == (0,)


async def test_prompt_output_comes_first(client):
    await collect(client, request("warm", tuple(range(1, 21)) * 3, max_tokens=1))
    stream = client.submit(request("r", tuple(range(1, 21)) * 3, max_tokens=5, ignore_eos=True))
    items = [item async for batch in stream for item in batch]
    assert items[0].prompt is not None and items[0].prompt.cached_tokens == 48
    assert all(item.prompt is None for item in items[1:])
    assert items[-1].finish is FinishReason.LENGTH


async def test_errors_come_before_the_first_item(client):
    with pytest.raises(ContextLengthExceeded) as told:
        await collect(client, request("long", (1,) * 400))
    assert told.value.limit == 400
    with pytest.raises(InvalidRequest):
        await collect(client, request("id", (VOCAB + 1,)))
    with pytest.raises(InvalidRequest):
        await collect(client, request("stop", stop_token_ids=[VOCAB]))
    stream = client.submit(request("twice", max_tokens=300, ignore_eos=True))
    await anext(stream)
    with pytest.raises(InvalidRequest, match="in use"):
        await collect(client, request("twice"))
    await stream.aclose()
    assert await collect(client, request("twice", max_tokens=2, ignore_eos=True))


async def test_full_queue_is_429_with_a_time():
    client = await EngineClient.in_process(setup(ScriptedRunner(make_facts(max_seqs=1)), max_queued=1))
    wanted = [request(f"r{i}", max_tokens=40, ignore_eos=True) for i in range(12)]
    ended = await asyncio.gather(*(collect(client, each) for each in wanted), return_exceptions=True)
    refused = [each for each in ended if isinstance(each, QueueFull)]
    assert refused and all(each.status == 429 and each.retry_after >= 1 for each in refused)
    assert len(refused) + sum(isinstance(each, list) for each in ended) == 12
    await client.close()


async def test_aborting_one_choice_leaves_the_others(client):
    finishes = {}
    async for items in client.submit(request("r", n=3, max_tokens=200, ignore_eos=True)):
        for item in items:
            if item.choice == 1 and item.index == 0:
                await client.abort("r", 1, kept=1)
            if item.finish is not None:
                finishes[item.choice] = item.finish
    assert finishes == {0: FinishReason.LENGTH, 1: FinishReason.ABORT, 2: FinishReason.LENGTH}


class FailingRunner(ScriptedRunner):
    """Raises in its fifth step, as a bug would."""

    def run(self, step: Step) -> StepResult:
        if step.number == 5:
            raise RuntimeError("a bug")
        return super().run(step)


async def test_an_engine_that_raises_ends_every_stream():
    client = await EngineClient.in_process(setup(FailingRunner(make_facts(pages=200, max_model_len=400)), run_ahead=1))
    wanted = [request(f"r{i}", max_tokens=100, ignore_eos=True) for i in range(5)]
    ended = await asyncio.wait_for(
        asyncio.gather(*(collect(client, each) for each in wanted), return_exceptions=True), 10
    )
    assert all(isinstance(each, EngineDied) and "a bug" in each.message for each in ended)
    with pytest.raises(EngineDied):
        await collect(client, request("late"))
    assert not client.ready
    await client.close()


class SlowRunner(ScriptedRunner):
    """5 ms a step."""

    def run(self, step: Step) -> StepResult:
        time.sleep(0.005)
        return super().run(step)


async def test_an_executor_that_outlives_its_engine_has_a_page():
    """The address that the executor was told is never that of memory that is gone."""
    told: list[int] = []
    made = replace(setup(), watch=told.append)
    client = await EngineClient.in_process(made)
    arrived = ctypes.c_int64.from_address(told[0] + ARRIVED)
    before = arrived.value
    await client.stats()
    assert arrived.value == before + 1
    await client.close()
    assert len(told) == 2 and ctypes.c_int64.from_address(told[1] + ARRIVED).value == 0


async def test_closing_ends_open_streams():
    client = await EngineClient.in_process(setup(SlowRunner(make_facts(pages=200, max_model_len=400)), run_ahead=1))
    stream = asyncio.create_task(collect(client, request("r", max_tokens=390, ignore_eos=True)))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(Unavailable):
        await stream
    with pytest.raises(Unavailable):
        await collect(client, request("late"))
