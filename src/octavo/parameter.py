"""What values a sampling parameter takes, and how a refused one is shown: kinds of values, told apart by what is sent.

A Kind reads a value as a client sent it and gives the one to keep. It knows no parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 1024  # characters of a stop string or a bad word
ID_END = 2**31  # ids are int32


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a parameter takes: `read` gives the value to keep or raises ValueError; `expects` ends "must be"."""

    expects: str
    read: Callable[[Any], Any]
    nullable: bool = False  # None is a value of its own, not the default


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `column` names the field of SLOT_FIELDS that it fills; `scalar`: it is copied there as it is."""

    name: str
    default: object
    kind: Kind
    meaning: str
    column: str | None = None
    scalar: bool = False


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(value)
    return value


def whole(low: int, high: int, *, none: str = "", synonyms: Mapping[int, int | None] | None = None) -> Kind:
    """A whole number in [low, high]; `none` says what None means where it is a value; synonyms stand for others."""

    def read(value: Any) -> int | None:
        if none and value is None:
            return None
        if synonyms and type(value) is int and value in synonyms:
            return synonyms[value]
        return _whole(value, low, high)

    return Kind(f"a whole number from {low} to {high}" + (f", or null ({none})" if none else ""), read, bool(none))


def number(low: float, high: float, *, above: bool = False) -> Kind:
    """A finite number in [low, high], or in (low, high] if `above`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        if not low <= value <= high or (above and value == low):  # a NaN compares false
            raise ValueError(value)
        return float(value)

    return Kind(f"a number above {low:g} and up to {high:g}" if above else f"a number from {low:g} to {high:g}", read)


def switch() -> Kind:
    """true or false, nothing that merely looks like it."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(value)
        return value

    return Kind("true or false", read)


def texts(most: int) -> Kind:
    """One string or a list of strings, none of them empty."""

    def read(value: Any) -> tuple[str, ...]:
        made = (value,) if isinstance(value, str) else items(value, most)
        if not all(isinstance(each, str) and 0 < len(each) <= MAX_TEXT for each in made):
            raise ValueError(value)
        return tuple(made)

    return Kind(f"at most {most} strings of 1 to {MAX_TEXT} characters", read)


def ids(most: int, *, none: str = "") -> Kind:
    """A list of token ids; doubles are dropped, the order is kept."""

    def read(value: Any) -> tuple[int, ...] | None:
        if none and value is None:
            return None
        made = tuple(dict.fromkeys(_whole(each, 0, ID_END - 1) for each in items(value, most)))
        if none and not made:
            raise ValueError(value)  # an empty list of allowed ids would allow nothing
        return made

    if none:
        return Kind(f"1 to {most} token ids, or null ({none})", read, True)
    return Kind(f"at most {most} token ids", read)


def biases(most: int, bound: float) -> Kind:
    """A map of token ids (also as strings, as JSON has them) to biases."""

    def read(value: Any) -> dict[int, float]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise ValueError(value)
        one = number(-bound, bound).read
        made = {}
        for key, bias in value.items():
            if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
                key = int(key)
            made[_whole(key, 0, ID_END - 1)] = one(bias)
        return dict(sorted(made.items()))

    return Kind(f"a map of at most {most} token ids to numbers from {-bound:g} to {bound:g}", read)


def items(value: Any, most: int) -> Sequence[Any]:
    """A list or tuple of at most `most` items, or ValueError."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) > most:
        raise ValueError(value)
    return value


def shown(value: object) -> str:
    """A refused value, short: it is the client's, and may be long or a number of a million digits."""
    if (value is None or isinstance(value, str | int | float)) and not (isinstance(value, int) and abs(value) >= 2**64):
        return repr(value[:40]) + "..." if isinstance(value, str) and len(value) > 40 else repr(value)
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if not isinstance(value, int) else "a number beyond 64 bits"
