"""Op: the declaration of one operation. A call on Values appends a node; nothing is computed and no torch is imported.

An op says its kind (an anchor reads much memory and is divided among threads; a row op joins an anchor's prologue or
epilogue), its locality, the shape and dtype of its results, bytes, operations, workspace, its numerics contract, and
the bound on its error. How it is computed stands in kernels/reference/<name>.py and native/kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.program.graph import DTYPES, Node, Value
from octavo.program.symbols import Dim, Sum, Values, product

Array = NDArray[Any]
Floats64 = NDArray[np.float64]
EPS = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # smallest normal float32: denormals are flushed

Attrs = Mapping[str, Any]
Results = list[tuple[tuple[Dim, ...], str]]


class Locality(IntEnum):
    """What of its row an op must see at once to give one element. A row op fits a unit of at least that size."""

    ELEMENT = 0
    GROUP = 1  # 32 adjacent columns
    HEAD = 2
    ROW = 3
    SEQUENCE = 4


@dataclass(frozen=True)
class Contract:
    """How results are rounded, as data. `exact`: bit-equal to the oracle in one numerics class."""

    accumulate: str
    order: str
    group: int = 0
    exact: bool = False
    note: str = ""

    def __repr__(self) -> str:
        parts = [f"accumulate {self.accumulate}", f"order {self.order}"]
        parts += [f"groups of {self.group}"] * bool(self.group) + ["bit-equal"] * self.exact
        parts += [self.note] * bool(self.note)
        return "; ".join(parts)


def nothing(node: Node) -> Sum:
    return Sum()


def _no_workspace(node: Node, bounds: Values) -> int:
    return 0


@dataclass(frozen=True)
class Op:
    """A declaration. `bound(attrs, *inputs)` gives per element of the result (numpy, float64) how far two float32
    evaluations on equal inputs may be apart: the native kernel and the reference."""

    name: str
    kind: str  # anchor, row
    locality: Locality
    contract: Contract
    results: Callable[[Sequence[Value], Attrs], Results]
    bound: Callable[..., Floats64]
    operations: Callable[[Node], Sum] = nothing
    workspace: Callable[[Node, Values], int] = _no_workspace
    reads: Callable[[Node], Sum] | None = None  # bytes where they are not those of all operands
    state: Callable[[Node], Sum] = nothing  # bytes of the cache, read or written
    scratch: Callable[[Node, Values], int] = _no_workspace  # bytes of each thread's scratch beside those of products
    parts: Callable[[Node], Dim] | None = None  # how many of the first dimension of its stacked weights a node reads

    def __call__(self, *operands: Value, **attrs: Any) -> Value:
        """Append a node to the Program of the first operand; its first output."""
        program = operands[0].program
        return program.append(self, operands, attrs, self.results(operands, attrs)).output

    def __repr__(self) -> str:
        return f"{self.name} ({self.kind}, {self.locality.name.lower()}): {self.contract!r}"

    def bytes(self, node: Node, weight_bytes: Mapping[str, int]) -> Sum:
        """Memory traffic of a node that runs alone; `weight_bytes` are the packed sizes of weights by name.

        Fields of the flat step, slots and computed tables are left out: they stay in the processor's caches.
        """
        written = Sum(tuple(_size(value) for value in node.outputs if value.shape)) + self.state(node)
        if self.reads is not None:
            return self.reads(node) + written
        read = []
        for value in node.operands:
            if value.kind == "weight" and value.name in weight_bytes:
                read.append(self.weight_traffic(node, value, weight_bytes[value.name]))
            elif value.shape and value.kind != "table" and value.source is None:
                read.append(_size(value))
        return Sum(tuple(read)) + written

    def weight_traffic(self, node: Node, weight: Value, nbytes: int) -> Dim:
        """Bytes that are read of a weight that has `nbytes` in all."""
        if self.parts is None:
            return Dim(None, 0, nbytes)
        return self.parts(node) * (nbytes // weight.shape[0].at({}))


def _size(value: Value) -> Dim:
    return product(value.shape) * DTYPES[value.dtype]


def op_of(node: Node) -> Op:
    """The declaration behind a node. Raises TypeError for a node whose op is only a name."""
    if not isinstance(node.op, Op):
        raise TypeError(f"{node!r} has no declaration")
    return node.op


def gamma(terms: int | float) -> float:
    """Relative error of `terms` float32 roundings in a row (Higham, Accuracy and Stability, lemma 3.1)."""
    return terms * EPS / (1 - terms * EPS)


def same_rows(operands: Sequence[Value], attrs: Attrs) -> Results:
    """The result has the shape and dtype of the first operand."""
    return [(operands[0].shape, operands[0].dtype)]


def bit_equal(attrs: Attrs, x: Array, *rest: Array) -> Floats64:
    """No difference at all: one correctly rounded operation an element, or integers."""
    return np.zeros(np.shape(x), np.float64)
