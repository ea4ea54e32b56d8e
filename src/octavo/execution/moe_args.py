"""The argument list of `moe` taken apart, as native/kernel.h describes it. Knows nothing of what runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.execution.linear_args import number, read_ops
from octavo.lowering.lowered import ArenaArg, Arg, Imm

SHARE_ROWS, ROUTES, ACTIVE = 6, 7, 9  # places in the head


@dataclass(frozen=True)
class Stage:
    """Products of all experts. rows: acts, their kind, K, columns; weights: (weight, format, bias); ops."""

    rows: tuple[Arg, ...]
    weights: tuple[tuple[Arg, Arg, Arg], ...]
    ops: tuple[tuple[Arg, ...], ...]

    @property
    def acts(self) -> ArenaArg:
        return buffer(self.rows[0])

    @property
    def quantized(self) -> bool:
        return self.span != 0

    @property
    def span(self) -> int:
        found = self.rows[1]
        if not isinstance(found, Imm):
            raise TypeError(f"{found} is no span")
        return found.value


@dataclass(frozen=True)
class MoeArgs:
    """The arguments of `moe`, taken apart."""

    head: tuple[Arg, ...]  # the first ten
    first: Stage
    second: Stage


def read_moe(args: Sequence[Arg]) -> MoeArgs:
    """Raises TypeError or StopIteration for a list that native/kernel.h does not describe."""
    rest = iter(args)
    head = tuple(next(rest) for _ in range(10))
    return MoeArgs(head, _stage(rest), _stage(rest))


def _stage(rest: Iterator[Arg]) -> Stage:
    rows = tuple(next(rest) for _ in range(4))
    weights = tuple((next(rest), next(rest), next(rest)) for _ in range(number(rest)))
    return Stage(rows, weights, read_ops(rest))


def buffer(arg: Arg) -> ArenaArg:
    """Raises TypeError for what is no buffer of the arena."""
    if not isinstance(arg, ArenaArg):
        raise TypeError(f"{arg} stands where a buffer should be")
    return arg
