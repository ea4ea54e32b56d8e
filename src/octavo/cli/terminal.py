"""What people see beside results: errors in three parts, bars, sizes. All of it goes to standard error.

A bar is one line that is written over on a terminal, and a line every five seconds elsewhere. It knows no command and
imports nothing that costs time.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from octavo.errors import OctavoError

LINE_SECONDS = 5.0  # between two lines of progress where bars would not be seen
DRAW_SECONDS = 0.1
BAR_WIDTH = 30
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def say(text: str = "") -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def explain(error: OctavoError) -> str:
    """`error: what`, then the rest of the message indented, then the exit code."""
    first, *rest = error.message.rstrip().split("\n")
    lines = [f"error: {first}", *(f"  {line.strip() if not line.startswith('  ') else line[2:]}" for line in rest)]
    return "\n".join(lines) + f"  [exit {error.exit_code}]"


def size(nbytes: float) -> str:
    """Bytes in binary units: `97 MiB`, `19.9 GiB`."""
    if nbytes >= 1 << 30:
        return f"{nbytes / 2**30:,.1f} GiB"
    return f"{nbytes / 2**20:,.0f} MiB" if nbytes >= 1 << 20 else f"{nbytes / 2**10:,.0f} KiB"


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset(), between: str = "  ") -> list[str]:
    """Rows of words in aligned columns; those in `right` end at the same place."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        between.join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def ruled(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """A table in Markdown that is aligned in the terminal too; the first row is its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = [f"{'-' * (width - 1)}{':' if i in right else '-'}" for i, width in enumerate(widths)]
    return [f"| {line} |" for line in columns([rows[0], rule, *rows[1:]], right, " | ")]


class LogLines(io.TextIOBase):
    """A stream whose lines become lines of the log."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        from octavo import logs

        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            logs.say(line)
        return len(text)


class Progress:
    """Shows the progress of one wait after another; `report` has the shape that downloads and loads call."""

    def __init__(self, plain: bool = False, stream: TextIO | io.TextIOBase | None = None, counted: str = "") -> None:
        """counted: what is counted ("requests"), where it is not bytes."""
        self._stream = stream or sys.stderr
        self._counted = counted
        self._bar = self._stream.isatty() and not plain
        self._what = ""
        self._begin = self._shown = 0.0
        self._open = False  # a bar stands on the line

    def report(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`: bytes, tensors where it is `load`. A total of 0 is not known."""
        now = time.monotonic()
        if what != self._what:
            self.close()
            self._what, self._begin = what, now
            self._shown = now if total and not self._bar else 0.0  # a short wait needs one line, not two
        complete = total > 0 and done >= total
        if now - self._shown < (DRAW_SECONDS if self._bar else LINE_SECONDS) and not complete:
            return
        self._shown = now
        line = self._line(done, total, now - self._begin)
        if self._bar:
            print(f"\r{line}\x1b[K", end="", file=self._stream, flush=True)
            self._open = True
        else:
            print(line, file=self._stream, flush=True)
        if complete:
            self.close()

    def close(self) -> None:
        """Leave the bar where it is and go to the next line."""
        if self._open:
            print(file=self._stream, flush=True)
        self._open = False
        self._what = ""

    def _line(self, done: int, total: int, seconds: float) -> str:
        if not total:
            return f"{self._what:9} …" if not done else f"{self._what:9} {size(done)}"
        filled = BAR_WIDTH * done // total
        drawn = f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} " if self._bar else ""
        left = f"{self._what:9} {drawn}{100 * done // total:3} %  "
        if self._what == "load":
            return f"{left}{total} tensors  {seconds:.1f} s"
        if self._counted:
            speed = done / seconds if seconds > 0.5 else 0.0
            ahead = f"  {speed:.1f}/s, {(total - done) / speed:,.0f} s left" if speed and done < total else ""
            return f"{left}{done:,} of {total:,} {self._counted}{ahead}"
        rate = f"  {size(done / seconds)}/s" if seconds > 0.5 else ""
        return f"{left}{size(done)} of {size(total)}{rate}"
