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
    delimiter = b"--" + found[1].encode("latin-1")
    pieces = (b"\r\n" + body).split(b"\r\n" + delimiter, MAX_PARTS + 2)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest(f"The multipart body is cut off, or has more than {MAX_PARTS} parts.")
    made = {}
    for piece in pieces[1:-1]:
        head, separator, data = piece.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not separator or name is None:
            raise InvalidRequest("A part of the multipart body has no name.")
        made[name[1].decode("utf-8", "replace")] = Part(data, _filename(head))
    return made


def _filename(head: bytes) -> str | None:
    from urllib.parse import unquote_to_bytes

    extended, plain = _EXTENDED.search(head), _FILENAME.search(head)
    if extended is None and plain is None:
        return None
    raw = unquote_to_bytes(extended[1]) if extended is not None else plain[1] if plain is not None else b""
    return re.split(r"[/\\]", raw.decode("utf-8", "replace"))[-1][:255] or "file"
