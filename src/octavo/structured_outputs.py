"""What an answer must look like: a JSON schema, a regular expression, one of several texts, a grammar, tags in a text.

`StructuredOutputsParams` has vLLM's names. It is made whole: exactly one constraint, as text, within every limit that
can be checked without work. What a schema or a grammar means is octavo.grammar's business; no tokenizer is known here.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parameter import Kind

MAX_BYTES = 64 << 10  # of a schema, grammar or tag: compiling 64 kB takes 0.3 s at most (docs/structured-output.md)
MAX_REGEX = 8 << 10  # bytes; the same of a `pattern` in a schema
MAX_DEPTH = 128  # of a schema's JSON; real ones have up to 40
MAX_VALUES = MAX_BYTES // 2  # of a schema: its text has two bytes for each at least
MAX_OPTIONS = 4096  # of a choice
MAX_MULTIPLE = 10_000  # of multipleOf: an automaton has a state for each remainder
KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_FIELD = "structured_outputs"
DATA = ("const", "enum", "default", "examples")  # keywords whose values are data, not schemas


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredOutputsParams:
    """Exactly one of the first six. InvalidRequest names what is wrong, with the field as `structured_outputs.NAME`.

    json: a schema, as JSON text or a mapping; kept as text. json_object: any JSON object. regex: the whole answer
    matches it. choice: the answer is one of these. grammar: Lark, GBNF or EBNF, told apart by its look. structural_tag:
    as vLLM has it, `{"type": "structural_tag", "format": ...}` or the older `{"structures": [{"begin", "schema",
    "end"}], "triggers"}`; kept as text.
    disable_any_whitespace: JSON without spaces between its tokens. whitespace_pattern: a regular expression for them.
    asked_as: the name under which a client sent it, for errors.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    asked_as: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise _refused(_FIELD, f"exactly one of {', '.join(KINDS)} is needed, got {got}")
        (name,) = given
        object.__setattr__(self, name, _READ[name](self.name, getattr(self, name)))
        if not isinstance(self.disable_any_whitespace, bool):
            raise _refused(f"{_FIELD}.disable_any_whitespace", "it must be true or false")
        if self.whitespace_pattern is not None:
            _text(f"{_FIELD}.whitespace_pattern", self.whitespace_pattern, 256)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> StructuredOutputsParams:
        """Of an object with these fields, as HTTP bodies have it; null and false count as left out."""
        names = {each.name for each in fields(cls)} - {"asked_as"}
        asked = {name: each for name, each in value.items() if each is not None and each is not False}
        for name in asked:
            if name not in names:
                raise _refused(f"{_FIELD}.{name[:40]}", f"no such field; there are {', '.join(sorted(names))}")
        return cls(**asked)

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def name(self) -> str:
        """The field at fault, if it is at fault."""
        return self.asked_as or f"{_FIELD}.{self.kind}"

    @property
    def text(self) -> str:
        """The constraint itself: a schema or a tag as JSON, a choice as a JSON list, else the text."""
        value = getattr(self, self.kind)
        if self.kind == "json_object":
            return '{"type":"object"}'
        return value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)


def structured_outputs() -> Kind:
    """A StructuredOutputsParams, or an object with its fields. None: no constraint."""

    def read(value: Any) -> StructuredOutputsParams | None:
        if value is None or isinstance(value, StructuredOutputsParams):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(value)
        return StructuredOutputsParams.read(value)

    return Kind("an object with one of " + ", ".join(KINDS), read)


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {why}.", param=name)


def _text(name: str, value: Any, most: int) -> str:
    """A text of at most `most` bytes."""
    if not isinstance(value, str) or not value:
        raise _refused(name, "it must be a text, and not empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _refused(name, "it is not valid Unicode") from None
    if size > most:
        raise _refused(name, f"it has {size} bytes; at most {most} are accepted")
    return value


def _regex(name: str, value: Any) -> str:
    return _text(name, value, MAX_REGEX)


def _grammar(name: str, value: Any) -> str:
    return _text(name, value, MAX_BYTES)


def _object(name: str, value: Any) -> bool:
    if value is not True:
        raise _refused(name, "it must be true or false")
    return True


def _choice(name: str, value: Any) -> tuple[str, ...]:
    made = tuple(value) if isinstance(value, list | tuple) else ()
    if not 0 < len(made) <= MAX_OPTIONS or not all(isinstance(each, str) and each for each in made):
        raise _refused(name, f"it must be a list of 1 to {MAX_OPTIONS} texts, none of them empty")
    _text(name, "".join(made), MAX_BYTES)
    return tuple(dict.fromkeys(made))


def _json(name: str, value: Any) -> str:
    """JSON text of a schema or a tag, within the limits of what is in it."""
    if isinstance(value, Mapping):
        try:
            check_schema(value, name)  # first: writing it goes as deep as it is nested
            text = json_module.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError):
            raise _refused(name, "it is not plain JSON") from None
        return _text(name, text, MAX_BYTES)
    text = _text(name, value, MAX_BYTES)
    try:
        read = json_module.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not JSON ({str(error)[:80]})"
        raise _refused(name, why) from None
    if not isinstance(read, dict):
        raise _refused(name, "it must be a JSON object")
    check_schema(read, name)
    return text


def check_schema(schema: Any, name: str) -> None:
    """Refuse what would cost too much, or ask for other files: depth, multipleOf, long patterns, remote $ref."""
    level: list[tuple[Any, bool]] = [(schema, True)]
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[tuple[Any, bool]] = []
        for value, is_schema in level:
            if isinstance(value, Mapping):
                if is_schema:
                    _check_keywords(value, name)
                below += [(each, is_schema and key not in DATA) for key, each in value.items()]
            elif isinstance(value, list | tuple):
                below += [(each, is_schema) for each in value]
            if seen + len(below) > MAX_VALUES:
                raise _refused(name, f"it has more than {MAX_VALUES} values; at most {MAX_BYTES} bytes are accepted")
        seen += len(below)
        level = [each for each in below if isinstance(each[0], Mapping | list | tuple)]
        if not level:
            return
    raise _refused(name, f"it is nested too deeply; {MAX_DEPTH} levels are accepted")


def _check_keywords(schema: Mapping[str, Any], name: str) -> None:
    multiple, pattern, reference = schema.get("multipleOf"), schema.get("pattern"), schema.get("$ref")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool) and abs(multiple) > MAX_MULTIPLE:
        raise _refused(name, f"multipleOf is above {MAX_MULTIPLE}")
    if isinstance(pattern, str) and len(pattern) > MAX_REGEX:
        raise _refused(name, f"a pattern has {len(pattern)} characters; at most {MAX_REGEX} are accepted")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _refused(
            name, f"$ref {reference[:80]!r} leaves the schema; only references that begin with # are followed"
        )


_READ = {
    "json": _json, "json_object": _object, "regex": _regex, "choice": _choice, "grammar": _grammar,
    "structural_tag": _json,
}  # fmt: skip
