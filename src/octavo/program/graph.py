"""Value, Node, Program: what a model computes, as a list of nodes in the order in which they were called.

A Program knows ops by name and kind only. Nothing is computed here, and nothing is global: an op that is called on
Values appends its node to the Program that the Values belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.program.symbols import Dim, constant, dim

# dtype -> bytes of an element; `acts` are quantized rows (native/kernel.h), `state` orders reads after writes
DTYPES = {"f32": 4, "i32": 4, "acts": 1, "state": 0}


class OpName(Protocol):
    """What a Program knows of an op."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class StateGroup:
    """What outlives a step: keys and values of `layers` attention layers in pages of 16 tokens.

    kind paged: a row sees the keys up to its own; window 0: all of them; w: the last w (its own included).
    kind whole: a row sees every key of its sequence, whose rows are all in one step; nothing is kept after it.
    """

    index: int
    kind: str
    kv_heads: int
    head_dim: int
    window: int
    layers: int = 0

    @property
    def name(self) -> str:
        if self.kind == "whole":
            return self.kind
        return "full" if self.window == 0 else f"window{self.window}"


@dataclass(frozen=True)
class Table:
    """Constant float32 data that follows from the configuration alone; `make` computes it when it is loaded."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        return 4 * prod(self.shape)


@dataclass(eq=False)
class Value:
    """A tensor of a Program: an input, a weight of the checkpoint, a table, or the output of a node."""

    program: Program
    name: str
    shape: tuple[Dim, ...]
    dtype: str
    kind: str  # input, weight, table, node
    producer: Node | None = None
    needed: str = "before"  # of an input: before the step, or late
    source: str | None = None  # of an input: the field of the flat step (or slots.<field>) that holds it

    @property
    def width(self) -> int:
        """Elements of a row: the product of all but the first dimension. Raises ValueError where that is no number."""
        sizes = [each.constant for each in self.shape[1:]]
        if any(size is None for size in sizes):
            raise ValueError(f"{self} has no fixed width")
        return prod(size for size in sizes if size is not None)

    def __repr__(self) -> str:
        return f"{self.name}:{self.dtype}[{', '.join(str(each) for each in self.shape)}]"


@dataclass(eq=False)
class Node:
    """One op on operands. `origin` is the sub-Program that a lowered node stands for."""

    op: OpName
    operands: tuple[Value, ...]
    attrs: Mapping[str, Any]
    region: str
    outputs: tuple[Value, ...] = ()
    origin: Program | None = None

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def __repr__(self) -> str:
        attrs = "".join(f", {key}={value}" for key, value in self.attrs.items())
        inputs = ", ".join(value.name for value in self.operands)
        return f"{', '.join(map(repr, self.outputs))} = {self.op.name}({inputs}{attrs})"


@dataclass(eq=False)
class Program:
    """Inputs, outputs, state groups and nodes of one function of a model, such as `body` or `head`."""

    name: str
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Value] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    table_values: dict[str, Value] = field(default_factory=dict)
    states: list[StateGroup] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    region: str = ""
    count: int = 0

    def input(
        self,
        name: str,
        shape: Sequence[int | Dim],
        dtype: str,
        *,
        source: str | None = None,
        needed: str = "before",
    ) -> Value:
        """The input of this name, made when first asked for."""
        if name not in self.inputs:
            value = Value(self, name, tuple(map(dim, shape)), dtype, "input", needed=needed, source=source)
            self.inputs[name] = value
        return self.inputs[name]

    def weight(self, name: str, shape: Sequence[int]) -> Value:
        """The weight of this name: [n, k] of a linear, [n] of a norm or a bias. Raises ValueError for two shapes."""
        if name not in self.weights:
            self.weights[name] = Value(self, name, tuple(map(constant, shape)), "f32", "weight")
        found = self.weights[name]
        if found.shape != tuple(map(constant, shape)):
            raise ValueError(f"weight {name} is used as {found!r} and as {tuple(shape)}")
        return found

    def table(self, table: Table) -> Value:
        """A constant table as a Value; tables of one name are one."""
        if table.name not in self.tables:
            self.tables[table.name] = table
            self.table_values[table.name] = Value(self, table.name, tuple(map(constant, table.shape)), "f32", "table")
        return self.table_values[table.name]

    def state(self, *, kv_heads: int, head_dim: int, window: int, kind: str = "paged") -> tuple[int, int]:
        """Room for one attention layer in the group of its kind -> (index of the group, layer within the group)."""
        for i, group in enumerate(self.states):
            if (group.kv_heads, group.head_dim, group.window, group.kind) == (kv_heads, head_dim, window, kind):
                self.states[i] = StateGroup(i, kind, kv_heads, head_dim, window, group.layers + 1)
                return i, group.layers
        self.states.append(StateGroup(len(self.states), kind, kv_heads, head_dim, window, 1))
        return len(self.states) - 1, 0

    @contextmanager
    def within(self, region: str) -> Iterator[None]:
        """Nodes made inside belong to `region`. No phase crosses a region."""
        outer, self.region = self.region, region
        if region not in self.regions:
            self.regions.append(region)
        try:
            yield
        finally:
            self.region = outer

    def append(
        self,
        op: OpName,
        operands: Sequence[Value],
        attrs: Mapping[str, Any],
        results: Sequence[tuple[tuple[Dim, ...], str]],
    ) -> Node:
        """A new node at the end; `results` are shape and dtype of its outputs."""
        node = Node(op, tuple(operands), dict(attrs), self.region)
        outputs = []
        for shape, dtype in results:
            outputs.append(Value(self, f"%{self.count}", shape, dtype, "node", producer=node))
            self.count += 1
        node.outputs = tuple(outputs)
        self.nodes.append(node)
        return node

    def output(self, name: str, value: Value) -> None:
        """Declare `value` as an output: it stays in the arena after the Program ended."""
        self.outputs[name] = value

    def consumers(self) -> dict[Value, list[Node]]:
        """Every Value that a node reads -> those nodes, in order."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.operands):
                found.setdefault(value, []).append(node)
        return found
