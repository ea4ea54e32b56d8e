"""What the address answers while the model loads, and that the first answers after it are the model's."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from octavo.config import ServerConfig
from octavo.server import loading
from octavo.server.address import Listener
from tests import real


def begin(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(real.smollm2()), "--port", str(port)]
    environment = {**os.environ, "OCTAVO_STATE": str(folder)}
    sizes = ["--max-model-len", "512", "--kv-cache-memory", "64MiB"]
    with (folder / "said").open("w") as said:
        return subprocess.Popen([*command, *sizes], stderr=said, env=environment, text=True)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`octavo serve` from its first moment: the URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = begin(folder, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_server_says_that_it_loads_until_it_answers(tmp_path: Path) -> None:
    body = {"prompt": "Hello", "max_tokens": 2, "temperature": 0}
    seen: list[httpx.Response] = []
    lively = 0
    with serving(tmp_path) as url, httpx.Client(base_url=url, timeout=60) as client:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                health = client.get("/health")
                seen.append(client.post("/v1/completions", json=body))
                if health.status_code == 503 and client.get("/live").status_code == 200:
                    lively += 1
            except httpx.ConnectError:  # not bound yet
                time.sleep(0.01)
                continue
            if seen[-1].status_code == 200:
                break
    *waiting, answered = seen
    assert answered.status_code == 200 and answered.json()["choices"][0]["text"]
    assert waiting and lively
    for response in waiting:
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["message"] == "Loading model"
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("seconds", [0.03, 0.1, 0.2, 0.4, 0.6, 0.9, 1.5])
def test_a_signal_in_any_phase_of_a_start(tmp_path: Path, seconds: float) -> None:
    """Wherever it is by then: it ends without a stack, and leaves no process."""
    process = begin(tmp_path, 0)
    time.sleep(seconds)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM), "the latter before Python has taken over the signal"
    assert "Traceback" not in (tmp_path / "said").read_text()
    left = [each for each in psutil.wait_procs(children, 5)[1] if each.is_running()]
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /live?x=1 HTTP/1.1\r\n\r\n", 200),
        (b"GET /v1/live/ HTTP/1.1\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\n\r\n", 503),
        (b"POST /api/chat HTTP/1.1\r\n\r\n", 503),
        (b"POST /v1/messages HTTP/1.1\r\n\r\n", 529),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000, 503),
        (b"\r\n\r\n", 503),
        (b"\x16\x03\x01" + b"\0" * (loading.MAX_HEAD + 1), 503),  # TLS, or anything without an end
    ],
)
async def test_every_connection_gets_one_answer(head: bytes, status: int) -> None:
    config = ServerConfig(port=0)
    listener = await Listener.bind(config)
    ended = asyncio.Event()

    class Loading(loading.Loading):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    try:
        await listener.answer_with(Loading)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        for at in range(0, len(head), 100_000):  # in pieces, the body after the answer
            writer.write(head[at : at + 100_000])
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        listener.close()
    words, _, body = answer.partition(b"\r\n\r\n")
    assert words.startswith(b"HTTP/1.1 %d " % status) and answer.count(b"HTTP/1.1") == 1
    assert f"content-length: {len(body)}".encode() in words
    assert ("error" in json.loads(body)) == (status > 500)
