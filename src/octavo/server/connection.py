"""One HTTP connection: bounds of what comes before there is a request, and errors in the shape of the API.

uvicorn's protocol over httptools with four changes: the head of a request has a size and a time limit, what is no HTTP
is answered with our body, and a stream may write its pieces directly. It knows bytes only.
"""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from octavo.errors import InvalidRequest, OctavoError

MAX_HEAD = 64 << 10  # bytes of request line and headers
MAX_HEADERS = 256
HEAD_SECONDS = 20.0  # from the connection, or the first byte of a later request, to the end of the headers


BODY = "octavo.body"  # the ASGI extension whose `writer` is a Body


class Body:
    """The body of a streamed answer, written without a coroutine: ASGI's `send` and its middleware cost 3 us a piece.

    It begins and ends with `send`; a piece between goes out as one chunk, and `send` never has one half written.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def write(self, data: bytes) -> bool:
        """Send a piece, not empty. False if it was not sent: the client is gone or does not take what is written, and
        the piece must wait in `send`."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class Connection(HttpToolsProtocol):
    """What uvicorn is given as its http protocol."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio's own stubs say BaseTransport
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD and not self._refused:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:  # a later request of the connection
            self._in_head, self._head_bytes = True, 1  # at least one byte has come
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self._refuse(_head_too_large())
            return
        self._in_head = False
        self._cancel_deadline()
        super().on_headers_complete()  # makes the cycle, and a task that begins later
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.scope["extensions"] = {BODY: {"writer": Body(self.cycle)}}

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in our shape."""
        if not self._refused:
            self._refuse(InvalidRequest(msg))

    def _too_slow(self) -> None:
        if self._head_bytes:
            message = f"The request's head did not arrive within {HEAD_SECONDS:.0f} seconds."
            self._refuse(OctavoError(message, status=408, type="invalid_request_error"))
        else:
            self.transport.close()

    def _refuse(self, error: OctavoError) -> None:
        """Answer and close; nothing more of this connection is read. While an earlier request is being answered there
        is no place for these words: the connection just ends."""
        self._refused = True
        self._cancel_deadline()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (self._in_head or cycle.response_started):
            self.transport.close()
            return
        body = msgspec.json.encode(error.to_openai())
        self.transport.write(
            STATUS_LINE[error.status]
            + b"content-type: application/json\r\nconnection: close\r\nx-request-id: %s\r\n" % token_hex(12).encode()
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _head_too_large() -> OctavoError:
    return OctavoError(
        f"The request line and headers are larger than {MAX_HEAD >> 10} KiB or more than {MAX_HEADERS} lines.",
        status=431, type="invalid_request_error", code="header_fields_too_large",
    )  # fmt: skip
