"""What one native call runs, as int64 words: images of Programs, and the tape that strings them together.

The format is described in native/tape.h, which checks every word of it. This file knows nothing of models or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.execution.layout import ABI, LAYOUT_HASH, MAGIC

SYMBOLS = {"T": 0, "S": 1, "R": 2, "1": 3}
NO_WAIT = -1

_IMMEDIATE, _BUFFER, _DIMENSION, _ENTRY = range(4)
Word = tuple[int, int, int, int, int]


def immediate(value: int) -> Word:
    return (_IMMEDIATE, value, 0, 0, 0)


def float_bits(value: float) -> Word:
    return (_IMMEDIATE, int(np.float32(value).view(np.uint32)), 0, 0, 0)


def buffer(region: int, offset: int, nbytes: int) -> Word:
    """Becomes an address; the native side checks that [offset, offset + nbytes) lies in the region."""
    return (_BUFFER, region, offset, nbytes, 0)


def dimension(factor: int, symbol: str, add: int = 0, divide: int = 1) -> Word:
    """ceil((factor * symbol + add) / divide), evaluated at each step."""
    return (_DIMENSION, factor, SYMBOLS[symbol], add, divide)


@dataclass(frozen=True)
class NodeWork:
    """What a node has to do, from which native/tuning.h tells how many threads it is worth."""

    symbol: str | None  # of rows; None: unknown, the node is for all threads
    bytes: int = 0  # and row_bytes for each row
    row_bytes: int = 0
    row_operations: int = 0  # int8 products count 1
    key_operations: int = 0  # for each key that a row sees in state group `group`
    group: int = 0
    units: int = 0  # no more threads than units + row_units * rows
    row_units: int = 0

    def words(self) -> list[int]:
        symbol = -1 if self.symbol is None else SYMBOLS[self.symbol]
        figures = [self.row_operations, self.key_operations, self.group, self.units, self.row_units]
        return [symbol, self.bytes, self.row_bytes, *figures]


ALL_THREADS = NodeWork(None)


@dataclass
class Image:
    """An image under construction."""

    names: list[str] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _words: list[int] = field(default_factory=list)
    _nodes: int = 0

    def _name(self, name: str) -> int:
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]

    def entry(self, name: str) -> Word:
        """Becomes the address of a native entry (kernel, row op, tile op or weight format)."""
        return (_ENTRY, self._name(name), 0, 0, 0)

    def add(self, kernel: str, args: Sequence[Word], *, region: int = 0, work: NodeWork = ALL_THREADS) -> None:
        """Append a node."""
        self._words += [self._name(kernel), region, NO_WAIT, *work.words(), len(args)]
        for word in args:
            self._words += word
        self._nodes += 1

    def words(self) -> npt.NDArray[np.int64]:
        return np.array([MAGIC, ABI, LAYOUT_HASH, self._nodes, *self._words], np.int64)


def decode_tape(body: int, head: int, sample: int) -> npt.NDArray[np.int64]:
    """The tape of a step: pages, then up to header.loop times body, head and sample by chunks, advance."""
    state, run, chunks, loop, advance, end = range(6)
    return np.array(
        [[state, 0, 0], [loop, 0, 0], [run, body, 0], [chunks, head, sample], [advance, 0, 0], [end, 0, 0]], np.int64
    ).reshape(-1)


def vector_tape(body: int, head: int | None) -> npt.NDArray[np.int64]:
    """The tape of a step of a model that gives vectors: pages, body, and the head of a classifier over sequences."""
    state, run = 0, 1
    programs = [[run, program, 0] for program in (body, head) if program is not None]
    return np.array([[state, 0, 0], *programs], np.int64).reshape(-1)


def node_tape(program: int) -> npt.NDArray[np.int64]:
    """A tape that runs one Program once: tests of kernels and `verify`."""
    return np.array([1, program, 0], np.int64)
