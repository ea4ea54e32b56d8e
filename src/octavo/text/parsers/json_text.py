"""JSON inside of an answer, read while it grows: strings, and whole values that are passed on as they come.

Models write raw line ends into strings and escapes that JSON has not: both are mended. Brackets are matched on a list
of their own, so that no depth of nesting harms. Numbers and words are not looked at.
"""

from __future__ import annotations

import json
import re
from typing import Any

from octavo.text.parsers.source import Reading, Source, Write

DEEPEST = 512  # brackets; JSON parsers of clients recurse
_INSIDE = re.compile(r'[^"\\\x00-\x1f]*')
_BETWEEN = re.compile(r"[\s:,\-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_ESCAPED = frozenset('"\\/bfnrtu')
_CLOSES = {"{": "}", "[": "]"}


def value(source: Source, write: Write) -> Reading[bool]:
    """Pass one value on. False: it is none, or the text ended; what was passed on stays."""
    yield from source.skip_space()
    first = yield from source.peek()
    if first == '"':
        return (yield from string(source, write))
    if first not in _CLOSES:
        found = yield from scalar(source)
        write(found)
        return bool(found)
    return (yield from _brackets(source, write))


def scalar(source: Source) -> Reading[str]:
    """A number or a word."""
    made = ""
    while (yield from source.peek()):
        found = _SCALAR.match(source.text, source.at)
        assert found is not None
        source.at = found.end()
        made += found.group()
        if source.at < len(source.text) or len(made) > 1000:
            break
    return made


def string(source: Source, write: Write) -> Reading[bool]:
    """Pass a string on, from its first quote to its last."""
    write('"')
    source.at += 1
    while (char := (yield from source.peek())) != "":
        found = _INSIDE.match(source.text, source.at)
        assert found is not None
        if found.end() > source.at:
            source.at = found.end()
            write(found.group())
            continue
        source.at += 1
        if char == '"':
            write('"')
            return True
        if char == "\\":
            escaped = yield from source.peek()
            if escaped == "":
                return False
            source.at += 1
            write(_escape(escaped))
        else:
            write(json.dumps(char)[1:-1])
    return False


def text_of_string(source: Source, most: int) -> Reading[str | None]:
    """The text of a string of at most about `most` characters; None if it is none."""
    if (yield from source.peek()) != '"':
        return None
    pieces: list[str] = []
    size = 0

    def add(piece: str) -> None:
        nonlocal size
        size += len(piece)
        if size <= most:
            pieces.append(piece)

    if not (yield from string(source, add)) or size > most:
        return None
    found = parsed("".join(pieces))
    return found if isinstance(found, str) else None


def parsed(text: str) -> Any:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _escape(char: str) -> str:
    if char in _ESCAPED:
        return "\\" + char
    return char if char == "'" else "\\\\" + json.dumps(char, ensure_ascii=False)[1:-1]


def _brackets(source: Source, write: Write) -> Reading[bool]:
    stack: list[str] = []
    while (char := (yield from source.peek())) != "":
        start = source.at
        found = _BETWEEN.match(source.text, start)
        assert found is not None
        if found.end() > start:
            source.at = found.end()
            write(found.group())
        elif char == '"':
            if not (yield from string(source, write)):
                return False
        elif char in _CLOSES:
            if len(stack) >= DEEPEST:
                return False
            stack.append(_CLOSES[char])
            source.at += 1
            write(char)
        elif char == stack[-1]:
            stack.pop()
            source.at += 1
            write(char)
            if not stack:
                return True
        else:
            return False
    return False
