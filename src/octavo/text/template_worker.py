"""A template that is not trusted, rendered in a child process that can be killed.

The child may use little memory and time, open no file, start no process and reach no network; whatever it does, the
parent gets a text or TemplateFailed before the deadline. It knows frames and limits; template knows Jinja.

Frames, both ways: 8 bytes of length, little-endian, then JSON.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from octavo.text.template import Fault, Template, TemplateFailed

MEMORY = 512 << 20  # bytes of address space; the child starts with about 60 MiB of it
LONGEST_ANSWER = 64 << 20  # bytes
START_S = 5.0  # to a first rendering, start of Python included
RENDER_S = 1.0
PROBE_PATIENCE_S = 20.0  # more for the model's own template at start: a busy machine must not make it a hostile one

# What the audit hook of the child refuses; templates need none of it, an escape from the sandbox all.
_FORBIDDEN = ("open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "sqlite3.", "winreg.", "marshal.")


class TemplateWorker:
    """Renders one template at a time in the child, which is started when first needed and again after a kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(
        self, source: str, variables: Mapping[str, Any], seconds: float = RENDER_S, patience: float = 0.0
    ) -> str:
        """The text, or TemplateFailed: the template's fault, or the deadline.

        seconds: of the processor, and of the clock with `patience` (and START_S for a new child) added.
        """
        asked = {"template": source, "variables": dict(variables), "seconds": seconds, "patience": patience}
        try:
            request = json.dumps(asked).encode()
        except (RecursionError, TypeError, ValueError) as error:
            raise TemplateFailed(f"its variables are not plain JSON: {error}", Fault.FAILURE) from error
        with self._lock:
            child = self._child
            if child is not None and child.poll() is not None:
                self._kill(child)
                child = None
            if child is None:
                child = self._child = self._start()
                patience += START_S
            try:
                answer = self._ask(child, request, time.monotonic() + seconds + patience)
            except TemplateFailed:
                self._kill(child)
                raise
        if "text" in answer:
            return str(answer["text"])
        raise TemplateFailed(str(answer.get("error")), Fault(answer.get("fault", Fault.BROKEN)))

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            if self._child is not None:
                self._kill(self._child)

    def _start(self) -> subprocess.Popen[bytes]:
        # The package's own folder, since an isolated interpreter finds neither PYTHONPATH nor an editable install; no
        # environment, since it may hold secrets.
        package = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {package!r}); from octavo.text.template_worker import main; main()"
        return subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            close_fds=True,
            start_new_session=True,  # Ctrl-C in the terminal is the server's matter
            bufsize=0,
        )

    def _ask(self, child: subprocess.Popen[bytes], request: bytes, deadline: float) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None
        _send(child.stdin.fileno(), len(request).to_bytes(8, "little") + request, deadline)
        size = int.from_bytes(_receive(child.stdout.fileno(), 8, deadline), "little")
        if size > LONGEST_ANSWER:
            raise TemplateFailed("the template's text is too long")
        answer = json.loads(_receive(child.stdout.fileno(), size, deadline))
        if not isinstance(answer, dict):
            raise TemplateFailed("the template's process broke")
        return answer

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._child = None


def _send(handle: int, content: bytes, deadline: float) -> None:
    os.set_blocking(handle, False)
    view = memoryview(content)
    while view:
        _wait(handle, select.POLLOUT, deadline)
        try:
            view = view[os.write(handle, view) :]
        except BrokenPipeError:
            raise TemplateFailed("the template used too much time or memory, or broke its process") from None


def _receive(handle: int, size: int, deadline: float) -> bytes:
    content = bytearray()
    while len(content) < size:
        _wait(handle, select.POLLIN, deadline)
        part = os.read(handle, min(size - len(content), 1 << 20))
        if not part:
            raise TemplateFailed("the template used too much time or memory, or broke its process")
        content += part
    return bytes(content)


def _wait(handle: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(handle, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TemplateFailed("the template did not finish in time")


def main() -> None:
    """The child: answers until its input ends."""
    # What rendering touches late is loaded now, before files are closed to it.
    Template("{{ [1] | tojson }}{{ strftime_now('%d %b %Y') }}").render({})
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_refuse)
    while (request := _read_frame(requests)) is not None:
        # Should the parent be gone when the time is over, nobody else ends an endless loop.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + request["patience"] + 1.0)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # of the processor; ends the child
        answer = json.dumps(_answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answers.write(len(answer).to_bytes(8, "little") + answer)
        answers.flush()


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is not allowed in a template")


def _read_frame(file: BinaryIO) -> Any:
    head = file.read(8)
    if len(head) < 8:
        return None
    return json.loads(file.read(int.from_bytes(head, "little")))


def _answer(request: Any) -> dict[str, Any]:
    try:
        text = Template(request["template"]).render(request["variables"])
        if len(text) > LONGEST_ANSWER // 8:  # a character is at most 6 bytes of JSON, or 12 as a pair of surrogates
            return {"error": "the template's text is too long", "fault": Fault.BROKEN}
        return {"text": text}
    except TemplateFailed as failure:
        return {"error": failure.message, "fault": failure.fault}
