"""What lowering gives: nodes with the argument lists of native/kernel.h, weights, tables, the arena, state layouts.

Plain data. It knows no address: `execution.tape` turns arguments into words, `execution.native` owns the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from octavo.program.graph import Program, StateGroup, Table
from octavo.program.symbols import Dim


@dataclass(frozen=True)
class Imm:
    """A number."""

    value: int


@dataclass(frozen=True)
class FloatBits:
    """A float; travels as the bits of a float32 in the low 32 bits."""

    value: float


@dataclass(frozen=True)
class WeightArg:
    """Address of a packed weight (Lowered.weights)."""

    name: str


@dataclass(frozen=True)
class TableArg:
    """Address of float32 data: a vector of the checkpoint (Lowered.vectors) or a computed table (Lowered.tables)."""

    name: str


@dataclass(frozen=True)
class ArenaArg:
    """Address of a buffer of the arena, `offset` bytes in; the first `nbytes` of the buffer may be touched."""

    buffer: str
    nbytes: int
    offset: int = 0


@dataclass(frozen=True)
class DimArg:
    """Index of a dimension that is evaluated for each step."""

    dim: Dim


@dataclass(frozen=True)
class Fn:
    """Address of an entry of the chosen variant: `tile.rope`, `row.rms_norm`, `format.q4_1.p32.k4.1`."""

    name: str


@dataclass(frozen=True)
class StepField:
    """Address of a field of the flat step."""

    name: str


@dataclass(frozen=True)
class GroupArg:
    """Index of a state group."""

    index: int


Arg = Imm | FloatBits | WeightArg | TableArg | ArenaArg | DimArg | Fn | StepField | GroupArg


@dataclass(frozen=True, eq=False)
class LoweredNode:
    """One kernel call. `origin` is the sub-Program that it replaces: its reference; `reads` and `writes` name the arena
    buffers behind the origin's inputs and outputs (Value name -> buffer)."""

    name: str
    args: tuple[Arg, ...]
    region: str
    origin: Program
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    workspace: int = 0
    scratch: int = 0  # bytes of each thread's that it asks for beside those of products

    def __repr__(self) -> str:
        return f"{self.region}: {self.name}({', '.join(node.op.name for node in self.origin.nodes)})"


@dataclass(frozen=True)
class LoweredProgram:
    """Kernel calls in order. `program` is what they compute, after the numerics pass."""

    name: str
    nodes: tuple[LoweredNode, ...]
    program: Program


@dataclass(frozen=True)
class Buffer:
    """A buffer of the arena: `rows` rows of `row_bytes`; live in phases first..last (numbered over all Programs).

    `ld` is the distance of rows in floats where it holds floats, else 0. `inside` names the buffer whose place it
    takes over.
    """

    name: str
    rows: Dim
    row_bytes: int
    ld: int
    first: int
    last: int
    inside: str | None = None


@dataclass(frozen=True)
class ArenaPlan:
    """Offset in bytes of every buffer, and the size of the arena."""

    buffers: Mapping[str, Buffer]
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    nbytes: int


@dataclass(frozen=True)
class PackedWeight:
    """A weight [n, k] as the kernels read it, or those of all experts one after the other."""

    name: str
    format: str
    layout: str
    n: int
    k: int
    nbytes: int
    experts: int = 1

    @property
    def matrix_bytes(self) -> int:
        """Of one matrix."""
        return self.nbytes // self.experts


@dataclass(frozen=True)
class GroupLayout:
    """A state group in memory: one page holds 16 tokens of all its layers."""

    group: StateGroup
    layout: str
    page_bytes: int


@dataclass(frozen=True)
class Lowered:
    """A model's Programs, executable, on one arena."""

    programs: Mapping[str, LoweredProgram]
    arena: ArenaPlan
    weights: Mapping[str, PackedWeight]
    vectors: Mapping[str, int]  # name -> elements: norm weights and biases, kept as float32
    tables: Mapping[str, Table]
    groups: tuple[GroupLayout, ...]

    def nodes(self) -> Iterator[LoweredNode]:
        for program in self.programs.values():
            yield from program.nodes

    def multiplied(self) -> dict[str, str]:
        """Weights of products -> the native name of the format that they are multiplied as."""
        return {
            weight.name: entry.name.removeprefix("format.")
            for node in self.nodes()
            if node.name in ("linear", "moe")
            for weight, entry in pairwise(node.args)
            if isinstance(weight, WeightArg) and isinstance(entry, Fn)
        }
