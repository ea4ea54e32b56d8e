"""The streaming state machine of answers: text in, pieces of reasoning, calls and text out, whatever the family.

It reads with the syntax that a parser file declares. What looks like a call and is none comes out as the text that it
was. The pieces joined do not depend on how the text was cut. It knows characters, not tokens: a piece says up to which
character it goes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import msgspec

from octavo.text.parsers.formats import Schema, ThinkFormat, ToolFormat
from octavo.text.parsers.harmony import channels
from octavo.text.parsers.source import Markers, Reading, Source, markers_of


class Kind(Enum):
    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


class Piece(msgspec.Struct):
    """Characters up to `end` of the answer's, as what they mean. Of a call: `call` is its place, and the first piece
    has id and name and no text."""

    kind: Kind
    text: str
    end: int
    call: int = -1
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Parsing:
    """How one answer is to be read.

    reasoning: the prompt has opened it. functions: name -> parameters of those that may be called. single: nothing
    counts behind the first call. budget: tokens of reasoning, see async_llm. exclude: reasoning is not told. demanded:
    the answer is held to be calls, so that what is no call is the beginning of one that its tokens cut off.
    """

    tools: ToolFormat | None = None
    think: ThinkFormat | None = None
    reasoning: bool = False
    functions: Mapping[str, Schema] = field(default_factory=dict)
    single: bool = False
    budget: int | None = None
    exclude: bool = False
    demanded: bool = False

    @cached_property
    def shown(self) -> frozenset[str]:
        """Texts whose special tokens must be seen."""
        tools, think = self.tools, self.think
        found = () if tools is None else (*tools.begins, *tools.syntax.literals())
        more = () if think is None else (think.begin, think.end, *think.dropped)
        return frozenset((*found, *more))


class Splitter:
    """One answer. `reasoning`: the next characters are. `done`: nothing behind counts."""

    def __init__(self, parsing: Parsing) -> None:
        self.functions = parsing.functions
        self.reasoning = parsing.reasoning
        self.calls = 0
        self.done = False
        self.plain = False  # whatever follows is text as it is: nobody needs to ask here any more
        self._parsing = parsing
        self._source = Source()
        self._pieces: list[Piece] = []
        self._space: list[str] = []  # white space that may be dropped, held back
        self._begun = False  # the kind of text that is being written has had a character
        self._text = False  # the answer has text
        self._call_ends = 0  # calls, when the last one was complete
        self._machine = self._run()
        next(self._machine, None)

    @property
    def position(self) -> int:
        """Characters that were read."""
        return self._source.position

    def push(self, text: str) -> list[Piece]:
        """More of the answer; the pieces that are known now."""
        if not text or self.done:
            return []
        self._source.push(text)
        return self._go_on()

    def finish(self) -> list[Piece]:
        """Nothing follows: what was held back."""
        if self.done or self._source.ended:
            return []
        self._source.ended = True
        return self._go_on()

    def _go_on(self) -> list[Piece]:
        next(self._machine, None)
        pieces, self._pieces = self._pieces, []
        return pieces

    # -- the machine -------------------------------------------------------------------------------------------------

    def _run(self) -> Reading[None]:
        parsing = self._parsing
        if parsing.think is not None and parsing.think.channels:
            yield from channels(self._source, self)
        else:
            if parsing.reasoning and parsing.think is not None:
                yield from self._think(parsing.think)
            yield from self._head()
            while not self.done and (yield from self._passage()):
                pass
        self._write_space()

    def _head(self) -> Reading[None]:
        """The beginning of the answer: reasoning, and calls without a marker."""
        source, think, tools = self._source, self._parsing.think, self._parsing.tools
        while not self.done:
            yield from source.skip_space_into(self.hold)
            if think is not None and (yield from source.skip(think.begin)):
                self._space.clear()
                yield from self._think(think)
                continue
            for opened in () if tools is None else tools.bare:
                if (yield from source.skip(opened)):
                    yield from self._section(opened)
                    break
            return

    def _think(self, think: ThinkFormat) -> Reading[None]:
        """Reasoning up to its end, and the white space behind it."""
        source, tools = self._source, self._parsing.tools
        begins = tools.begins if tools is not None and tools.interrupts else ()
        found = yield from self.reason(markers_of(think.end, *begins))
        if found in begins and found:
            yield from self._section(found)
        yield from source.skip_space()

    def reason(self, ends: Markers) -> Reading[str]:
        """Reasoning up to one of these markers, which is given back; empty at the end of the answer."""
        self.reasoning, self._begun = True, False
        found = yield from self._source.until(ends, self.think)
        self.reasoning, self._begun = False, False
        self._space.clear()
        return found

    def _passage(self) -> Reading[bool]:
        """Text up to the next marker, and what that opens. False at the end of the answer."""
        source, think, tools = self._source, self._parsing.think, self._parsing.tools
        begins = () if tools is None else tuple(tools.begins)
        dropped = () if think is None else tuple(think.dropped)
        again = (think.begin,) if think is not None and think.anywhere else ()
        if not (begins or dropped or again):
            self.plain = True
            yield from source.rest(self.write)
            return False
        found = yield from source.until(markers_of(*begins, *dropped, *again), self.write)
        if found in begins and found:
            yield from self._section(found)
        elif found in again and found:
            assert think is not None
            yield from self._think(think)
        return bool(found)

    def _section(self, opened: str) -> Reading[None]:
        """Calls behind a marker. What is none goes out as text, the marker with it."""
        tools, before = self._parsing.tools, self.calls
        assert tools is not None
        self._call_ends = before
        self._source.mark()
        well = yield from tools.syntax.read(self._source, self, opened)
        raw = self._source.since_mark()
        if not well and self.calls == self._call_ends:
            self.write(opened + raw if self.calls == before else raw)

    # -- what comes out ----------------------------------------------------------------------------------------------

    def think(self, text: str) -> None:
        """Reasoning, without the white space around it."""
        self._add(Kind.REASONING, text if self._begun else text.lstrip())

    def write(self, text: str) -> None:
        """Text. White space at its end waits: before a call it is dropped."""
        if self._parsing.demanded:
            return
        if self._parsing.tools is None:
            self._piece(Kind.TEXT, self._held() + text)
        else:
            if self.calls and not self._text:
                self._space.clear()  # nothing of it is between two texts
                text = text.lstrip()
            self._add(Kind.TEXT, text)

    def hold(self, space: str) -> None:
        """White space of which it is not known yet whether it belongs to the text."""
        self._space.append(space)

    def begin(self, name: str) -> None:
        """See formats.Calls."""
        self._space.clear()
        if not self.done:
            made = f"call_{secrets.token_hex(12)}"
            self._pieces.append(Piece(Kind.CALL, "", self._source.position, self.calls, made, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """See formats.Calls."""
        if text and not self.done:
            self._piece(Kind.CALL, text)

    def end(self) -> None:
        """See formats.Calls."""
        self._call_ends = self.calls
        self.done = self.done or self._parsing.single
        self._source.mark()  # what follows may be none

    def _add(self, kind: Kind, text: str) -> None:
        bare = text.rstrip()
        if not bare:
            if text:
                self._space.append(text)
            return
        self._begun = True
        self._text = self._text or kind is Kind.TEXT
        self._piece(kind, self._held() + bare)
        if len(bare) < len(text):
            self._space.append(text[len(bare) :])

    def _held(self) -> str:
        """The white space that was held back, which goes out."""
        if not self._space:
            return ""
        held = "".join(self._space)
        self._space.clear()
        return held

    def _write_space(self) -> None:
        """At the end of the answer: space at the end of a text is part of it, behind calls and reasoning it is none."""
        if self._space and not self.calls and not self.reasoning:
            self._piece(Kind.TEXT, self._held())

    def _piece(self, kind: Kind, text: str) -> None:
        if not text or self.done:
            return
        call = self.calls - 1 if kind is Kind.CALL else -1
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.kind is kind and last.call == call and last.name is None:
            last.text += text
            last.end = self._source.position
        else:
            self._pieces.append(Piece(kind, text, self._source.position, call))
