"""The engine of a live server with a real model dies or hangs under mixed streams: each ends as it would have."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.live import Live, error_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def bodies(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Streams of every kind, each with a seed."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "temperature": 0.8}),
        (CHAT, {"messages": [{"role": "user", "content": "Count to twenty."}], "logprobs": True, "top_logprobs": 3}),
        (TEXT, {"prompt": "The three largest cities are", "n": 2, "temperature": 1.0}),
        (TEXT, {"prompt": "Once upon a time", "frequency_penalty": 0.7, "repetition_penalty": 1.2, "temperature": 0.9}),
        (TEXT, {"prompt": "a b c d e f g", "stop": [" the ", "q", "\n\n"], "temperature": 1.3}),
        (TEXT, {"prompt": "1, 2, 3,", "logprobs": 2, "echo": True, "temperature": 0.7}),
        (TEXT, {"prompt": "def main():", "mirostat": 2, "mirostat_tau": 4.0, "temperature": 1.0}),
        (
            TEXT,
            {"prompt": "In the beginning", "dry_multiplier": 0.8, "min_tokens": 20, "best_of": 3, "temperature": 1.1},
        ),
        (TEXT, {"prompt": ["Red, green", "One, two"], "xtc_probability": 0.5, "temperature": 1.0}),
    ]
    made = []
    for number in range(count):
        path, body = kinds[number % len(kinds)]
        more = {"max_tokens": 40 + 7 * (number % 11), "seed": 500 + number, "stream": True}
        more["stream_options"] = {"include_usage": True}
        made.append((path, {**body, **more}))
    return made


def read(live: Live, path: str, body: dict[str, Any], begun: threading.Semaphore | None = None) -> list[Any]:
    """The events of a stream, without what depends on the moment."""
    found = []
    with httpx.stream("POST", live.url + path, json=body, timeout=120) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if begun is not None:
                    begun.release()
                    begun = None
                found.append(event)
    assert line == "data: [DONE]" or not line
    for event in found:
        for key in ("id", "created", "timings"):
            event.pop(key, None)
        if usage := event.get("usage"):
            del usage["prompt_tokens_details"]  # what a cache held
    return found


def text_of(events: list[Any]) -> dict[int, list[Any]]:
    """What a stream says of each choice, whatever pieces it came in."""
    made: dict[int, list[Any]] = {}
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            text, logprobs, rest = made.setdefault(choice["index"], ["", [], []])
            delta = choice.get("delta", {})
            piece = choice.get("text") or delta.get("content") or ""
            more = choice.get("logprobs")
            made[choice["index"]] = [text + piece, logprobs + ([more] if more else []), rest or choice["finish_reason"]]
    return made


def all_streams(live: Live, wanted: list[tuple[str, dict[str, Any]]], between: Any = None) -> list[Any]:
    """All at once; `between` is called when half of them have begun."""
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(len(wanted)) as pool:
        running = [pool.submit(read, live, path, body, begun) for path, body in wanted]
        if between is not None:
            for _ in range(len(wanted) // 2):
                assert begun.acquire(timeout=60)
            between()
        found = [each.result() for each in running]
    return [(text_of(events), events[-1]["usage"]) for events in found]


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("mortal"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def undisturbed(mortal: Live) -> list[Any]:
    return all_streams(mortal, bodies(18))


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
                assert "retry-after" in answer.headers and error_of(answer)["type"] == "service_unavailable"
                assert httpx.get(f"{mortal.url}/live").status_code == 200
            elif 503 not in seen:
                assert old.is_running() or time.monotonic() < end
            assert time.monotonic() < end

    assert all_streams(mortal, bodies(18), kill) == undisturbed
    settled(mortal)
    assert mortal.engine().pid != old.pid and mortal.metric("engine_restarts_total") == 1
    assert "crash report: " in mortal.log


def test_stopped_under_mixed_streams(mortal: Live, undisturbed: list[Any]) -> None:
    """An engine that stands still is killed; what is left of it does not come back to life."""
    old = mortal.engine()
    assert all_streams(mortal, bodies(18), lambda: old.send_signal(signal.SIGSTOP)) == undisturbed
    assert not psutil.pid_exists(old.pid)
    settled(mortal)


def test_no_orphans(tmp_path: Path) -> None:
    """The front is killed under streams: in 2 s nothing is left of it."""
    live = Live(tmp_path)
    children = psutil.Process(live.process.pid).children(recursive=True)
    assert children
    live.process.kill()
    live.wait()
    _, alive = psutil.wait_procs(children, timeout=2.0)
    assert not alive


def test_too_many_deaths(tmp_path: Path) -> None:
    """The sixth within ten minutes ends the server with exit code 6."""
    live = Live(tmp_path)
    for death in range(1, 7):
        end = time.monotonic() + 30
        while httpx.get(f"{live.url}/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        live.engine().send_signal(signal.SIGKILL)
        while live.log.count("the engine died: ") < death:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert live.wait() == 6
    assert "died 6 times" in live.log
    assert len(os.listdir(tmp_path / "crashes")) == 6
