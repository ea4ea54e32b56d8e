"""A streamed answer of any dialect: a Flow of bytes over the events of an Answering.

What comes at once goes out at once. It knows no format: a dialect gives the functions that write pieces.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from octavo.server.auth import caller
from octavo.server.conversation import answer_headers
from octavo.server.dialect import Dialect
from octavo.server.sse import EventStream
from octavo.server.submit import Answering, Front
from octavo.text.events import Event


class Translated:
    """pieces: (number of the prompt, its new events) -> bytes. last: what stands behind everything."""

    def __init__(
        self, answering: Answering, pieces: Callable[[int, list[Event]], list[bytes]], last: Callable[[], bytes]
    ) -> None:
        self._answering = answering
        self._pieces = pieces
        self._last = last

    @property
    def done(self) -> bool:
        return self._answering.done

    async def start(self, news: Callable[[], None]) -> None:
        await self._answering.start(news)

    def take(self) -> bytes | None:
        batch = self._answering.take()
        if batch is None:
            return None
        made = [piece for prompt, events in batch for piece in self._pieces(prompt, events)]
        if self._answering.done:
            made.append(self._last())
        return b"".join(made)

    def close(self) -> None:
        self._answering.close()

    def pause(self) -> None:
        self._answering.pause()

    def stream(
        self, front: Front, request: Request, id_: str, idle: Callable[[], bytes], dialect: Dialect
    ) -> EventStream:
        """The response, as events that may be taken up again under the answer's id (kept.py)."""
        headers = answer_headers(front, self._answering)
        reader, idle = front.kept.read(id_, self, caller(request.scope), idle)
        return EventStream(reader, headers, front.config.sse_ping_interval, idle, dialect)
