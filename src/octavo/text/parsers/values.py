"""Raw text of an argument -> JSON, by what the function's schema says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.text.parsers.json_text import parsed
from octavo.text.parsers.python_calls import literal
from octavo.text.parsers.source import Source, Write

_WORDS = {"True": "true", "False": "false", "None": "null"}
_NAMES: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


TEXT = frozenset({"string"})  # a string, whatever it looks like
JSON: frozenset[str] = frozenset()  # JSON, or a string if it is none


class TextValue:
    """One value while it comes. A string is passed on at once, all else when it is whole."""

    def __init__(self, types: frozenset[str], write: Write, trimmed: bool) -> None:
        """types: those of JSON Schema that it may have."""
        self._types = types
        self._write = write
        self._trimmed = trimmed
        self._begun = False
        self._line_end = ""  # held back: the last one may be none of it
        self._pieces: list[str] = []

    def push(self, text: str) -> None:
        if not self._begun:
            self._begun = True
            if self._types == TEXT:
                self._write('"')
            if self._trimmed:
                text = text.removeprefix("\n")
        if self._trimmed and text:
            text = self._line_end + text
            self._line_end = "\n" if text.endswith("\n") else ""
            text = text.removesuffix("\n")
        if not text:
            return
        if self._types == TEXT:
            self._write(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._pieces.append(text)

    def end(self) -> None:
        """It is whole."""
        self.push("")
        if self._types == TEXT:
            self._write('"')
            return
        text = "".join(self._pieces)
        bare = text.strip()
        bare = _WORDS.get(bare, bare)
        found = bare if self._is_json(bare) else _literal(bare)
        self._write(found or json.dumps(text, ensure_ascii=False))

    def _is_json(self, text: str) -> bool:
        found = parsed(text)
        if found is None and text != "null":
            return False
        if "string" not in self._types:
            return True
        return any(type(found) in _NAMES.get(name, ()) for name in self._types)


def _literal(text: str) -> str:
    """A list or a dict in Python's spelling, as JSON; empty if it is none."""
    if not text.startswith(("[", "{", "(")):
        return ""
    source, pieces = Source(), list[str]()
    source.push(text)
    source.ended = True
    reader = literal(source, pieces.append)
    try:
        while True:
            next(reader)
    except StopIteration as end:
        return "".join(pieces) if end.value and source.at == len(text) else ""


def types_of(schema: Mapping[str, Any] | None, key: str) -> frozenset[str]:
    """What the argument `key` of a function with these parameters may be."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    return frozenset(_types(declared))


def _types(declared: Any, depth: int = 0) -> set[str]:
    """The names of the types that a schema allows; empty if it does not say."""
    if not isinstance(declared, Mapping) or depth > 3:
        return set()
    stated = declared.get("type")
    if isinstance(stated, str):
        return {stated}
    if isinstance(stated, list):
        return {each for each in stated if isinstance(each, str)}
    for name in ("enum", "const"):
        values = declared.get(name, ()) if name == "enum" else [declared[name]] if name in declared else ()
        if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
            return {"string"}
    found: set[str] = set()
    for name in ("anyOf", "oneOf", "allOf"):
        parts = declared.get(name)
        for part in parts if isinstance(parts, list) else ():
            found |= _types(part, depth + 1)
    return found
