"""What a parser file declares: how a family writes its reasoning and its calls. Nouns only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.text.parsers.source import Reading, Source

Schema = Mapping[str, Any]
CallId = Callable[[str, str, int], str]  # (the id it has, the function's name, its place in the conversation)
LONGEST_NAME = 256  # characters of a function's name, with what a format writes around it


class Calls(Protocol):
    """Where a syntax puts the calls that it reads."""

    functions: Mapping[str, Schema]  # name -> parameters, of the functions that may be called

    def begin(self, name: str) -> None:
        """A call of this function."""

    def arguments(self, text: str) -> None:
        """A piece of its arguments, as JSON."""

    def end(self) -> None:
        """Nothing more of it."""


class Syntax(Protocol):
    """How calls are written inside of a section."""

    def literals(self) -> Sequence[str]:
        """What is looked for inside, so that special tokens among it are seen."""

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """Read what follows `opened`, up to the section's end. False: what was read since the last call, or since the
        beginning, is none."""


@dataclass(frozen=True)
class Written:
    """How calls stand in an answer that is held to be calls: `begin` with the name (%s), the arguments as JSON, `end`;
    `separator` between them, `before` and `after` around all."""

    begin: str
    end: str
    separator: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """How a family calls functions.

    begins: what opens a section of calls, anywhere in the answer. bare: what opens one only at the very beginning,
    since it may begin an ordinary answer as well. fingerprint: texts that all stand in the family's chat templates.
    interrupts: a call ends the reasoning that was not closed. call_id: where the templates refuse ids that are not of
    their own kind, makes one for a call of an earlier turn.
    """

    name: str
    begins: Sequence[str]
    syntax: Syntax
    fingerprint: Sequence[Sequence[str]]  # one of these sets is enough
    bare: Sequence[str] = ()
    call_id: CallId | None = None
    interrupts: bool = False
    aliases: Sequence[str] = ()  # other servers' names of it
    written: Written | None = None  # None: its arguments are no JSON


@dataclass(frozen=True)
class ThinkFormat:
    """How a family marks its reasoning.

    begin and end: one of `ends` is enough. dropped: markers around the answer that are no part of it. anywhere:
    reasoning may begin behind text as well. channels: Harmony, whose messages say in their head what they are. forced:
    what is written in the model's place to end its reasoning; by default `end` between lines.
    """

    name: str
    begin: str
    end: str
    fingerprint: Sequence[Sequence[str]]
    dropped: Sequence[str] = ()
    anywhere: bool = False
    channels: bool = False
    aliases: Sequence[str] = ()
    forced: str = ""

    @property
    def closing(self) -> str:
        """What ends reasoning by force."""
        return self.forced or f"\n{self.end}\n\n"
