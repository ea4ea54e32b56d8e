"""Every limit of a request, before any work: size of its body, encodings, depth, counts, time to send it.

It knows bytes and JSON values, no dialect. What a connection may send before there is a request stands in
connection.py.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from octavo.errors import InvalidRequest, OctavoError

MAX_BODY = 16 << 20  # bytes, decoded: a prompt of 10^6 ids takes about 7 MiB as JSON
BODY_SECONDS = 60.0  # to send a body
MAX_DEPTH = 64  # of JSON values that are passed on as they are (messages, chat_template_kwargs)
MAX_CONTAINERS = 100_000  # lists and objects of a body: a million take the event loop half a second to read
MAX_VALUES = 2_000_000  # of a body; a prompt may have as many ids
MAX_NESTED = 200_000  # values of what is passed on
MAX_MESSAGES = 8192
MAX_PROMPTS = 1024  # of one /v1/completions
MAX_ANSWERS = 1024  # prompts x n of one request: the default bound of the engine's queue
_MAX_ID = 128  # characters of an id that a client gives
_CHUNK = 1 << 18  # bytes that are looked at together
_WINDOW = 16 + zlib.MAX_WBITS  # zlib's way to say "gzip"


class TooLarge(OctavoError):
    """A body beyond MAX_BODY, as sent or decoded."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class UnsupportedEncoding(OctavoError):
    """A Content-Encoding that is not decoded."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class SlowClient(OctavoError):
    """A body that did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


async def read_body(stream: AsyncIterator[bytes], headers: Mapping[str, str], limit: int = MAX_BODY) -> bytes:
    """The decoded body. Raises TooLarge, UnsupportedEncoding or SlowClient; never holds more than about 2 x limit."""
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limit:
        raise _too_large(limit)
    inflate = _decoder(headers.get("content-encoding", "").strip().lower())
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in stream:
                data = chunk if inflate is None else _inflated(inflate, chunk, limit - size)
                size += len(data)
                if size > limit:
                    raise _too_large(limit)
                parts.append(data)
    except TimeoutError:
        raise SlowClient(f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
    if inflate is not None and size and not inflate.eof:
        raise InvalidRequest("The compressed body ends too early.")
    return b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit >> 20} MiB.")


def _decoder(encoding: str) -> Any:
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(_WINDOW)
    if encoding == "deflate":
        return zlib.decompressobj()
    raise UnsupportedEncoding(f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, deflate or none.")


def _inflated(inflate: Any, chunk: bytes, left: int) -> bytes:
    try:
        data: bytes = inflate.decompress(chunk, left + 1)  # one byte over tells that there is more
    except zlib.error as error:
        raise InvalidRequest(f"The compressed body is broken: {error}.") from None
    return data


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """A body as its struct; InvalidRequest names the field. Of a key that is given twice the last value counts."""
    _check_values(body)
    try:
        return decoder.decode(body or b"null")
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        where = f"{param}: " if param else ""
        raise InvalidRequest(f"{where}{message[:1].lower()}{message[1:]}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {str(error)[:200]}.") from None
    except RecursionError:
        raise InvalidRequest(f"The body is nested too deeply; {MAX_DEPTH} levels are accepted.") from None


def _check_values(body: bytes) -> None:
    """InvalidRequest for more values than are read. Reading holds up everybody: it cannot be left to a thread."""
    if body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS and body.count(b",") <= MAX_VALUES:
        return  # whatever stands inside of texts
    containers, commas = _outside_texts(body)
    if containers > MAX_CONTAINERS:
        raise InvalidRequest(f"The body has more than {MAX_CONTAINERS} lists and objects.")
    if commas > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")


def _outside_texts(body: bytes) -> tuple[int, int]:
    """How many lists and objects begin in a JSON text, and its commas, those inside of strings left out; not all of
    them, once they are too many."""
    import numpy as np  # for large bodies alone

    data = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    containers = commas = 0
    inside = np.bool_(False)
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        within = np.logical_xor.accumulate(chunk == ord('"')) ^ inside
        inside = within[-1]
        outside = chunk[~within]
        containers += int(np.count_nonzero((outside == ord("[")) | (outside == ord("{"))))
        commas += int(np.count_nonzero(outside == ord(",")))
        if containers > MAX_CONTAINERS or commas > MAX_VALUES:
            break
    return containers, commas


def check_depth(value: Any, name: str) -> None:
    """InvalidRequest if lists and objects are nested deeper than MAX_DEPTH, or have too many values."""
    level, seen = [value], 0
    for _ in range(MAX_DEPTH):
        nested: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                nested += each.values()
            elif isinstance(each, list):
                nested += each
            if seen + len(nested) > MAX_NESTED:
                raise InvalidRequest(f"{name} has more than {MAX_NESTED} values.", param=name)
        seen += len(nested)
        level = [each for each in nested if isinstance(each, dict | list)]
        if not level:
            return
    raise InvalidRequest(f"{name} is nested too deeply; {MAX_DEPTH} levels are accepted.", param=name)


def check_text(value: str | None, name: str, most: int = _MAX_ID) -> None:
    """InvalidRequest if a short text (an id, a salt) is longer than `most` characters or is no text."""
    if value is None:
        return
    if len(value) > most:
        raise InvalidRequest(f"{name} has {len(value)} characters; at most {most} are accepted.", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} is not valid Unicode.", param=name) from None


def check_count(count: int, most: int, name: str, what: str) -> None:
    """InvalidRequest if there are more than `most` of something."""
    if count > most:
        raise InvalidRequest(f"{name}: {count} {what}; at most {most} are accepted.", param=name)
