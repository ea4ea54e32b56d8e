"""The table of masks: memory that the engine and its grammar process share; native/masks.h reads it.

A line of 64 bytes for each slot says for which id of the sequence its mask is, then come the masks, a bit for each id.
Two lines in front are the diary of the process: what it is at, should it be killed for it. The memory has no name; the
child inherits its descriptor. It knows no grammar.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NONE = -1  # `known` of a line whose mask is not there, or is being written
MAY_FOLLOW, MUST_END, FAILED = 0, 1, 2  # `state` of a line
_LINE = 64  # bytes
_WORDS = _LINE // 8
_KNOWN, _STATE = 0, 1  # words of a line
_DIARY_LINES = 2  # line 0: of whoever writes masks; line 1: of whoever compiles


class MaskTable:
    """A view of it. `descriptor` is passed to the process that writes."""

    def __init__(self, slots: int, vocabulary: int, descriptor: int | None = None) -> None:
        """descriptor: of a table made by another process; None makes a new one."""
        self.slots, self.words = slots, -(-vocabulary // 32)
        self.stride = -(-self.words * 4 // _LINE) * _LINE
        size = (_DIARY_LINES + slots) * _LINE + slots * self.stride
        if descriptor is None:
            descriptor = os.memfd_create("octavo-masks", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size)
        self._lines = memoryview(self._map)[: (_DIARY_LINES + slots) * _LINE].cast("q")
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for slot in range(slots):
            self.clear(slot)

    @property
    def address(self) -> int:
        """Where the slots' lines lie in this process; valid while the table is open."""
        return self._base + _DIARY_LINES * _LINE

    def mask_address(self, slot: int) -> int:
        """Where a mask lies in this process."""
        return self.address + self.slots * _LINE + slot * self.stride

    def mask(self, slot: int) -> npt.NDArray[np.uint32]:
        """The mask itself, [words]: bit id % 32 of word id / 32."""
        start = (_DIARY_LINES + self.slots) * _LINE + slot * self.stride
        return np.frombuffer(self._map, np.uint32, self.words, start)

    # Lines

    def clear(self, slot: int) -> None:
        """There is no mask."""
        self._lines[(_DIARY_LINES + slot) * _WORDS + _KNOWN] = NONE

    def publish(self, slot: int, opening: int, known: int, state: int) -> None:
        """The mask for the id after `known` ids is there, for the sequence that entered the slot under this number;
        whoever writes one has called clear() before."""
        at = (_DIARY_LINES + slot) * _WORDS
        self._lines[at + _STATE] = state
        self._lines[at + _KNOWN] = opening << 32 | known

    def read(self, slot: int) -> tuple[int, int, int]:
        """(opening, known, state); both NONE where there is no mask."""
        at = (_DIARY_LINES + slot) * _WORDS
        word = self._lines[at + _KNOWN]
        return (NONE, NONE, 0) if word == NONE else (word >> 32, word & 0xFFFFFFFF, self._lines[at + _STATE])

    # The diary

    def note_mask(self, slot: int) -> None:
        """A mask of this slot is made from now on; -1: none is."""
        self._lines[0] = slot + 1

    def note_compile(self, number: int) -> None:
        """The constraint of this number is compiled from now on; 0: none is."""
        self._lines[_WORDS] = number

    def add_cost(self, masks: int, nanoseconds: int) -> None:
        """Count masks, and the time that they took."""
        self._lines[1] += masks
        self._lines[2] += nanoseconds

    @property
    def at_slot(self) -> int:
        """Whose mask is being made; -1: nobody's."""
        return self._lines[0] - 1

    @property
    def at_compile(self) -> int:
        """What is being compiled; 0: nothing."""
        return self._lines[_WORDS]

    @property
    def cost(self) -> tuple[int, int]:
        """Masks made so far, and nanoseconds that they took."""
        masks, nanoseconds = self._lines[1], self._lines[2]
        return masks, nanoseconds

    def forget_diary(self) -> None:
        """The process that wrote it is gone."""
        self._lines[0] = self._lines[_WORDS] = 0

    def close(self) -> None:
        """Give the memory back; native code must not look any more."""
        self._lines.release()
        with contextlib.suppress(BufferError):  # an array or an address of it lives: the memory goes with that
            self._map.close()
        os.close(self.descriptor)


def bits(ids: Sequence[int], words: int) -> npt.NDArray[np.uint32]:
    """A mask that allows these ids."""
    made = np.zeros(words * 32, np.uint8)
    made[list(ids)] = 1
    return np.packbits(made, bitorder="little").view(np.uint32)
