"""Calls as Python writes them, [f(a=1, b='x')], one or several: read character by character, never evaluated.

Strings go over into JSON when they are whole, everything else as it comes. Positional arguments get the names that the
function's schema has in their places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.text.parsers.formats import LONGEST_NAME, Calls
from octavo.text.parsers.source import Reading, Source, Write, markers_of

DEEPEST = 64  # brackets in a value
LONGEST_STRING = 1 << 20
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*=")
_KEYWORD_BEGUN = re.compile(r"[A-Za-z_]\w*\s*")
_WORD = re.compile(r"[\w.+\-]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_PAIRS = {"[": "]", "(": ")", "{": "}"}
_JSON_BRACKETS = {"[": "[", "(": "[", "{": "{", "]": "]", ")": "]", "}": "}"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": "", "0": "\0", "b": "\b", "f": "\f"}
_HEX = {"x": 2, "u": 4, "U": 8}
_PLAIN = {quote: re.compile(rf"[^{quote}\\]+") for quote in "'\""}


@dataclass(frozen=True)
class PythonCalls:
    """known_after: what opens a section in which only functions of the request are calls. ends: of the section."""

    ends: Sequence[str] = ()
    known_after: Sequence[str] = ()

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return self.ends

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """See Syntax."""
        known, listed, any_ = opened in self.known_after, opened == "[", False
        while True:
            yield from source.skip_space()
            if (yield from source.skip_first(self.ends)):
                return any_
            char = yield from source.peek()
            if char == "[" and not listed:
                listed = True
                source.at += 1
            elif any_ and char == "]" and listed:
                source.at += 1
                if not self.ends:
                    return True
            elif any_ and char in (",", ";"):
                source.at += 1
            elif char.isalpha() or char == "_":
                name = yield from self._name(source)
                if name is None or (known and name not in calls.functions):
                    return False
                if not (yield from _arguments(source, calls, name)):
                    yield from self._rest(source, calls)
                any_ = True
            else:
                return any_

    def _rest(self, source: Source, calls: Calls) -> Reading[None]:
        """A call that is no Python: what follows goes out as it stands, so that its reader sees the fault."""
        if self.ends:
            found = yield from source.until(markers_of(*self.ends), calls.arguments)
            source.back(len(found))
        else:
            yield from source.rest(calls.arguments)
        calls.end()

    def _name(self, source: Source) -> Reading[str | None]:
        found = yield from source.short(markers_of("("), LONGEST_NAME)
        name = "" if found is None else found[0].strip()
        return name if _NAME.fullmatch(name) else None


def _arguments(source: Source, calls: Calls, name: str) -> Reading[bool]:
    """All that stands in the brackets. False: broken off; the call has begun all the same."""
    calls.begin(name)
    properties = (calls.functions.get(name) or {}).get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    count = 0
    while True:
        yield from source.skip_space()
        char = yield from source.peek()
        if char == ")":
            source.at += 1
            calls.arguments("}" if count else "{}")
            calls.end()
            return True
        if char == "," and count:
            source.at += 1
            continue
        key = yield from _keyword(source)
        if key is None:
            if count >= len(names):
                return False
            key = names[count]
        calls.arguments(f"{', ' if count else '{'}{json.dumps(key, ensure_ascii=False)}: ")
        count += 1
        if not (yield from literal(source, calls.arguments)):
            return False


def _keyword(source: Source) -> Reading[str | None]:
    """The name in front of `=`; nothing is read where there is none."""
    while True:
        found = _KEYWORD.match(source.text, source.at)
        if found is not None:
            source.at = found.end()
            return found.group(1)
        begun = _KEYWORD_BEGUN.fullmatch(source.text, source.at)
        if begun is None or source.ended or len(source.text) - source.at > LONGEST_NAME:
            return None
        yield


def literal(source: Source, write: Write) -> Reading[bool]:
    """One literal, as JSON. False: it is none."""
    stack: list[str] = []
    while True:
        yield from source.skip_space()
        char = yield from source.peek()
        if char in _PAIRS and char:
            if len(stack) >= DEEPEST:
                return False
            stack.append(_PAIRS[char])
            source.at += 1
            write(_JSON_BRACKETS[char])
            continue
        if stack and char == stack[-1]:
            source.at += 1
            write(_JSON_BRACKETS[stack.pop()])
        elif char in ("'", '"'):
            text = yield from string(source)
            if text is None:
                return False
            write(json.dumps(text, ensure_ascii=False))
        else:
            word = yield from _word(source)
            if word is None:
                return False
            write(word)
        if not (yield from _between(source, stack, write)):
            return False
        if not stack:
            return True


def _between(source: Source, stack: list[str], write: Write) -> Reading[bool]:
    """What may stand behind a value inside of brackets: closing ones, and one comma or colon."""
    while stack:
        yield from source.skip_space()
        char = yield from source.peek()
        if char == stack[-1]:
            source.at += 1
            write(_JSON_BRACKETS[stack.pop()])
        elif char == ":" and stack[-1] == "}":
            source.at += 1
            write(": ")
            return True
        elif char == ",":
            source.at += 1
            yield from source.skip_space()
            if (yield from source.peek()) != stack[-1]:  # (1,) and [1,] are Python
                write(", ")
                return True
        else:
            return False
    return True


def string(source: Source) -> Reading[str | None]:
    """The text of a string at its quote; None if it does not end."""
    quote = source.text[source.at]
    source.at += 1
    end = quote
    if (yield from source.skip(quote * 2)):
        end = quote * 3
    pieces: list[str] = []
    size = 0
    while (char := (yield from source.peek())) != "" and size <= LONGEST_STRING:
        found = _PLAIN[quote].match(source.text, source.at)
        if found is not None:
            source.at = found.end()
            piece = found.group()
        elif char == "\\":
            source.at += 1
            piece = yield from _escape(source)
        elif (yield from source.skip(end)):
            return "".join(pieces)
        else:
            source.at += 1
            piece = char
        size += len(piece)
        pieces.append(piece)
    return None


def _escape(source: Source) -> Reading[str]:
    char = yield from source.peek()
    if not char:
        return "\\"
    source.at += 1
    digits = _HEX.get(char)
    if digits is None:
        return _ESCAPES.get(char, "\\" + char)
    made = ""
    while len(made) < digits and (next_ := (yield from source.peek())) and next_ in "0123456789abcdefABCDEF":
        source.at += 1
        made += next_
    code = int(made, 16) if len(made) == digits else -1
    return chr(code) if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000 else "\\" + char + made


def _word(source: Source) -> Reading[str | None]:
    """A number, or one of Python's and JSON's words, as JSON."""
    made = ""
    while (yield from source.peek()):
        found = _WORD.match(source.text, source.at)
        assert found is not None
        source.at = found.end()
        made += found.group()
        if source.at < len(source.text) or len(made) > LONGEST_NAME:
            break
    return _WORDS.get(made) or (made if _NUMBER.fullmatch(made) else None)
