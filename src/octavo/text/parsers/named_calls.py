"""Calls as a head that names the function, and its arguments as one JSON object behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from octavo.text.parsers import json_text
from octavo.text.parsers.formats import LONGEST_NAME, Calls
from octavo.text.parsers.source import Reading, Source, markers_of


@dataclass(frozen=True)
class NamedCalls:
    """head: what stands between `each` and the first brace, with the group `name`. each: what opens a
    call; empty where the section's own marker does. closers: what may follow the arguments, in this order, the last of
    them closing the call. end: of the section."""

    head: str
    each: str = ""
    closers: Sequence[str] = ()
    end: str = ""
    marks: Sequence[str] = ()  # literals of `head`

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return (self.each, *self.closers, self.end, *self.marks)

    @cached_property
    def _head(self) -> re.Pattern[str]:
        return re.compile(self.head)

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
        found = yield from source.short(markers_of("{", *self.closers[-1:]), 2 * LONGEST_NAME)
        if found is None:
            return False
        before, marker = found
        head = self._head.fullmatch(before)
        if head is None:
            return False
        calls.begin(head["name"])
        if marker != "{":
            calls.arguments("{}")
            calls.end()
            return True
        source.back(1)
        complete = yield from json_text.value(source, calls.arguments)
        if not complete and self.closers:
            last = yield from source.until(markers_of(*self.closers), calls.arguments)
            source.back(len(last))
        yield from source.skip_space()
        for closer in self.closers:
            yield from source.skip(closer)
            yield from source.skip_space()
        calls.end()
        return True
