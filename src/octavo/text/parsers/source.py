"""A text that grows while it is read, by generators that wait (`yield`) where they need more of it.

What was read is let go of, so that a long answer costs no more than its length; `mark` keeps it until it is known
whether it will be needed again. It knows characters and literals, no format.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]  # waits for more text, gives T in the end
Write = Callable[[str], None]

_SPACE = re.compile(r"\s*")


class Markers:
    """Literal texts that are looked for at once. None begins another one."""

    __slots__ = ("_first", "_longest", "_prefixes", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = re.compile("|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True)))
        self._prefixes = frozenset(text[:end] for text in texts for end in range(1, len(text)))
        self._longest = max(map(len, texts))
        self._first = re.compile("[" + "".join(re.escape(text[0]) for text in texts) + "]")

    def could_begin(self, text: str, at: int) -> int:
        """Where the longest end of text[at:] starts that is the beginning of a marker; len(text) if there is none."""
        start = max(at, len(text) - self._longest + 1)
        while found := self._first.search(text, start):
            start = found.start()
            if text[start:] in self._prefixes:
                return start
            start += 1
        return len(text)


@functools.lru_cache(maxsize=256)
def markers_of(*texts: str) -> Markers:
    """The same ones for every answer."""
    return Markers(texts)


class Source:
    """The text and the place up to which it was read."""

    __slots__ = ("_base", "_kept", "_kept_from", "at", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0  # of the next character, in `text`
        self.ended = False  # nothing comes after `text`
        self._base = 0  # characters before `text`
        self._kept: list[str] | None = None  # what was read since the mark, but for text[_kept_from:at]
        self._kept_from = 0

    def push(self, text: str) -> None:
        """More text; what was read goes."""
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.at])
            self._kept_from = 0
        self._base += self.at
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def position(self) -> int:
        """Characters read in all."""
        return self._base + self.at

    def mark(self) -> None:
        """Keep what is read from here on."""
        self._kept, self._kept_from = [], self.at

    def since_mark(self) -> str:
        """What was read since the mark, which goes."""
        kept, self._kept = self._kept, None
        return "".join((*(kept or ()), self.text[self._kept_from : self.at])) if kept is not None else ""

    # -- reading -----------------------------------------------------------------------------------------------------

    def peek(self) -> Reading[str]:
        """The next character; empty at the end."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def starts(self, literal: str) -> Reading[bool]:
        """Whether `literal` comes next."""
        while True:
            have = self.text[self.at : self.at + len(literal)]
            if have == literal:
                return True
            if self.ended or not literal.startswith(have):
                return False
            yield

    def skip(self, literal: str) -> Reading[bool]:
        """Read `literal` if it comes next."""
        if not (yield from self.starts(literal)):
            return False
        self.at += len(literal)
        return True

    def skip_first(self, literals: Sequence[str]) -> Reading[str]:
        """Read the one that comes next; empty if none does."""
        for literal in literals:
            if (yield from self.skip(literal)):
                return literal
        return ""

    def skip_space(self) -> Reading[None]:
        """Read white space."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.ended:
                return
            yield

    def skip_space_into(self, write: Write) -> Reading[None]:
        """Read white space, and write it."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            if found.group():
                self.at = found.end()
                write(found.group())
            if self.at < len(self.text) or self.ended:
                return
            yield

    def rest(self, write: Write) -> Reading[None]:
        """Write all that comes."""
        while True:
            piece = self.text[self.at :]
            if piece:
                self.at = len(self.text)
                write(piece)
            if self.ended:
                return
            yield

    def until(self, markers: Markers, write: Write) -> Reading[str]:
        """Write what comes before the first marker, and read that one too; empty if the text ends before."""
        while True:
            found = markers.texts.search(self.text, self.at)
            start = self.at
            if found is not None:
                end = found.start()
            else:
                end = len(self.text) if self.ended else markers.could_begin(self.text, start)
            if end > start:
                self.at = end
                write(self.text[start:end])
            if found is not None:
                self.at = found.end()
                return found.group()
            if self.ended:
                return ""
            yield

    def short(self, markers: Markers, most: int) -> Reading[tuple[str, str] | None]:
        """(what comes before the first marker, the marker); None if that is more than `most` characters or the text
        ends before. Nothing is read then."""
        while True:
            found = markers.texts.search(self.text, self.at, self.at + most)
            if found is not None:
                before = self.text[self.at : found.start()]
                self.at = found.end()
                return before, found.group()
            if self.ended or len(self.text) - self.at >= most:
                return None
            yield

    def back(self, count: int) -> None:
        """Unread the last characters: only right after they were read."""
        self.at -= count
