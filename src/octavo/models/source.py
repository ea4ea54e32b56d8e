"""Where a weight comes from, and its bytes: rows of a checkpoint's tensor, or the matrices of all experts.

Files hold experts as one tensor or as one each, gate and up apart or as every second row of one, rows as rows or as
columns, MXFP4 as blocks or as nibbles and exponents apart; what is read here is always rows of a format. It knows no
names of weights and no packing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.errors import CheckpointError
from octavo.quantization import rounding
from octavo.quantization.format import Bytes, Floats, Format, format_named

# (first row, rows, buffer to use) -> their bytes
RowReader = Callable[[int, int, Bytes | None], Bytes]
HALVES = np.array([0, 4], np.uint8)


@dataclass(frozen=True)
class Stack:
    """How the matrices of all experts are stored. tensors: one of all, or one of each expert.

    every: (first, step), the rows of a tensor (elements of a bias) that are the weight's; halves: step runs of rows, of
    which that number is. transposed: rows are columns there. scales: the tensor with the exponents of MXFP4 whose
    nibbles alone are in `tensors`.
    """

    tensors: tuple[str, ...]
    every: tuple[int, int] = (0, 1)
    transposed: bool = False
    scales: str | None = None
    halves: bool = False

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Those of [rows, ...] that are the weight's."""
        first, step = self.every
        return rows.reshape(step, -1, *rows.shape[1:])[first] if self.halves else rows[first::step]

    @property
    def plain(self) -> bool:
        """Whether rows follow each other in the file as they are asked for."""
        return self.every == (0, 1) and not self.transposed and self.scales is None


@dataclass(frozen=True, eq=False)
class WeightSource:
    """Where a weight comes from: tensor `name` of the checkpoint, of whose rows `rows` in this order (None: all).

    shape: of the weight. offset: added to every value; only of float vectors. rounded: the format that its floats are
    rounded to while they are loaded; None: the file's values. stack: of a weight of all experts.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    rows: NDArray[np.int64] | None = None
    offset: float = 0.0
    rounded: str | None = None
    stack: Stack | None = None

    @property
    def held(self) -> str:
        """The format that is packed."""
        return self.rounded or self.format

    @property
    def matrices(self) -> tuple[int, int, int]:
        """How many matrices the weight is, and the shape [n, k] of one."""
        *outer, n, k = self.shape
        return prod(outer), n, k

    def blocks(self, raw: Bytes, shape: tuple[int, int]) -> tuple[Format, Bytes]:
        """Rows of the file -> what is packed: a format and its bytes. Raises CheckpointError for weights that cannot be
        rounded."""
        fmt = format_named(self.format)
        if self.rounded is None:
            return fmt, raw
        try:
            return format_named(self.rounded), rounding.encode(self.rounded, fmt.dequantize(raw, shape))
        except ValueError as error:
            raise CheckpointError(
                f"tensor '{self.name}' cannot be rounded to {self.rounded}: {error}", key=self.name
            ) from None

    def reader(self, checkpoint: Checkpoint, matrix: int = 0) -> RowReader:
        """Reads rows of one matrix, in the model's order. Where they do not follow each other in the file the whole
        matrix is read at once, when this is called."""
        _, n, k = self.matrices
        row = format_named(self.format).row_bytes(k)
        if self.rows is None and (self.stack is None or self.stack.plain):
            name, before = self._place(matrix, n * row)
            return lambda first, count, out: checkpoint.read(name, before + first * row, count * row, out)
        whole = self._gathered(checkpoint, matrix, n, k).reshape(n * row)
        return lambda first, count, _: whole[first * row : (first + count) * row]

    def _place(self, matrix: int, nbytes: int) -> tuple[str, int]:
        """The tensor of a matrix, and where in it, if a matrix takes `nbytes` there."""
        if self.stack is None or len(self.stack.tensors) == 1:
            return self.name, matrix * nbytes
        return self.stack.tensors[matrix], 0

    def _gathered(self, checkpoint: Checkpoint, matrix: int, n: int, k: int) -> Bytes:
        fmt = format_named(self.format)
        if self.stack is None:
            return checkpoint.read(self.name).reshape(-1, fmt.row_bytes(k))[self.rows]
        step = self.stack.every[1]
        if self.stack.scales is not None:
            nibbles = self._matrix(checkpoint, self.name, matrix, n * step * k // 2).reshape(n * step, -1, 16)
            exponents = self._matrix(checkpoint, self.stack.scales, matrix, n * step * k // 32).reshape(n * step, -1, 1)
            return mxfp4_blocks(self.stack.part(nibbles), self.stack.part(exponents))
        name, before = self._place(matrix, n * step * fmt.row_bytes(k))
        raw = checkpoint.read(name, before, n * step * fmt.row_bytes(k))
        if not self.stack.transposed:
            return np.ascontiguousarray(self.stack.part(raw.reshape(n * step, -1)))
        elements = raw.view(np.dtype(f"<u{fmt.block_bytes}")).reshape(k, n * step)
        return np.ascontiguousarray(self.stack.part(elements.T)).view(np.uint8)

    @staticmethod
    def _matrix(checkpoint: Checkpoint, name: str, matrix: int, nbytes: int) -> Bytes:
        return checkpoint.read(name, matrix * nbytes, nbytes)


def mxfp4_blocks(nibbles: Bytes, exponents: Bytes) -> Bytes:
    """[n, blocks, 16] with neighbours in a byte, the even one low, and [n, blocks, 1] -> GGML's blocks
    [n, blocks * 17]: the exponent, then a byte of each element of the first half and the one 16 behind it."""
    codes = (nibbles[..., None] >> HALVES & np.uint8(15)).reshape(*nibbles.shape[:2], 2, 16)
    packed = codes[:, :, 0] | codes[:, :, 1] << np.uint8(4)
    return np.concatenate([exponents, packed], axis=2).reshape(len(nibbles), -1)


def read_floats(checkpoint: Checkpoint, source: WeightSource) -> Floats:
    """A whole weight as float32 in the model's row order, as it is held (norms, biases, tests; the packer streams)."""
    if source.stack is not None and len(source.shape) == 2:  # biases [experts, n]
        stored = (source.shape[0], source.shape[1] * source.stack.every[1])
        values = format_named(source.format).dequantize(checkpoint.read(source.name), stored)
        return np.ascontiguousarray(source.stack.part(values.T).T)
    if len(source.shape) > 1:
        count, n, k = source.matrices
        matrices = [source.blocks(source.reader(checkpoint, i)(0, n, None), (n, k)) for i in range(count)]
        return np.stack([fmt.dequantize(raw, (n, k)) for fmt, raw in matrices]).reshape(source.shape)
    info = checkpoint.tensors[source.name]
    values = format_named(source.format).dequantize(checkpoint.read(source.name), tuple(info.shape))
    values = values if source.rows is None else np.ascontiguousarray(values[source.rows])
    return values + np.float32(source.offset) if source.offset else values
