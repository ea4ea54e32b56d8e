"""The argument list of `linear` taken apart, as native/kernel.h describes it. Knows nothing of what runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.lowering.lowered import ArenaArg, Arg, Imm


@dataclass(frozen=True)
class Group:
    """A column group of a linear: unit, units, columns; (weight, format) pairs; ops {function, count, args...}."""

    sizes: tuple[int, int, int]
    weights: tuple[tuple[Arg, Arg], ...]
    ops: tuple[tuple[Arg, ...], ...]


@dataclass(frozen=True)
class LinearArgs:
    """The arguments of `linear`, taken apart."""

    head: tuple[Arg, ...]  # the first eight
    prologue: tuple[tuple[Arg, ...], ...]
    groups: tuple[Group, ...]

    @property
    def acts(self) -> ArenaArg:
        found = self.head[4]
        if not isinstance(found, ArenaArg):
            raise TypeError(f"{found} is no buffer of activations")
        return found

    @property
    def quantized(self) -> bool:
        return self.head[5] != Imm(0)


def number(args: Iterator[Arg]) -> int:
    """The next argument. Raises TypeError for what is no number."""
    found = next(args)
    if not isinstance(found, Imm):
        raise TypeError(f"{found} stands where a number should be")
    return found.value


def read_ops(args: Iterator[Arg]) -> tuple[tuple[Arg, ...], ...]:
    found = []
    for _ in range(number(args)):
        function, count = next(args), number(args)
        found.append((function, Imm(count), *(next(args) for _ in range(count))))
    return tuple(found)


def read_linear(args: Sequence[Arg]) -> LinearArgs:
    """Raises TypeError or StopIteration for a list that native/kernel.h does not describe."""
    rest = iter(args)
    head = tuple(next(rest) for _ in range(8))
    prologue = read_ops(rest)
    groups = []
    for _ in range(number(rest)):
        unit, units, columns, weights = (number(rest) for _ in range(4))
        pairs = tuple((next(rest), next(rest)) for _ in range(weights))
        groups.append(Group((unit, units, columns), pairs, read_ops(rest)))
    return LinearArgs(head, prologue, tuple(groups))
