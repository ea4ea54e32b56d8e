"""The engine in a process of its own: it dies, hangs, is killed, loses its front; the next request works."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from octavo.engine.client import EngineClient
from octavo.engine.messages import ChoiceOutput
from octavo.engine.supervisor import EngineProcess, Supervisor
from octavo.errors import DoesNotFit, EngineDied, EngineDiedTooOften, EngineKiller, Unavailable
from octavo.request import FinishReason, Request
from octavo.sampling_params import SamplingParams
from tests.engine.scripted_runner import alone

FACTORY = "tests.engine.scripted_runner:build"
ROOT = Path(__file__).parents[2]


def request(name: str, tokens: int = 20, prompt: tuple[int, ...] = (5, 6, 7), **params: object) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=tokens, ignore_eos=True, **params), seed=11)


async def collect(client: EngineClient, wanted: Request) -> list[list[int]]:
    """The ids of every choice, to the end."""
    answers: list[list[int]] = [[] for _ in range(wanted.params.n)]
    async for items in client.submit(wanted):
        for item in items:
            assert item.index == len(answers[item.choice])
            answers[item.choice] += item.token_ids
    return answers


def expected(wanted: Request) -> list[list[int]]:
    return [ids for ids, _ in alone(wanted, 1000, (0,), 2048)]


async def start(options: dict[str, object] | None = None, faults: dict[str, str] | None = None) -> Supervisor:
    supervisor = Supervisor(EngineProcess(FACTORY, options or {}, faults=faults or {}))
    await supervisor.start()
    return supervisor


async def until_ready(supervisor: Supervisor, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not supervisor.client.ready:
            await asyncio.sleep(0.02)


@pytest.fixture
async def slow() -> AsyncIterator[Supervisor]:
    """An engine that takes 10 ms a step."""
    supervisor = await start({"delay": 0.01})
    yield supervisor
    await supervisor.stop()


async def test_answers_over_the_socket() -> None:
    supervisor = await start()
    try:
        wanted = [request(f"r{i}", 30, (i + 1, 2, 3), n=1 + i % 3) for i in range(20)]
        answers = await asyncio.gather(*(collect(supervisor.client, each) for each in wanted))
        assert answers == [expected(each) for each in wanted]
        stats = await supervisor.client.stats()
        assert stats.running == stats.waiting == stats.blocks_owned == 0
        assert stats.generated_tokens == sum(30 * each.params.n for each in wanted)
        await supervisor.client.reset_prefix_cache()
        assert (await supervisor.client.stats()).blocks_cached == 0
        assert supervisor.healthy
    finally:
        await supervisor.stop()
    assert supervisor.pid is None


async def die_and_recover(supervisor: Supervisor, kill: Callable[[], None] = lambda: None) -> None:
    """Streams are under way, `kill` happens: every one gets the very ids that it would have had; nothing is leaked."""
    pid = supervisor.pid
    wanted = [request(f"open{i}", 60 + 10 * i, (i + 1, 2), n=1 + i % 2) for i in range(8)]
    streams = [asyncio.create_task(collect(supervisor.client, each)) for each in wanted]
    await asyncio.sleep(0.3)
    kill()
    answers = await asyncio.wait_for(asyncio.gather(*streams), 40)
    assert answers == [expected(each) for each in wanted]
    assert supervisor.pid is not None and supervisor.pid != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)
    assert supervisor.restarts == 1 and len(supervisor.deaths) == 1 and supervisor.client.resumed >= 8
    stats = await supervisor.client.stats()
    assert stats.running == stats.waiting == stats.blocks_owned == 0 and not supervisor.client.open_requests


async def test_killed(slow: Supervisor) -> None:
    await die_and_recover(slow, lambda: os.kill(slow.pid or 0, signal.SIGKILL))


async def test_hung(slow: Supervisor) -> None:
    """A stopped engine is killed before the next one starts; that it would go on later changes nothing."""
    begin = time.monotonic()
    await die_and_recover(slow, lambda: os.kill(slow.pid or 0, signal.SIGSTOP))
    assert time.monotonic() - begin > 2.0


@pytest.mark.parametrize("fault", ["core.before_run", "core.before_update"])
@pytest.mark.parametrize("plan", ["kill@3", "raise@3", "exit:7@3", "hang@3"])
async def test_faults(fault: str, plan: str) -> None:
    supervisor = await start({"delay": 0.01}, {fault: plan})
    try:
        await die_and_recover(supervisor)
    finally:
        await supervisor.stop()


async def test_a_gap_is_the_death_of_the_engine(slow: Supervisor) -> None:
    """An engine that leaves out ids is not believed any more: it is killed, and the next one brings them."""
    from octavo.engine.messages import Outputs

    def leave_out() -> None:
        name = next(iter(slow.client._requests.streams))
        slow.client._received(Outputs(1, 1, [ChoiceOutput(name, 0, 10**6, [1])]))

    await die_and_recover(slow, leave_out)


async def test_one_poisonous_request_in_a_process(tmp_path: Path) -> None:
    """Only it is refused, after log2(8) + 1 deaths of which one counts; each leaves a report that tells no prompt."""
    options = {"delay": 0.005, "poison": {"107": 12}}
    engine = EngineProcess("tests.engine.mortal:build", options, crashes=tmp_path / "crashes")
    supervisor = Supervisor(engine)
    await supervisor.start()
    try:
        params = SamplingParams(max_tokens=30, ignore_eos=True, stop=["secret"], temperature=0.5)
        wanted = [Request(f"r{i}", (i + 1, 2, 3), params, seed=100 + i) for i in range(8)]
        tasks = [collect(supervisor.client, each) for each in wanted]
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert isinstance(answers[7], EngineKiller)
        assert answers[:7] == [[ids for ids, _ in alone(each, 60, (0,), 400)] for each in wanted[:7]]
        assert len(supervisor.deaths) == 1 and 2 <= supervisor.restarts <= 4
    finally:
        await supervisor.stop()
    files = sorted((tmp_path / "crashes").iterdir())
    assert len(files) == supervisor.restarts and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    report = json.loads(files[-1].read_text())
    assert report["signal"] == "SIGSEGV" and report["reason"] == "signal 11" and report["step"]["running"]
    assert report["refused"] == report["requests"][-1]["digest"]
    assert report["requests"][-1] | {"digest": ""} == {
        "digest": "", "prompt_tokens": 3, "prompt": "redacted (--crash-prompts)", "given": [9], "seed": 107,
        "params": {"max_tokens": 30, "temperature": 0.5, "ignore_eos": True},
    }  # fmt: skip
    assert "Fatal Python error: Segmentation fault" in report["stack"][0]
    assert any("mortal.py" in line for line in report["stack"])
    assert "secret" not in files[-1].read_text()


async def test_reports_of_exceptions_and_prompts(tmp_path: Path) -> None:
    supervisor = Supervisor(
        EngineProcess(
            FACTORY, {"delay": 0.01}, faults={"core.before_run": "raise@3"}, crashes=tmp_path, crash_prompts=True
        )  # fmt: skip
    )
    await supervisor.start()
    try:
        wanted = request("r", 20)
        assert await collect(supervisor.client, wanted) == expected(wanted)
    finally:
        await supervisor.stop()
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert report["reason"] == "InjectedFault: core.before_run" and report["signal"] is None
    assert report["requests"][0]["prompt"] == [5, 6, 7] and "InjectedFault" in report["trace"][-1]


async def test_a_watch_that_stood_still_itself_kills_nobody(slow: Supervisor) -> None:
    """Time in which this process did not look is not held against the engine."""
    progress = slow._flight.progress if slow._flight else 0
    slow._last_look = (progress, time.monotonic() - 3600, 0.0)
    assert slow._still_seconds() <= 0.5 and slow.healthy


async def test_requests_meanwhile_are_told_to_wait(slow: Supervisor) -> None:
    os.kill(slow.pid or 0, signal.SIGKILL)
    async with asyncio.timeout(10):
        while slow.client.ready:
            await asyncio.sleep(0.001)
    with pytest.raises(Unavailable) as told:
        await collect(slow.client, request("early"))
    assert told.value.status == 503 and told.value.retry_after
    patient = request("part of something")
    answers: list[int] = []
    async for items in slow.client.submit(patient, patient=True):
        answers += [id_ for item in items for id_ in item.token_ids]
    assert [answers] == expected(patient) and slow.client.ready


async def test_dies_too_often() -> None:
    supervisor = await start()
    try:
        for _ in range(6):
            await until_ready(supervisor)
            os.kill(supervisor.pid or 0, signal.SIGKILL)
            while supervisor.client.ready:
                await asyncio.sleep(0.005)
        error = await asyncio.wait_for(supervisor.failure(), 10)
        assert isinstance(error, EngineDiedTooOften) and error.exit_code == 6
        with pytest.raises(EngineDiedTooOften):
            await collect(supervisor.client, request("late"))
        assert supervisor.pid is None
    finally:
        await supervisor.stop()


async def test_start_that_fails_says_why() -> None:
    with pytest.raises(DoesNotFit, match="too big") as told:
        await start({"fail": "too big by 3 GiB"})
    assert told.value.exit_code == 4


async def test_start_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.supervisor.START_SECONDS", 1.5)
    with pytest.raises(EngineDied, match="did nothing"):
        await asyncio.wait_for(start(faults={"process.before_build": "hang@1"}), 30)


async def test_start_that_dies_is_an_error() -> None:
    with pytest.raises(EngineDied, match="while starting"):
        await start(faults={"process.before_build": "kill@1"})


async def test_abort_and_leaving(slow: Supervisor) -> None:
    client = slow.client
    outputs: list[ChoiceOutput] = []
    async for items in client.submit(request("a", 2000)):
        outputs += items
        if len(outputs) == 3:
            await client.abort("a")
    assert outputs[-1].finish is FinishReason.ABORT
    stream = client.submit(request("b", 2000))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while (await client.stats()).running:
            await asyncio.sleep(0.01)
    assert (await client.stats()).blocks_owned == 0 and client.open_requests == 0


async def test_drain_waits_for_open_requests(slow: Supervisor) -> None:
    stream = asyncio.create_task(collect(slow.client, request("last", 40)))
    await asyncio.sleep(0.05)
    drained = asyncio.create_task(slow.client.drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await collect(slow.client, request("more"))
    assert not drained.done()
    assert await stream == expected(request("last", 40))
    await asyncio.wait_for(drained, 2)


FRONT = """
import asyncio, sys
from octavo.engine.supervisor import EngineProcess, Supervisor
async def main():
    supervisor = Supervisor(EngineProcess("tests.engine.scripted_runner:build", {"delay": 0.01}))
    await supervisor.start()
    print(supervisor.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_engine_ends_with_its_front() -> None:
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'src')!r}]\n" + FRONT
    front = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    with front.stdout:
        engine = int(front.stdout.readline())
        os.kill(engine, 0)
        front.kill()
        front.wait()
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and _runs(engine):
        time.sleep(0.01)
    assert not _runs(engine), "the engine outlives its front by more than 2 s"


def _runs(pid: int) -> bool:
    """Whether the process does anything still; a zombie that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


async def test_epochs_of_dead_engines_are_dropped(slow: Supervisor) -> None:
    """Words of an earlier epoch change nothing, ids that are known already are not given twice."""
    from octavo.engine.messages import Outputs

    client = slow.client
    stream = client.submit(request("e", 2000))
    first = await anext(stream)
    known = sum(len(item.token_ids) for item in first)
    (name,) = client._requests.streams
    client._received(Outputs(0, 1, [ChoiceOutput(name, 0, 999, [1, 2, 3])]))
    client._received(Outputs(1, 1, [ChoiceOutput(name, 0, 0, list(first[0].token_ids))]))
    second = await anext(stream)
    assert [item.index for item in second if item.token_ids][0] == known
    await stream.aclose()
