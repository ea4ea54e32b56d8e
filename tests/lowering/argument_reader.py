"""Reads argument lists as native/kernel.h describes them; knows nothing of how lowering makes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.lowering.lowered import ArenaArg, Arg, DimArg, Fn, Imm, StepField, TableArg, WeightArg


@dataclass
class Inline:
    name: str
    args: list[Arg]


@dataclass
class Columns:
    unit: int
    units: int
    n: int
    weights: list[tuple[str, str]]
    ops: list[Inline]


@dataclass
class Linear:
    rows: DimArg
    k: int
    src: ArenaArg | None
    src_ld: int
    acts: ArenaArg
    quantized: bool
    share_rows: int
    gather: StepField | None
    prologue: list[Inline]
    groups: list[Columns] = field(default_factory=list)


class Reader:
    def __init__(self, args: Sequence[Arg]) -> None:
        self.args = list(args)

    def take(self, kind: Any) -> Any:
        arg = self.args.pop(0)
        assert isinstance(arg, kind), (arg, kind)
        return arg

    def number(self) -> int:
        value = self.take(Imm).value
        assert isinstance(value, int)
        return value

    def pointer(self, kind: Any) -> Any:
        """An address of this kind, or None for 0."""
        arg = self.args.pop(0)
        if arg == Imm(0):
            return None
        assert isinstance(arg, kind), arg
        return arg

    def inlines(self) -> list[Inline]:
        found = []
        for _ in range(self.number()):
            name, count = self.take(Fn).name, self.number()
            found.append(Inline(name, [self.args.pop(0) for _ in range(count)]))
        return found


# inlined op -> kinds of its arguments
INLINED: dict[str, list[Any]] = {
    "row.rms_norm": [TableArg, float],
    "row.layer_norm": [TableArg, TableArg, float],
    "tile.bias": [TableArg],
    "tile.rope": [TableArg, TableArg, Imm, Imm],
    "tile.kv_write": [object, Imm, Imm],
    "tile.store": [ArenaArg, Imm],
    "tile.add": [ArenaArg, Imm, ArenaArg, Imm],
    "tile.sigmoid_mul": [ArenaArg, Imm],
    "tile.silu_mul": [],
    "tile.gelu_mul": [],
    "tile.gelu": [],
    "tile.gelu_erf": [],
    "tile.scale": [float],
    "tile.softcap": [float],
    "tile.head_norm": [TableArg, float, Imm],
    "tile.rms_norm": [TableArg, float, Imm],
    "tile.quantize": [ArenaArg, Imm, Imm],
}


def check_inline(op: Inline) -> None:
    kinds = INLINED[op.name]
    assert len(op.args) == len(kinds), op
    for arg, kind in zip(op.args, kinds, strict=True):
        assert type(arg).__name__ == "FloatBits" if kind is float else isinstance(arg, kind), op


def read_linear(args: Sequence[Arg]) -> Linear:
    """A whole `linear`; fails where the list does not end with it."""
    reader = Reader(args)
    found = Linear(
        reader.take(DimArg), reader.number(), reader.pointer(ArenaArg), reader.number(), reader.take(ArenaArg),
        bool(reader.number()), reader.number(), reader.pointer(StepField), reader.inlines(),
    )  # fmt: skip
    for _ in range(reader.number()):
        unit, units, n, weights = (reader.number() for _ in range(4))
        named = [(reader.take(WeightArg).name, reader.take(Fn).name) for _ in range(weights)]
        found.groups.append(Columns(unit, units, n, named, reader.inlines()))
    assert not reader.args
    for op in found.prologue + [op for group in found.groups for op in group.ops]:
        check_inline(op)
    return found
