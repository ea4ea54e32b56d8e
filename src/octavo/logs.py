"""Log lines: one event, one line, whatever a client put into it.

`INFO 11-23 18:13:48 [engine] Ready: …`, or one JSON object a line. Control characters (CR, LF, ANSI, Unicode line ends
and direction marks) are escaped and long messages cut, so that no line can be forged. It knows the logging module of
the standard library and no part of octavo.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TextIO

MESSAGE_LIMIT = 4_000  # characters of one message, so that a 1 MiB id costs one screen
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


_REQUEST: ContextVar[str | None] = ContextVar("request", default=None)


def enter(request_id: str) -> None:
    """Lines of the running task, and of those that it makes, are about this request from now on."""
    _REQUEST.set(request_id)


def get(part: str) -> logging.Logger:
    """The logger of a part (`engine`, `server`, …), which stands in brackets in its lines."""
    return logging.getLogger(f"octavo.{part}")


def escape(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """`text` on one line of at most `limit` characters and a note of how many were cut; control characters escaped."""
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():  # false for Cc, Cf, Cs, Co, Cn, Zl, Zp and spaces other than ' '
        text = "".join(c if c.isprintable() else _ESCAPES.get(c) or _code(c) for c in text)
    return f"{text}… ({cut} more characters)" if cut > 0 else text


def _code(c: str) -> str:
    point = ord(c)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix("octavo.")


def _trace(record: logging.LogRecord) -> str:
    """The exception of a record, as text of several lines, or nothing."""
    return "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""


class LineFormatter(logging.Formatter):
    """`LEVEL MM-DD HH:MM:SS [part] message`; the lines of a traceback follow only at level debug, indented."""

    def __init__(self, traces: bool = False) -> None:
        super().__init__()
        self.traces = traces

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{record.levelname} {stamp} [{_part(record)}] {escape(record.getMessage())}"
        if trace := _trace(record):
            last = escape(trace.rstrip().rsplit("\n", 1)[-1], 500)
            line += f" ({last})"
            if self.traces:
                line += "".join(f"\n    {escape(each, 500)}" for each in trace.rstrip().split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: ts (seconds since 1970), level, part, msg; request_id and trace where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, object] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "part": _part(record),
            "msg": escape(record.getMessage()),
        }
        if request := getattr(record, "request_id", None) or _REQUEST.get():
            row["request_id"] = escape(str(request), 200)
        if trace := _trace(record):
            row["trace"] = trace[-MESSAGE_LIMIT:]
        return json.dumps(row)


def say(line: str) -> None:
    """A line for people on standard error; where lines are JSON, one of those."""
    if _set_up.json_lines:
        get("server").info("%s", line.strip())
    else:
        print(line, file=sys.stderr, flush=True)


def json_lines() -> bool:
    """Whether standard error has JSON lines alone."""
    return _set_up.json_lines


@dataclass
class _SetUp:
    """What set_up was told."""

    json_lines: bool = False


_set_up = _SetUp()


def set_up(level: str = "info", *, json_lines: bool = False, stream: TextIO | None = None) -> None:
    """Send the lines of octavo, uvicorn and warnings at `level` or above to `stream` (stderr). Once per process."""
    _set_up.json_lines = json_lines
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else LineFormatter(traces=level == "debug"))
    logging.captureWarnings(True)
    for name in ("octavo", "uvicorn", "opentelemetry", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
