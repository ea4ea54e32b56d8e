"""A real server in a process of its own, over the real engine and model, and plain sockets to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from octavo.server.dialect import ANTHROPIC, OLLAMA, dialect_of
from octavo.server.routes import canonical
from tests import real

CONTEXT = 1024  # --max-model-len of the servers of these tests
READY = re.compile(r"Ready: (\S+)")
INNER = re.compile(r"Traceback|\bline \d+, in |/src/octavo/|site-packages|0x[0-9a-f]{8,}")  # of our own, in no error


class Live:
    """`octavo serve` on a free port; its standard error is kept in `lines`."""

    def __init__(
        self, folder: Path, *flags: str, model: Path | None = None, program: Sequence[str] = ("octavo.cli.main",)
    ) -> None:
        """model: another one than SmolLM2, in its own sizes. program: the module that is run, and what stands before
        the command."""
        self.lines: list[str] = []
        self._ready = threading.Event()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OCTAVO_ARG", "OMP_NUM"))}
        environment["OCTAVO_STATE"] = str(folder)
        command = [sys.executable, "-m", *program, "serve", str(model or real.smollm2()), "--port", "0"]
        sizes = [] if model else ["--max-model-len", str(CONTEXT), "--kv-cache-memory", "512MiB"]
        self.process = subprocess.Popen(
            [*command, *sizes, *flags], stderr=subprocess.PIPE, env=environment, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(60) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if READY.search(line):
                self._ready.set()
        self._ready.set()  # it ended: __init__ sees that

    @property
    def url(self) -> str:
        found = next(found for line in self.lines if (found := READY.search(line)))
        return found[1]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def metric(self, name: str) -> float:
        """A metric without labels of its own."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^octavo:{name}\{{.*\}} (\S+)$", text, re.M)
        assert found, f"no metric {name}"
        return float(found[1])

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Until nothing runs and nothing waits."""
        end = time.monotonic() + seconds
        while self.metric("num_requests_running") + self.metric("num_requests_waiting"):
            assert time.monotonic() < end, "requests are still running"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end that a signal has brought about; the exit code."""
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def raw(self, data: bytes, timeout: float = 20.0) -> bytes:
        """What a socket gives back for bytes, to its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            with contextlib.suppress(OSError):  # refused before all was sent
                connection.sendall(data)
            return receive_all(connection)


def receive_all(connection: socket.socket) -> bytes:
    """Bytes until the other side closes."""
    got = b""
    with connection, contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while chunk := connection.recv(65536):
            got += chunk
    return got


def request(path: str, body: bytes, *headers: str) -> bytes:
    """A POST on the wire that asks for the connection to end."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def events(text: str) -> list[Any]:
    """The data of a stream; comments are left out, [DONE] is a string."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must have the shape of its path's API; of the others as OpenAI's names it."""
    body, dialect = response.json(), dialect_of(canonical(response.url.path))
    if dialect is ANTHROPIC:
        assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}, body
        assert body["type"] == "error" and body["request_id"] == response.headers["request-id"]
        body = {"error": {**body["error"], "param": None, "code": None}}
    elif dialect is OLLAMA:
        assert isinstance(body["error"], str), body
        body = {"error": {"message": body["error"], "type": None, "param": None, "code": None}}
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and not INNER.search(response.text), response.text
    return dict(body["error"])
