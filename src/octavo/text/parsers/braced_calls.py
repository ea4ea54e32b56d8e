"""Calls as call:name{key:value,...}: keys without quotes, strings between marks of their own. FunctionGemma and
Gemma."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.text.parsers.formats import LONGEST_NAME, Calls
from octavo.text.parsers.source import Reading, Source, Write, markers_of

DEEPEST = 64
_WORD = re.compile(r"[^\s,:{}\[\]<]+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class BracedCalls:
    """quote: what stands on both sides of a string. end: of the section, which has one call."""

    quote: str
    end: str
    prefix: str = "call:"

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return (self.quote, self.end)

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """See Syntax."""
        yield from source.skip_space()
        if not (yield from source.skip(self.prefix)):
            return False
        found = yield from source.short(markers_of("{"), LONGEST_NAME)
        name = "" if found is None else found[0].strip()
        if not name or not all(char.isalnum() or char in "_-.:/" for char in name):
            return False
        source.back(1)
        calls.begin(name)
        if not (yield from self._value(source, calls.arguments)):
            last = yield from source.until(markers_of(self.end), calls.arguments)
            source.back(len(last))
        yield from source.skip_space()
        yield from source.skip(self.end)
        calls.end()
        return True

    def _value(self, source: Source, write: Write) -> Reading[bool]:
        """One value in brackets, as JSON."""
        stack: list[str] = []
        expects_key = False
        while True:
            yield from source.skip_space()
            char = yield from source.peek()
            if char in ("{", "["):
                if len(stack) >= DEEPEST:
                    return False
                stack.append("}" if char == "{" else "]")
                expects_key = char == "{"
            elif stack and char == stack[-1]:
                stack.pop()
            elif char == ",":
                expects_key = bool(stack) and stack[-1] == "}"
            elif char == ":":
                expects_key = False
            elif (yield from source.skip(self.quote)):
                if not (yield from self._string(source, write)):
                    return False
                continue
            else:
                word = yield from self._word(source)
                if not word:
                    return False
                plain = not expects_key and (word in ("true", "false", "null") or _NUMBER.fullmatch(word))
                write(word if plain else json.dumps(word, ensure_ascii=False))
                continue
            source.at += 1
            write(f"{char} " if char in ",:" else char)
            if not stack:
                return True

    def _string(self, source: Source, write: Write) -> Reading[bool]:
        write('"')

        def inside(text: str) -> None:
            write(json.dumps(text, ensure_ascii=False)[1:-1])

        if not (yield from source.until(markers_of(self.quote), inside)):
            return False
        write('"')
        return True

    def _word(self, source: Source) -> Reading[str]:
        made = ""
        while (yield from source.peek()):
            found = _WORD.match(source.text, source.at)
            if found is None:
                break
            source.at = found.end()
            made += found.group()
            if source.at < len(source.text) or len(made) > LONGEST_NAME:
                break
        return made
