"""Dimensions: affine expressions over named symbols, and sums of them.

T token rows, S sequences, R rows that need logits. A symbol has a bound from the configuration; 0 is legal.
Metric symbols size nothing; they make bytes and operations exact once a step is known: for state group 0
`visible_keys.0` (keys seen by all rows together), `kv_seen.0` and `kv_written.0` (bytes of one layer's cache); for
mixture 0 of experts `experts_active.0` (experts that some row of the step chose). It knows no op and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Values = Mapping[str, int]


@dataclass(frozen=True)
class Dim:
    """ceil((scale * symbol + offset) / divisor); a constant has the symbol None and is `offset`."""

    symbol: str | None
    scale: int = 1
    offset: int = 0
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.divisor < 1 or self.scale < 0:
            raise ValueError(f"a dimension needs scale >= 0 and divisor >= 1, not {self}")

    def at(self, values: Values) -> int:
        """The value for given symbols. Raises KeyError for a symbol without a value."""
        inner = self.offset + (0 if self.symbol is None else self.scale * values[self.symbol])
        return -(-inner // self.divisor)

    @property
    def constant(self) -> int | None:
        return self.offset if self.symbol is None else None

    def __mul__(self, factor: int) -> Dim:
        """Exact only without a divisor: ceil does not commute with a product. Raises ValueError otherwise."""
        if self.divisor != 1:
            raise ValueError(f"({self}) * {factor} is not affine")
        if factor == 0 or self.symbol is None:
            return constant(self.offset * factor)
        return Dim(self.symbol, self.scale * factor, self.offset * factor)

    def __add__(self, other: int) -> Dim:
        if self.symbol is None:
            return constant(self.offset + other)
        return Dim(self.symbol, self.scale, self.offset + other * self.divisor, self.divisor)

    def ceil_div(self, divisor: int) -> Dim:
        """ceil(self / divisor); ceilings nest exactly."""
        if self.symbol is None:
            return constant(-(-self.offset // divisor))
        return Dim(self.symbol, self.scale, self.offset, self.divisor * divisor)

    def __str__(self) -> str:
        if self.symbol is None:
            return str(self.offset)
        text = self.symbol if self.scale == 1 else f"{self.scale}{self.symbol}"
        if self.offset:
            text += f"{self.offset:+d}"
        return text if self.divisor == 1 else f"ceil({text}/{self.divisor})"


def constant(value: int) -> Dim:
    """A dimension that is a number."""
    return Dim(None, 0, value)


def dim(value: int | Dim) -> Dim:
    return value if isinstance(value, Dim) else constant(value)


T = Dim("T")
S = Dim("S")
R = Dim("R")


def visible_keys(group: int) -> Dim:
    """The metric symbol of a state group: keys seen by all rows of a step together."""
    return Dim(f"visible_keys.{group}")


def kv_seen(group: int) -> Dim:
    """Bytes of one layer's keys and values that rows of a step see; what rows of one sequence share counts once."""
    return Dim(f"kv_seen.{group}")


def kv_written(group: int) -> Dim:
    """Bytes of one layer's keys and values that a step writes."""
    return Dim(f"kv_written.{group}")


def experts_active(mixture: int) -> Dim:
    """Experts that any row of a step chose, of a Program's mixtures the one with this number."""
    return Dim(f"experts_active.{mixture}")


@dataclass(frozen=True)
class Sum:
    """A sum of dimensions: bytes or operations of a node."""

    terms: tuple[Dim, ...] = ()

    def at(self, values: Values) -> int:
        return sum(term.at(values) for term in self.terms)

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.terms + other.terms)

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms) or "0"


def product(dims: tuple[Dim, ...]) -> Dim:
    """The product of constants and at most one symbol. Raises ValueError where two symbols meet."""
    factor = 1
    symbolic: Dim | None = None
    for each in dims:
        if each.constant is not None:
            factor *= each.constant
        elif symbolic is None:
            symbolic = each
        else:
            raise ValueError(f"{symbolic} * {each} is not affine")
    return constant(factor) if symbolic is None else symbolic * factor
