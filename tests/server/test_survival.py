"""The engine of a live server with a real model dies or hangs under mixed streams: each ends as it would have."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import real
from tests.server.live import Live, error_of
from tests.server.streams import ANTHROPIC_TOOLS, ASK, CHAT, KINDS, MESSAGES, TOOLS, Body, all_streams, bodies

COUNT = 2 * len(KINDS)
POISON = 666


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("mortal"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def undisturbed(mortal: Live) -> list[Any]:
    return all_streams(mortal.url, bodies(COUNT))


def settled(live: Live) -> None:
    live.wait_idle()
    assert live.metric("kv_cache_usage_perc") == 0
    assert len(psutil.Process(live.process.pid).children()) == 1


def test_killed_under_mixed_streams(mortal: Live, undisturbed: list[Any]) -> None:
    """Every stream completes with exactly the tokens of the undisturbed run; nothing is lost or leaked."""
    old = mortal.engine()

    def kill() -> None:
        old.send_signal(signal.SIGKILL)
        seen = set()
        end = time.monotonic() + 20
        while 200 not in seen or 503 not in seen:
            answer = httpx.get(f"{mortal.url}/health")
            seen.add(answer.status_code)
            if answer.status_code == 503:
                assert "retry-after" in answer.headers and error_of(answer)["code"] == "unavailable"
                assert httpx.get(f"{mortal.url}/live").status_code == 200
            elif 503 not in seen:
                assert old.is_running() or time.monotonic() < end
            assert time.monotonic() < end

    assert all_streams(mortal.url, bodies(COUNT), kill) == undisturbed
    settled(mortal)
    assert mortal.engine().pid != old.pid and mortal.metric("engine_restarts_total") == 1
    assert "crash report: " in mortal.log


def test_stopped_under_mixed_streams(mortal: Live, undisturbed: list[Any]) -> None:
    """An engine that stands still is killed; what is left of it does not come back to life."""
    old = mortal.engine()
    assert all_streams(mortal.url, bodies(COUNT), lambda: old.send_signal(signal.SIGSTOP)) == undisturbed
    assert not psutil.pid_exists(old.pid)
    settled(mortal)


def test_calls_of_a_model_that_calls(tmp_path: Path) -> None:
    """Where a model decides to call, its calls go on as they were begun, in each dialect."""
    live = Live(tmp_path, "--max-model-len", "1024", "--kv-cache-memory", "128MiB", model=real.qwen_half_b())
    wanted: list[Body] = [
        (CHAT, {"messages": ASK, "tools": TOOLS, "temperature": at / 4, "seed": at, "max_tokens": 90})
        for at in range(4)
    ]
    wanted.append((MESSAGES, {"messages": ASK, "tools": ANTHROPIC_TOOLS, "max_tokens": 90, "temperature": 0}))
    wanted = [(path, {**body, "stream": True, "stream_options": {"include_usage": True}}) for path, body in wanted]
    whole = all_streams(live.url, wanted)
    assert all(sum(str(said).count("get_weather") for said in each.values()) for each in whole), whole
    kill = lambda: live.engine().send_signal(signal.SIGKILL)  # noqa: E731
    assert all_streams(live.url, wanted, kill, first=len(wanted)) == whole
    settled(live)
    assert live.metric("engine_restarts_total") == 1 and live.stop() == 0


def test_a_poisonous_request_among_others(tmp_path: Path) -> None:
    """Only it is refused, in its dialect's shape, and again at once when it is repeated; the server lives on."""
    live = Live(tmp_path, program=("tests.server.faulty", json.dumps({"poison": POISON, "after": 6})))
    wanted = bodies(8)
    whole = all_streams(live.url, wanted)
    body = {"model": "default", "prompt": "Hello", "options": {"num_predict": 40, "seed": POISON}, "stream": False}
    refused: list[httpx.Response] = []

    def poison() -> None:
        refused.append(httpx.post(f"{live.url}/api/generate", json=body, timeout=120))

    assert all_streams(live.url, wanted, poison) == whole
    (answer,) = refused
    assert answer.status_code == 500 and "ended the engine" in answer.json()["error"]
    deaths = live.log.count("the engine died: signal 11")
    assert 2 <= deaths <= 5 and live.metric("engine_restarts_total") == deaths
    again = httpx.post(f"{live.url}/api/generate", json=body, timeout=120)
    assert again.status_code == 500 and "known to end the engine" in again.json()["error"]
    assert live.log.count("the engine died") == deaths
    settled(live)
    assert live.stop() == 0


def test_clients_hear_comments_while_the_engine_is_away(tmp_path: Path) -> None:
    live = Live(tmp_path, "--sse-ping-interval", "0.2")
    body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}
    lines = []
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            lines.append(line)
            if len(lines) == 20:
                live.engine().send_signal(signal.SIGSTOP)
    assert lines.count(": ping") >= 5 and "data: [DONE]" in lines[-2:]
    assert live.stop() == 0


def test_a_drain_outlives_the_engine(tmp_path: Path) -> None:
    """SIGTERM, then the engine's death: what was open is finished all the same, exit code 0."""
    live = Live(tmp_path)
    wanted = bodies(6)
    whole = all_streams(live.url, wanted)

    def end() -> None:
        live.process.send_signal(signal.SIGTERM)
        live.engine().send_signal(signal.SIGKILL)

    assert all_streams(live.url, wanted, end, first=len(wanted)) == whole
    assert live.wait() == 0 and "Draining: " in live.log
