"""Calls as JSON objects: {"name": ..., "arguments": {...}}, one, several, or a list of them.

The arguments are passed on as they come once the name is known. A missing last brace, which small models forget, and
one too many are forgiven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.text.parsers import json_text
from octavo.text.parsers.formats import LONGEST_NAME, Calls
from octavo.text.parsers.source import Reading, Source, markers_of

NAMES = ("name", "tool_name")
ARGUMENTS = ("arguments", "parameters")
MOST_ARGUMENTS = 1 << 20  # characters that are kept until their name comes, or of arguments inside a string


@dataclass(frozen=True)
class JsonCalls:
    """Objects up to one of `ends`; without any, as far as objects follow one another.

    known: only functions of the request are calls; all else is text. Where `known_after` names what opened the section,
    only there. keyed: {"function": {arguments}} in place of name and arguments.
    """

    ends: Sequence[str] = ()
    known_after: Sequence[str] = ()
    keyed: bool = False

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return self.ends

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """See Syntax. `opened` may be the first brace or bracket itself."""
        known, listed, any_ = opened in self.known_after, False, False
        if opened in ("{", "["):
            source.back(1)
        while True:
            yield from source.skip_space()
            if (yield from source.skip_first(self.ends)):
                return any_
            char = yield from source.peek()
            if char == "{":
                one = _Object(source, calls, self.ends, known)
                if not (yield from (one.keyed() if self.keyed else one.read())):
                    return False
                any_ = True
            elif char == "[" and not listed:
                listed = True
                source.at += 1
            elif any_ and char and char in ",;]}":
                source.at += 1
            elif char == "`" and any_ and opened.startswith("```"):
                return (yield from source.skip("```"))
            else:
                return any_


class _Object:
    """One call, at its first brace."""

    def __init__(self, source: Source, calls: Calls, ends: Sequence[str], known: bool) -> None:
        self._source = source
        self._calls = calls
        self._ends = ends
        self._known = known
        self._name: str | None = None
        self._begun = False
        self._held: list[str] = []  # arguments that came before the name
        self._size = 0

    def read(self) -> Reading[bool]:
        """Whether it is a call; it is wholly read then."""
        source = self._source
        source.at += 1
        depth = 1  # {"type": "function", "function": {"name": ...}}
        while True:
            yield from source.skip_space()
            char = yield from source.peek()
            if char == ",":
                source.at += 1
            elif char == "}":
                source.at += 1
                depth -= 1
                if not depth:
                    return self._finish()
            elif char == '"':
                key = yield from json_text.text_of_string(source, LONGEST_NAME)
                yield from source.skip_space()
                if key is None or not (yield from source.skip(":")):
                    return (yield from self._broken())
                yield from source.skip_space()
                if key == "function" and (yield from source.skip("{")):
                    depth += 1
                elif not (yield from self._member(key)):
                    return (yield from self._broken())
            elif self._begun:
                return self._finish()  # the last brace was forgotten
            else:
                return (yield from self._broken())

    def keyed(self) -> Reading[bool]:
        """The same of {"function": {arguments}}."""
        source = self._source
        source.at += 1
        yield from source.skip_space()
        name = yield from json_text.text_of_string(source, LONGEST_NAME)
        yield from source.skip_space()
        if name is None or not (yield from source.skip(":")) or not self._named(name):
            return False
        yield from source.skip_space()
        if not (yield from self._arguments()):
            return (yield from self._broken())
        yield from source.skip_space()
        yield from source.skip("}")
        return self._finish()

    def _member(self, key: str) -> Reading[bool]:
        """One value. False: it is broken, or this is no call."""
        if self._name is None and (key in NAMES or key == "function"):
            name = yield from json_text.text_of_string(self._source, LONGEST_NAME)
            return name is not None and self._named(name)
        if key in ARGUMENTS and not self._begun:
            return (yield from self._arguments())
        if self._name is None and self._known and key not in ("type", "id"):
            return False  # an ordinary object: nothing of it is held back any longer
        return (yield from json_text.value(self._source, _nowhere))

    def _named(self, name: str) -> bool:
        if not name or (self._known and name not in self._calls.functions):
            return False
        self._name = name
        return True

    def _arguments(self) -> Reading[bool]:
        if (yield from self._source.peek()) == "{":
            write = self._hold
            if self._name is not None:
                self._begin()
                write = self._calls.arguments
            return (yield from json_text.value(self._source, write)) and self._size <= MOST_ARGUMENTS
        complete = yield from json_text.value(self._source, self._hold)
        given = json_text.parsed("".join(self._held))
        if isinstance(given, str):  # JSON inside of a string
            self._held = [given if isinstance(json_text.parsed(given), dict) else "".join(self._held)]
        elif given is None:
            self._held = []
        return complete and self._size <= MOST_ARGUMENTS

    def _hold(self, text: str) -> None:
        self._size += len(text)
        if self._size <= MOST_ARGUMENTS:
            self._held.append(text)

    def _begin(self) -> None:
        self._begun = True
        assert self._name is not None
        self._calls.begin(self._name)

    def _finish(self) -> bool:
        if self._name is None:
            return False
        if not self._begun:
            self._begin()
            self._calls.arguments("".join(self._held) or "{}")
        self._calls.end()
        return True

    def _broken(self) -> Reading[bool]:
        """What is no JSON: the rest goes out as it stands once the call has begun, so that its reader sees the
        fault."""
        if not self._begun:
            return False
        if self._ends:
            found = yield from self._source.until(markers_of(*self._ends), self._calls.arguments)
            self._source.back(len(found))
        self._calls.end()
        return True


def _nowhere(text: str) -> None:
    """Of no interest."""
