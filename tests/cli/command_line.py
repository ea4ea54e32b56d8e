"""Octavo's commands as processes of their own: run to the end, serving, or on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OCTAVO = [sys.executable, "-m", "octavo.cli.main"]
SMALL = ["--max-model-len", "256", "--kv-cache-memory", "64MiB"]
WAIT = 90.0  # seconds; machines of tests are slow and shared


def environment(home: Path, **more: str) -> dict[str, str]:
    """Without the developer's settings, and without a server that may run on the default port."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OCTAVO_", "OMP_", "OPENAI_", "HF_", "VLLM_"))}
    own = {"OCTAVO_CACHE": str(home), "OCTAVO_STATE": str(home / "state"), "OCTAVO_ARG_PORT": str(free_port())}
    return {**kept, **own, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1", **more}


def octavo(home: Path, *args: str, text: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. text: standard input."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    given |= {"env": environment(home, **more), "timeout": WAIT}
    return subprocess.run([*OCTAVO, *args], capture_output=True, text=True, check=False, **given)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, seconds: float = WAIT) -> Iterator[None]:
    """Try again every 50 ms; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    pytest.fail(f"no {what} within {seconds:.0f} s")


class Serving:
    """`octavo serve` with standard error in a file."""

    def __init__(self, home: Path, *args: str, **more: str) -> None:
        self.file = home / f"serve-{time.monotonic_ns()}.log"
        with self.file.open("w") as log:
            self.process = subprocess.Popen(
                [*OCTAVO, "serve", "--port", "0", *SMALL, *args], env=environment(home, **more),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.url = ""
        for _ in until("server"):
            found = re.search(r"^Ready: (\S+)", self.log, re.M)
            if found:
                self.url = found[1]
                break
            assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self.file.read_text()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and standard output."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, home: Path, *args: str) -> None:
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [*OCTAVO, *args], stdin=inside, stdout=inside, stderr=inside, env=environment(home, TERM="dumb"),
            start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)

    def interrupt(self) -> None:
        """Ctrl-C, as a person types it: input() listens for signals a moment after its prompt is out."""
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)

    def wait(self, pattern: str) -> None:
        """Until the pattern appears after all that was waited for before."""
        end = time.monotonic() + WAIT
        while not (found := re.search(pattern, self.text, re.S)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.screen], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):  # the other end was closed
                    self.text += os.read(self.screen, 65536).decode("utf-8", "replace")
        self.text = self.text[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())
