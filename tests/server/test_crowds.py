"""Crowds: a thousand clients who ask, leave, or write slowly at once, and a server that runs out of descriptors."""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.live import Live, request

MANY = 1000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
LONG = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Room for a thousand sockets of our own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * MANY)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def connections(live: Live, count: int) -> Iterator[list[socket.socket]]:
    """So many open ones."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", live.port), 60)) for _ in range(count)]


def read_all(open_: list[socket.socket], seconds: float = 120.0) -> list[bytes]:
    """What each of them is told, to the end of its connection."""
    told = {each: b"" for each in open_}
    with selectors.DefaultSelector() as selector:
        for each in open_:
            selector.register(each, selectors.EVENT_READ)
        end = time.monotonic() + seconds
        while selector.get_map():
            assert time.monotonic() < end, f"{len(selector.get_map())} connections were told nothing"
            for key, _ in selector.select(1.0):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = connection.recv(1 << 16)
                told[connection] += data
                if not data:
                    selector.unregister(connection)
    return [*told.values()]


def wait_descriptors(live: Live, most: int) -> None:
    """Until the front has no more than so many."""
    process, end = psutil.Process(live.process.pid), time.monotonic() + 10
    while process.num_fds() > most:
        assert time.monotonic() < end, f"{process.num_fds()} descriptors instead of {most}"
        time.sleep(0.05)


def test_a_thousand_ask_at_once(live: Live) -> None:
    """Beside a thousand idle connections each is answered, whole, or refused with a time to come again."""
    before = psutil.Process(live.process.pid).num_fds()
    body = json.dumps({"prompt": "One, two,", "max_tokens": 2, "ignore_eos": True}).encode()
    with connections(live, MANY), connections(live, MANY) as asking:
        for each in asking:
            each.sendall(request("/v1/completions", body))
        told = read_all(asking)
    statuses = Counter(each[9:12] for each in told)
    assert set(statuses) <= {b"200", b"429"} and statuses[b"200"] >= MANY // 2, statuses
    for each in told:
        head, _, rest = each.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") or b"\r\nretry-after: " in head
        json.loads(rest)
    wait_descriptors(live, before)


def test_a_thousand_leave_at_once(live: Live) -> None:
    """Half of them by a reset; some have begun to read, most are waiting."""
    before = psutil.Process(live.process.pid).num_fds()
    with connections(live, MANY) as asking:
        for each in asking:
            each.sendall(request("/v1/completions", json.dumps(LONG).encode()))
        assert asking[0].recv(4096).startswith(b"HTTP/1.1 200")
        for place, each in enumerate(asking):
            if place % 2:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert httpx.get(f"{live.url}/metrics", timeout=250).status_code == 200  # it has seen to all of them
    live.wait_idle(20)
    assert live.metric("kv_cache_usage_perc") == 0
    wait_descriptors(live, before)
    assert httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_a_thousand_write_slowly(live: Live) -> None:
    """Heads and bodies that come byte by byte are in nobody's way."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
    with connections(live, MANY) as slow:
        for place, each in enumerate(slow):
            each.sendall(head + b"\r\n{" if place % 2 else head)
        for byte in range(10):
            for place, each in enumerate(slow):
                each.sendall(b" " if place % 2 else b"X-%d: a\r\n" % byte)
            answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=60)
            assert answer.status_code == 200


def test_few_descriptors(tmp_path: Path) -> None:
    """What is beyond the limit waits or is closed; the server goes on, and answers when there is room again."""
    live = Live(tmp_path, "--max-num-seqs", "4")
    front = psutil.Process(live.process.pid)
    assert httpx.get(f"{live.url}/health").status_code == 200
    room = front.num_fds() + 10
    front.rlimit(psutil.RLIMIT_NOFILE, (room, room))
    with connections(live, 60) as open_:
        for each in open_:
            each.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        told = read_all(open_)  # each that is answered makes room for another one
        assert {each[:12] for each in told} <= {b"HTTP/1.1 200", b""} and any(told)
    with connections(live, 60):  # nobody makes room
        time.sleep(1.0)
        assert live.process.poll() is None
    answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60)
    assert answer.status_code == 200
    assert len(live.lines) < 100, "a line for each connection that could not be taken"
    assert live.stop() == 0
