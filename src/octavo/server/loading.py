"""What a server answers while its model loads: /live 200, all else 503 "Loading model" and when to ask again.

A protocol of its own, because the HTTP application is imported while the engine starts. It reads a request's head and
no body, and ends the connection after one answer.
"""

from __future__ import annotations

import asyncio
import http
from secrets import token_hex

import msgspec

from octavo.errors import Unavailable
from octavo.server.dialect import dialect_of

MAX_HEAD = 64 << 10  # bytes, as server/connection.py has it
HEAD_SECONDS = 20.0
LINGER_SECONDS = 2.0  # for a body that is still coming: closing before it is read would destroy the answer
RETRY_SECONDS = 1.0
LIVE = ("/live", "/v1/live")


class Loading(asyncio.Protocol):
    """One connection of the time before there is a model."""

    def __init__(self) -> None:
        self._head = b""
        self._answered = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio's own stubs say BaseTransport
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return  # a body, read and dropped
        self._head += data
        if b"\r\n\r\n" in self._head or len(self._head) > MAX_HEAD:
            self._answer()

    def _answer(self) -> None:
        assert self._transport is not None and self._timer is not None
        self._answered = True
        words = self._head.split(b"\r\n", 1)[0].split(b" ")
        path = words[1].partition(b"?")[0].rstrip(b"/").decode("latin-1") if len(words) == 3 else ""
        self._transport.write(answer(path))
        self._head = b""
        self._timer.cancel()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)


def answer(path: str) -> bytes:
    """The whole answer on the wire, an error in the shape of the path's dialect."""
    status, body, more = 200, b'{"status":"loading"}', ""
    if path not in LIVE:
        error = Unavailable("Loading model", retry_after=RETRY_SECONDS)
        status, told = dialect_of(path).said(error, token_hex(12))
        body, more = msgspec.json.encode(told), f"retry-after: {RETRY_SECONDS:.0f}\r\n"
    phrase = "OK" if status == 200 else http.HTTPStatus.SERVICE_UNAVAILABLE.phrase
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{more}connection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
