"""Streams that are silent, left, cut off or read slowly; the engine's death under them; the end of the server."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.types import Message

from octavo.errors import EngineDied, Unavailable
from octavo.server import sse
from octavo.server.sse import ClientGone, EventStream
from tests.server.live import Live, error_of, events, receive_all

LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}


# -- the stream itself, over a source that the test holds --------------------------------------------------------------


class Wire:
    """The ASGI side of a client: what it was sent, and when it leaves."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Scripted:
    """A Flow of chunks, pauses in seconds, and errors."""

    def __init__(self, *items: bytes | float | Exception) -> None:
        self._items = [*items]
        self._news: Callable[[], None] = lambda: None
        self._pausing = self.closed = False

    @property
    def done(self) -> bool:
        return not self._items

    async def start(self, news: Callable[[], None]) -> None:
        self._news = news
        self._pause()

    def take(self) -> bytes | None:
        if self._pausing or not self._items:
            return None
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, bytes)
        self._pause()
        return item

    def close(self) -> None:
        self.closed = True

    def _pause(self) -> None:
        if self._items and isinstance(self._items[0], float):
            self._pausing = True
            asyncio.get_running_loop().call_later(self._items[0], self._paused)

    def _paused(self) -> None:
        self._pausing = False
        del self._items[0]
        self._news()


def stream(source: Scripted, ping: float = 15.0) -> EventStream:
    return EventStream(source, {}, ping, lambda: b"data: idle\n\n")


async def test_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments at first, then a chunk for clients that count chunks; also before the first token."""
    monkeypatch.setattr(sse, "IDLE_SECONDS", 0.35)
    wire = Wire()
    await stream(Scripted(0.55, b"data: 1\n\n", 0.25, b"data: 2\n\n"), ping=0.1)({}, wire.receive, wire.send)
    lines = wire.body.split(b"\n\n")
    before, between = lines[: lines.index(b"data: 1")], lines[lines.index(b"data: 1") + 1 : lines.index(b"data: 2")]
    assert before.count(b"data: idle") == 1 and before.count(b": ping") in (2, 3, 4) and before[0] == b": ping"
    assert set(between) == {b": ping"}
    assert wire.sent[0]["status"] == 200 and wire.sent[-1]["more_body"] is False


async def test_no_comments_if_told_so() -> None:
    wire = Wire()
    await stream(Scripted(b"data: 1\n\n", 0.2), ping=0)({}, wire.receive, wire.send)
    assert wire.body == b"data: 1\n\n"


async def test_an_error_before_the_first_chunk_is_an_ordinary_answer() -> None:
    wire = Wire()
    with pytest.raises(Unavailable):
        await stream(Scripted(Unavailable("not now")))({}, wire.receive, wire.send)
    assert wire.sent == []


@pytest.mark.parametrize("error", [EngineDied("The engine died.", begun=True), ZeroDivisionError("secret")])
async def test_an_error_in_a_stream_ends_it(error: Exception) -> None:
    wire = Wire()
    await stream(Scripted(b"data: 1\n\n", error))({}, wire.receive, wire.send)
    first, told, done, _ = wire.body.split(b"\n\n")
    body = json.loads(told.removeprefix(b"data: "))
    assert (first, done) == (b"data: 1", b"data: [DONE]") and b"secret" not in told
    assert set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["type"] == "server_error"
    assert wire.sent[-1]["more_body"] is False


async def test_a_client_that_leaves_ends_the_source() -> None:
    source = Scripted(b"data: 1\n\n", 60.0)
    wire = Wire()
    task = asyncio.create_task(stream(source)({}, wire.receive, wire.send))
    await asyncio.sleep(0.05)
    wire.left.set()
    with pytest.raises(ClientGone):
        await task
    assert source.closed and task.cancelling() == 0


async def test_a_client_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALLED_SECONDS", 0.2)
    wire = Wire()
    wire.reads.clear()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(stream(Scripted(b"data: 1\n\n", 60.0), ping=0.1)({}, wire.receive, wire.send), 5)


class Socket:
    """The writer of a connection, whose client reads while `ready`."""

    def __init__(self, wire: Wire) -> None:
        self.ready = True
        self.written: list[bytes] = []
        self._wire = wire

    def write(self, data: bytes) -> bool:
        if self.ready:
            assert self._wire.reads.is_set()
            self.written.append(data)
            self._wire.sent.append({"type": "http.response.body", "body": data})
        return self.ready


async def test_pieces_go_straight_to_a_client_that_reads() -> None:
    """In order, whether they go straight or through the task; the first and the last go through the task."""
    wire = Wire()
    socket = Socket(wire)
    pieces = [b"data: %d\n\n" % number for number in range(6)]
    source = Scripted(*(item for piece in pieces for item in (piece, 0.02)))
    made = stream(source)
    task = asyncio.create_task(made({"extensions": {sse.BODY: {"writer": socket}}}, wire.receive, wire.send))
    while len(socket.written) < 2:
        await asyncio.sleep(0.001)
    socket.ready = False
    wire.reads.clear()
    await asyncio.sleep(0.05)
    assert len(socket.written) == 2
    socket.ready = True
    wire.reads.set()
    await task
    assert wire.body == b"".join(pieces) and len(socket.written) >= 3
    assert source.closed


async def test_an_error_of_a_piece_that_goes_straight_ends_the_stream() -> None:
    wire = Wire()
    source = Scripted(b"data: 1\n\n", 0.01, EngineDied("The engine died.", begun=True))
    await stream(source)({"extensions": {sse.BODY: {"writer": Socket(wire)}}}, wire.receive, wire.send)
    assert wire.body.startswith(b'data: 1\n\ndata: {"error"') and wire.body.endswith(b"data: [DONE]\n\n")
    assert source.closed


# -- a live server -----------------------------------------------------------------------------------------------------


def open_stream(live: Live, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A connection that has asked and has read the answer's first bytes, if it streams."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    if body.get("stream"):
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    return connection


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_frees_everything(live: Live, how: str, streamed: bool) -> None:
    connections = [open_stream(live, {**LONG, "stream": streamed}) for _ in range(8)]
    end = time.monotonic() + 5
    while live.metric("num_requests_running") + live.metric("num_requests_waiting") < 8:
        assert time.monotonic() < end
    for connection in connections:
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    live.wait_idle(1.0)
    assert live.metric("kv_cache_usage_perc") == 0


def test_a_full_queue_and_those_who_leave_it(tmp_path: Path) -> None:
    """One runs, one waits, the next is told when to come again; who leaves the queue is never computed."""
    live = Live(tmp_path, "--max-num-seqs", "1", "--max-num-queued-reqs", "1")
    running = open_stream(live, LONG)
    waiting = open_stream(live, {**LONG, "prompt": "a " * 500, "stream": False})
    end = time.monotonic() + 5
    while live.metric("num_requests_waiting") < 1:
        assert time.monotonic() < end
    refused = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "stream": True})
    assert refused.status_code == 429 and error_of(refused)["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    waiting.close()
    while live.metric("num_requests_waiting"):
        assert time.monotonic() < end
    running.close()
    live.wait_idle(2.0)
    assert live.metric("prompt_tokens_total") < 100
    assert live.stop() == 0


def test_a_slow_reader_gets_everything_and_holds_nobody_up(live: Live) -> None:
    body = {**LONG, "max_tokens": 300, "n": 8, "logprobs": 20, "temperature": 1}
    connection = open_stream(live, body)
    begin = time.monotonic()
    quick = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 4}, timeout=30)
    assert quick.status_code == 200 and time.monotonic() - begin < 10
    time.sleep(1.0)  # reads nothing
    connection.settimeout(30)
    got = b""
    while b"data: [DONE]" not in got[-200:]:
        got += connection.recv(1 << 20)
    connection.close()
    text = got.decode()
    assert text.count('"finish_reason":"length"') == 8


def test_thousand_idle_connections_do_no_harm(live: Live) -> None:
    idle = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(1000)]
    try:
        answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=30)
        assert answer.status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_drain(tmp_path: Path) -> None:
    """SIGTERM: no new work, open streams end by themselves, exit 0."""
    live = Live(tmp_path)
    connection = open_stream(live, {**LONG, "max_tokens": 300})
    rest: list[bytes] = []
    reader = threading.Thread(target=lambda: rest.append(receive_all(connection)))
    reader.start()
    live.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 5
    while (answer := httpx.get(f"{live.url}/health")).status_code == 200:
        assert time.monotonic() < end
    assert answer.status_code == 503 and answer.headers["connection"] == "close" and "retry-after" in answer.headers
    refused = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503 and error_of(refused)["code"] == "unavailable"
    assert live.wait() == 0
    reader.join(5)
    assert b'"finish_reason":"length"' in rest[0] and b"data: [DONE]" in rest[0]
    assert "Draining: 1 requests left" in live.log and "done. Served 1 requests, 300 tokens." in live.log


def test_drain_beyond_its_time(tmp_path: Path) -> None:
    """What is not done at --shutdown-timeout is told so; exit 0 all the same."""
    live = Live(tmp_path, "--shutdown-timeout", "1", "--max-model-len", "8192")
    connection = open_stream(live, {**LONG, "max_tokens": 8000})
    live.process.send_signal(signal.SIGTERM)
    got = receive_all(connection).decode()
    told = [each for each in events(got) if each != "[DONE]" and "error" in each]
    assert told[0]["error"]["code"] == "unavailable" and "data: [DONE]" in got
    assert live.wait() == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    live = Live(tmp_path, "--max-model-len", "8192")
    engine = live.engine()
    connection = open_stream(live, {**LONG, "max_tokens": 8000})
    live.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    begin = time.monotonic()
    assert live.stop(signal.SIGINT) == 130
    assert time.monotonic() - begin < 4 and not engine.is_running()
    connection.close()


def test_the_engine_ends_with_a_killed_front(tmp_path: Path) -> None:
    live = Live(tmp_path)
    engine = live.engine()
    live.stop(signal.SIGKILL)
    assert engine.wait(2) is None or not engine.is_running()


def test_an_engine_that_dies_too_often_ends_the_server(tmp_path: Path) -> None:
    """Exit 6, with the reason as the last line."""
    live = Live(tmp_path, "--kv-cache-memory", "64MiB")
    killed = set()
    end = time.monotonic() + 60
    while live.process.poll() is None:
        assert time.monotonic() < end
        for engine in psutil.Process(live.process.pid).children():
            if engine.pid not in killed:
                killed.add(engine.pid)
                time.sleep(0.2)
                engine.kill()
        time.sleep(0.02)
    assert live.wait() == 6 and len(killed) == 6
    assert "error: The engine died 6 times" in live.log and "Traceback" not in live.log
