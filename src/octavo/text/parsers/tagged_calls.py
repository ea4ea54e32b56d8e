"""Calls as tags, a pair for every argument. The values are raw text: what they stand for is told by the schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.text.parsers.formats import LONGEST_NAME, Calls
from octavo.text.parsers.source import Reading, Source, markers_of
from octavo.text.parsers.values import TextValue, types_of


@dataclass(frozen=True)
class TaggedCalls:
    """each: what opens a call; empty where the section's marker does. name_ends: what may follow the name; one that is
    `argument` or `close` itself is read as that. key_ends: what follows a key, and the types that it states for the
    value; then `value`, if not empty, opens the value. trimmed: one line end at each side of a value is none of it.
    quotes: what may stand around a value. end: of the section."""

    argument: str
    key_ends: Sequence[tuple[str, frozenset[str] | None]]
    value_end: str
    close: str
    each: str = ""
    name_ends: Sequence[str] = (">",)
    value: str = ""
    trimmed: bool = False
    quotes: tuple[str, str] | None = None
    end: str = ""

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        tags = (self.each, self.argument, self.value, self.value_end, self.close, self.end)
        return (*tags, *self.name_ends, *(text for text, _ in self.key_ends))

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """See Syntax."""
        any_ = False
        while True:
            if self.each and opened != self.each:
                yield from source.skip_space()
                if self.end and (yield from source.skip(self.end)):
                    return any_
                if not (yield from source.skip(self.each)):
                    return any_
            if not (yield from self._one(source, calls)):
                return False
            any_, opened = True, ""
            if not self.each:
                return True

    def _one(self, source: Source, calls: Calls) -> Reading[bool]:
        if not self.each:
            yield from source.skip_space()
        found = yield from source.short(markers_of(*self.name_ends), LONGEST_NAME)
        if found is None:
            return False
        name, marker = found[0].strip(), found[1]
        if not name or not all(char.isalnum() or char in "_-.:/" for char in name):
            return False
        if marker in (self.argument, self.close):
            source.back(len(marker))
        calls.begin(name)
        keys = 0
        while True:
            yield from source.skip_space()
            if (yield from source.skip(self.close)):
                break
            before = "{" if not keys else ", "
            if not (yield from self._argument(source, calls, name, before)):
                return True  # broken off: what came stays as it is
            keys += 1
        calls.arguments("}" if keys else "{}")
        calls.end()
        return True

    def _argument(self, source: Source, calls: Calls, name: str, before: str) -> Reading[bool]:
        if not (yield from source.skip(self.argument)):
            return False
        found = yield from source.short(markers_of(*(text for text, _ in self.key_ends)), LONGEST_NAME)
        if found is None:
            return False
        key = found[0].strip()
        if self.value:
            yield from source.skip_space()
            if not (yield from source.skip(self.value)):
                return False
        stated = dict(self.key_ends)[found[1]]
        types = types_of(calls.functions.get(name), key) if stated is None else stated
        calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        value = TextValue(types, calls.arguments, self.trimmed)
        value_end = self.value_end
        if self.quotes is not None and (yield from source.skip(self.quotes[0])):
            value_end = self.quotes[1] + value_end
        if not (yield from source.until(markers_of(value_end), value.push)):
            return False
        value.end()
        return True
