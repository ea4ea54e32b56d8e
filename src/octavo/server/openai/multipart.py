"""A multipart/form-data body -> its fields and its file. Bodies are small (limits.py), so one is taken apart whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo.errors import InvalidRequest

MAX_PARTS = 32
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILENAME = re.compile(rb';\s*filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_EXTENDED = re.compile(rb";\s*filename\*=utf-8''([^;\r\n]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """filename: None for a field."""

    data: bytes
    filename: str | None = None


def parts_of(body: bytes, content_type: str) -> dict[str, Part]:
    """name -> its part, of a name that is given twice the last. InvalidRequest for what is no multipart body."""
    found = _BOUNDARY.search(content_type)
    if "multipart/form-data" not in content_type.lower() or found is None:
        raise InvalidRequest("The body must be multipart/form-data, with a file.", param="file")
    bounds = _bounds(body, b"\r\n--" + found[1].encode("latin-1"))
    if len(bounds) < 2 or not body.startswith(b"--", bounds[-1][0]):
        raise InvalidRequest(f"The multipart body is cut off, or has more than {MAX_PARTS} parts.")
    made = {}
    for start, end in bounds[:-1]:
        begin = body.find(b"\r\n\r\n", start, end)
        head = body[start : max(begin, start)]
        name = _NAME.search(head)
        if name is None:
            raise InvalidRequest("A part of the multipart body has no name.")
        made[name[1].decode("utf-8", "replace")] = Part(body[begin + 4 : end], _filename(head))
    return made


def _bounds(body: bytes, separator: bytes) -> list[tuple[int, int]]:
    """Where each piece behind a separator begins and ends, as far as there may be parts. Nothing is copied: copies of
    large files keep the interpreter to themselves."""
    made: list[tuple[int, int]] = []
    at = -2 if body.startswith(separator[2:]) else body.find(separator)  # before the first one a line end may lack
    while (at >= 0 or at == -2) and len(made) < MAX_PARTS + 2:
        start = at + len(separator)
        at = body.find(separator, start)
        made.append((start, len(body) if at < 0 else at))
    return made


def _filename(head: bytes) -> str | None:
    from urllib.parse import unquote_to_bytes

    extended, plain = _EXTENDED.search(head), _FILENAME.search(head)
    if extended is None and plain is None:
        return None
    raw = unquote_to_bytes(extended[1]) if extended is not None else plain[1] if plain is not None else b""
    return re.split(r"[/\\]", raw.decode("utf-8", "replace"))[-1][:255] or "file"
