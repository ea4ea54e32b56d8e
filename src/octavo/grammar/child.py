"""The engine's end of the grammar process: starts it, writes without ever waiting, reads what it answers, kills it.

What is asked of it, and what follows from its death, is decided in engine/grammars.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys

import msgspec

from octavo.grammar.messages import Compiled, Frames, Start, answers, frame
from octavo.grammar.table import MaskTable

PIPE_BYTES = 1 << 20  # of commands that wait in the kernel; more wait here
_BOOT = "import sys; sys.path[:] = {path!r}; from octavo.grammar.process import main; main()"


class ChildDied(Exception):
    """The process is gone."""


class Child:
    """One grammar process, from its start to its end."""

    def __init__(self, model: str, cache: str, table: MaskTable, vocabulary: int) -> None:
        start = Start(model, cache, table.slots, vocabulary, table.descriptor, os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a panic of the library shows what clients have sent
            pass_fds=(table.descriptor,),
            start_new_session=True,  # Ctrl-C in the terminal is the engine's matter
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        with contextlib.suppress(OSError):  # an unprivileged user may be over a limit
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._unsent = bytearray()
        self._frames = Frames()
        self.post(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    def post(self, message: msgspec.Struct) -> None:
        """Send, now or when there is room."""
        self._unsent += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what has waited."""
        if self._unsent:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # poll() tells of the latter
                del self._unsent[: os.write(self._in, self._unsent)]

    def poll(self) -> list[Compiled]:
        """What it has answered. ChildDied if it is gone and all has been read."""
        self.flush()
        try:
            data = os.read(self._out, 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise ChildDied
        return [answers.decode(each) for each in self._frames.feed(data)]

    def kill(self) -> None:
        """It is gone when this returns."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
