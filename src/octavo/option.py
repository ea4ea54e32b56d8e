"""What an option is: one field of a frozen dataclass with its kind, range, help, aliases and environment names.

A Kind turns text from a flag, a variable or a YAML key into the value of the field, or says what it expected. It knows
no option by name (config.py lists them), no command line (cli/flags.py) and never reads the environment.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any, TypeVar, cast

from octavo.errors import ConfigError

T = TypeVar("T")

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MILLISECONDS = {"ms": 1, "s": 10**3, "m": 60 * 10**3, "h": 3600 * 10**3, "d": 86400 * 10**3}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written. `read` returns the value or raises ValueError; `expects` ends "expected …"."""

    metavar: str  # what help shows after the flag; empty for a boolean
    expects: str
    read: Callable[[object], object]
    auto: bool = False  # "auto", -1 and None mean that start-up decides; the value is None
    many: bool = False  # the flag may be repeated; the value is a tuple
    secret: bool = False  # never printed
    yaml_object: bool = False  # a JSON object, so dotted flags reach into it
    notices: tuple[tuple[str, str], ...] = ()  # word -> what is said at start where it is written: a near equivalent

    def parse(self, value: object) -> object:
        """The typed value of `value` (text or already typed); ValueError if it is not one."""
        if self.auto and (value is None or str(value).strip().lower() in ("auto", "-1")):
            return None
        return self.read(value)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `name` is the field's, `flag` the command line's, `environment` every variable that sets it."""

    name: str
    default: object
    kind: Kind
    help: str
    group: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()  # flags that switch a boolean off, beside --no-…
    env: tuple[str, ...] = ()  # beside OCTAVO_ARG_<FLAG>
    rare: bool = False  # shown by --help=all only

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> tuple[str, ...]:
        return ("OCTAVO_ARG_" + self.name.upper(), *self.env)

    def parse(self, value: object, source: str = "") -> object:
        """The value for the field; ConfigError names the flag and, where it is not the flag, the source."""
        try:
            return self.kind.parse(value)
        except (ValueError, TypeError, ArithmeticError):
            shown = "a secret" if self.kind.secret else repr(value)
            where = f" (from {source})" if source and source != self.flag else ""
            raise ConfigError(
                f"{self.flag}{where}: expected {self.kind.expects}, got {shown}.", flag=self.flag
            ) from None

    def notice(self, value: object, source: str) -> str | None:
        """What start-up says of a value that something near to it stands in for."""
        said = dict(self.kind.notices).get(str(value).strip().lower())
        return said and f"{source} {value}: {said}"


def option(
    default: T,
    kind: Kind,
    help: str,
    group: str,
    *,
    aliases: tuple[str, ...] = (),
    negations: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    rare: bool = False,
) -> T:
    """A dataclass field that is an option. Typed as its default so that the field's annotation is checked."""
    made = Option("", default, kind, help, group, aliases, negations, env, rare)
    return field(default=default, repr=not kind.secret, metadata={"option": made})


def options_of(noun: type) -> tuple[Option, ...]:
    """The options among the fields of a dataclass, in order."""
    found = [(each.name, each.metadata.get("option")) for each in fields(noun)]
    return tuple(replace(cast(Option, made), name=name) for name, made in found if made)


def check(noun: Any) -> None:
    """Every option of a dataclass instance holds a value of its kind; else ConfigError. For `__post_init__`."""
    for each in options_of(type(noun)):
        value = getattr(noun, each.name)
        if each.parse(value) != value:
            raise ConfigError(
                f"{each.flag}: expected {each.kind.expects} as a typed value, got {value!r}.", flag=each.flag
            )


def _range(low: float | None, high: float | None, noun: str, unit: str) -> str:
    unit = f" {unit}" if unit else ""
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}{unit}"
    return f"{noun} of at least {low}{unit}" if low is not None else f"{noun}{unit}"


def _within(value: float, low: float | None, high: float | None) -> None:
    if math.isnan(value) or (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(value)


def read_count(value: object) -> int:
    """32k is 32,000, 32K is 32,768; a fraction of a suffix is cut to a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?)([kKmMgGtT]?)", value.strip())
    if not found or ("." in found[1] and not found[2]):
        raise ValueError(value)
    factor = (_DECIMAL | _BINARY).get(found[2], 1)
    return int(Decimal(re.sub("[_,]", "", found[1])) * factor)


def read_bytes(value: object) -> int:
    """4GiB and 4G and 4Gi are 4 × 2^30, 4GB and 4g are 4 × 10^9, a plain number is bytes."""
    if isinstance(value, str):
        found = re.fullmatch(r"(.*?)\s*(?:([kKmMgGtT])(i?)[bB]|([kKmMgGtT])i|[bB])", value.strip())
        if found:
            letter, binary = found[2] or found[4], bool(found[3] or found[4])
            value = found[1] + (letter.upper() if binary else letter.lower()) if letter else found[1]
    return read_count(value)


def read_duration(value: object, unit: str = "s") -> float:
    """90, 90s, 1.5m, 2h, 250ms → that many `unit`s (s or ms), which is also the unit of a plain number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    found = re.fullmatch(r"([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf)\s*(ms|s|m|h|d)?", str(value).strip().lower())
    if not found:
        raise ValueError(value)
    made = float(found[1])
    return made * _MILLISECONDS[found[2]] / _MILLISECONDS[unit] if found[2] else made


def read_bool(value: object) -> bool:
    """true, yes, on, 1 and their opposites."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(value)
    return word in _TRUE


def read_texts(value: object) -> tuple[str, ...]:
    """A JSON list, a comma list, or a sequence of either → the texts, in order, empty ones dropped."""
    if value is None:
        return ()
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = json.loads(value)
        else:
            return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ValueError(value)
    return tuple(text for each in value for text in read_texts(each))


def _read_object(value: object) -> object:
    made = json.loads(value) if isinstance(value, str) else value
    if made is not None and not isinstance(made, dict):
        raise ValueError(value)
    return made


def count(low: int = 1, high: int | None = None, *, auto: bool = False, unit: str = "") -> Kind:
    """A whole number; where `auto` and 0 is out of range, 0 means auto too (llama-server's habit)."""

    def read(value: object) -> object:
        made = read_count(value)
        if auto and low > 0 and made == 0:
            return None
        _within(made, low, high)
        return made

    return Kind("N", _range(low, high, "a whole number", unit) + (" or auto" if auto else ""), read, auto)


def size(low: int = 0, *, auto: bool = False) -> Kind:
    """Bytes."""

    def read(value: object) -> object:
        made = read_bytes(value)
        if auto and made == 0:
            return None
        _within(made, low, None)
        return made

    return Kind("BYTES", "bytes such as 512MiB or 4GB" + (" or auto" if auto else ""), read, auto)


def number(low: float | None = None, high: float | None = None, *, auto: bool = False) -> Kind:
    """A float within its bounds."""

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(value)
        made = float(value)
        _within(made, low, high)
        return made

    return Kind("X", _range(low, high, "a number", "") + (" or auto" if auto else ""), read, auto)


def seconds(low: float = 0.0, high: float | None = None) -> Kind:
    """A duration in seconds: 30, 30s, 5m."""

    def read(value: object) -> object:
        made = read_duration(value)
        _within(made, low, high)
        return made

    return Kind("SECONDS", _range(low, high, "a duration", "seconds (30, 30s, 5m)"), read)


def milliseconds(low: float, high: float) -> Kind:
    """A duration whose plain numbers and whose value are milliseconds: 100, 100ms, 1s."""

    def read(value: object) -> object:
        made = read_duration(value, "ms")
        _within(made, low, high)
        return made

    return Kind("MS", _range(low, high, "a duration", "milliseconds (100, 100ms, 1s)"), read)


def choice(*names: str, notices: tuple[tuple[str, str], ...] = (), **synonyms: str) -> Kind:
    """One of the names, whatever its case; synonyms are other people's words for them, notices what is said of some."""

    def read(value: object) -> object:
        word = str(value).strip().lower()
        word = synonyms.get(word, word)
        if word not in names:
            raise ValueError(value)
        return word

    return Kind("|".join(names), "one of " + ", ".join(names), read, notices=notices)


def text(metavar: str = "TEXT", *, auto: bool = False) -> Kind:
    """Any text but the empty one; `auto` makes it optional."""

    def read(value: object) -> object:
        if not isinstance(value, str) or not value:
            raise ValueError(value)
        return value

    return Kind(metavar, "a text that is not empty", read, auto)


def texts(metavar: str = "TEXT", *, secret: bool = False) -> Kind:
    """Several texts: the flag repeated, a comma list, or a JSON list."""
    return Kind(metavar, "a text, a comma list or a JSON list of texts", read_texts, many=True, secret=secret)


def switch() -> Kind:
    """A boolean."""
    return Kind("", "true or false", read_bool)


def json_object() -> Kind:
    """A JSON object, in YAML a mapping; None if absent."""
    return Kind("JSON", "a JSON object", _read_object, yaml_object=True)
