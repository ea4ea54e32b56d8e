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
from hashlib import blake2b

CONTROL_BYTES = 4096
# Offsets in bytes from the start; each word that one side writes often has a cache line of its own.
ARRIVED = 64  # int64, written by the front: one more before each message
STOP = 128  # int64, written by the front: not 0 = leave the step at the next node, commit nothing
PROGRESS = 192  # int64, written by the engine: one more at each node and each turn of the loop
STATE = 256  # int64 words, written by the engine before a step
MEMBERS = CONTROL_BYTES  # uint64 each: digests of request ids
_WORD = 8
_FIRST = STATE // _WORD
# The step, whether it runs, predicted nanoseconds of a node of it, its members, ids that it may give a sequence, and
# the progress word at its start.
_STEP, _BUSY, _NODE, _COUNT, _AHEAD, _BEGAN = range(_FIRST, _FIRST + 6)


@dataclass(frozen=True, slots=True)
class Flight:
    """What the record says. busy: a step runs. node_seconds: predicted time of one node of it. ahead: ids that it may
    give a sequence. nodes: that it has begun, or that have run since it began."""

    step: int
    busy: bool
    node_seconds: float
    members: tuple[int, ...]
    progress: int
    ahead: int
    nodes: int


def request_digest(request_id: str) -> int:
    """64 bits of a request id: what the record says of the members of a step."""
    return int.from_bytes(blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


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
        words = self._words
        members = tuple(self._members[: min(words[_COUNT], self.max_members)].tolist())
        progress = self.progress
        return Flight(
            words[_STEP], bool(words[_BUSY]), words[_NODE] * 1e-9, members, progress, max(1, words[_AHEAD]),
            progress - words[_BEGAN],
        )  # fmt: skip

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
        self._words[_COUNT] = count

    def begin(self, step: int, node_seconds: float, ahead: int = 1) -> None:
        """A step starts, which may give a sequence so many ids."""
        words = self._words
        words[_STEP], words[_NODE], words[_AHEAD] = step, int(node_seconds * 1e9), ahead
        words[_BEGAN] = words[PROGRESS // _WORD]
        words[_BUSY] = 1

    def end(self) -> None:
        """The step is over."""
        self._words[_BUSY] = 0
        self.advance()

    def close(self) -> None:
        """Give the memory back; native code must not run any more."""
        self._words.release()
        self._members.release()
        self._map.close()
        os.close(self.descriptor)
