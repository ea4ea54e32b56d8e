"""Memory that front and engine share: arrivals and stop (front to engine), progress and the running step (back).

The first 4 KiB are the control page that native code knows by offsets: it reads `arrived` between the steps of a
run-ahead and `stop` at each node, and advances `progress` at each node. After it stand the digests of the running
step's requests. The memory has no name: an anonymous file, whose descriptor the engine inherits. It judges nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

CONTROL_BYTES = 4096
# Offsets in bytes from the start; each word that one side writes often has a cache line of its own.
ARRIVED = 64  # int64, written by the front: one more before each message
STOP = 128  # int64, written by the front: not 0 = leave the step at the next node, commit nothing
PROGRESS = 192  # int64, written by the engine: one more at each node and each turn of the loop
STATE = 256  # int64 words, written by the engine before a step: step, busy, predicted node nanoseconds, members
MEMBERS = CONTROL_BYTES  # uint64 each: digests of request ids
_WORD = 8


@dataclass(frozen=True, slots=True)
class Flight:
    """What the record says. busy: a step runs. node_seconds: predicted time of one node of it."""

    step: int
    busy: bool
    node_seconds: float
    members: tuple[int, ...]
    progress: int


class FlightRecord:
    """A view of the shared memory; `descriptor` is passed to the engine process."""

    def __init__(self, max_members: int, descriptor: int | None = None) -> None:
        """descriptor: of a record made by another process; None makes a new one."""
        self.max_members = max_members
        size = CONTROL_BYTES + max_members * _WORD
        if descriptor is None:
            descriptor = os.memfd_create("octavo-flight", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size)
        self._words = memoryview(self._map).cast("q")
        self._members = memoryview(self._map)[MEMBERS:].cast("Q")

    @property
    def address(self) -> int:
        """Where the control page lies in this process; valid while the record is open."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    # The front's side

    def announce(self) -> None:
        """A message is about to be written: a native loop leaves after its present step."""
        self._words[ARRIVED // _WORD] += 1

    def request_stop(self) -> None:
        self._words[STOP // _WORD] = 1

    def read(self) -> Flight:
        state = STATE // _WORD
        step, busy, nanoseconds, count = self._words[state : state + 4].tolist()
        members = tuple(self._members[: min(count, self.max_members)].tolist())
        return Flight(step, bool(busy), nanoseconds * 1e-9, members, self.progress)

    @property
    def progress(self) -> int:
        return self._words[PROGRESS // _WORD]

    # The engine's side

    def advance(self) -> None:
        """The loop turned: the engine is alive."""
        self._words[PROGRESS // _WORD] += 1

    def name(self, members: Sequence[int]) -> None:
        """Members of the steps that start from now on: suspects should one of these kill the engine."""
        count = min(len(members), self.max_members)
        self._members[:count] = memoryview(array("Q", members[:count]))
        self._words[STATE // _WORD + 3] = count

    def begin(self, step: int, node_seconds: float) -> None:
        """A step starts."""
        state = STATE // _WORD
        self._words[state] = step
        self._words[state + 2] = int(node_seconds * 1e9)
        self._words[state + 1] = 1

    def end(self) -> None:
        """The step is over."""
        self._words[STATE // _WORD + 1] = 0
        self.advance()

    def close(self) -> None:
        """Give the memory back; native code must not run any more."""
        self._words.release()
        self._members.release()
        self._map.close()
        os.close(self.descriptor)
