"""Streams whose client lost its connection, kept for a while: GET /v1/stream/{id}?from=N takes one up again.

What was sent stays in a bounded record. When a client goes, the engine gives back at once what it holds of the
request; whoever comes back with the same key gets the events after those it has seen, and then the rest of the very
answer, with which the engine goes on as after its own death. Comments are no events. It moves bytes of a format whose
events end with an empty line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from octavo.errors import InvalidRequest, NotFound
from octavo.flow import Flow
from octavo.server.sse import ClientGone

MOST_BYTES = 1 << 20  # of an answer's end that are kept: some 4,000 tokens
Place = tuple[bytes, str]  # whose an answer is, and the id that stands in it: ids may be the clients' own
MOST_LEFT = 256  # answers without a client; the oldest are let go


class Source(Flow[bytes], Protocol):
    """A streamed answer that can be left and gone on with."""

    def pause(self) -> None:
        """Give back what is held; start() goes on."""


class Answer:
    """One streamed answer: its record, and the reader that it has now."""

    def __init__(self, source: Source, idle: Callable[[], bytes], left: Callable[[Answer], None]) -> None:
        """idle: makes an event that says nothing. left: called when it has no reader any more."""
        self.source = source
        self._idle = idle
        self._left = left
        self._sent: deque[tuple[int, bytes]] = deque()  # (number of its events, bytes), the oldest first
        self._bytes = 0
        self._first = self._end = 0  # number of the first event that is kept, and of the next one
        self._reader: Reader | None = None
        self._error: Exception | None = None
        self._running = False

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.source.done or self._error is not None

    def reader(self, seen: int) -> Reader:
        """A reader from this event on; another one that is there loses it. InvalidRequest if that cannot be had."""
        if not self._first <= seen <= self._end:
            raise InvalidRequest(
                f"from must be {self._first} to {self._end}: the events of this answer that are kept, got {seen}.",
                param="from",
            )
        previous, self._reader = self._reader, Reader(self, self._since(seen))
        if previous is not None:
            previous.news()
        return self._reader

    def idle(self) -> bytes:
        """An event that says nothing."""
        return self._record(self._idle())

    def _record(self, data: bytes) -> bytes:
        """These bytes go to the client."""
        events = data.count(b"\n\n")
        self._sent.append((events, data))
        self._end += events
        self._bytes += len(data)
        while self._bytes > MOST_BYTES and len(self._sent) > 1:
            events, old = self._sent.popleft()
            self._first += events
            self._bytes -= len(old)
        return data

    def close(self) -> None:
        """Nobody takes it up any more."""
        self._sent.clear()
        self.source.close()

    # What a reader does

    def has(self, reader: Reader) -> bool:
        """Whether it is still its reader."""
        return self._reader is reader

    async def start(self) -> None:
        """Go on, if it does not."""
        if not (self._running or self.over):
            self._running = True
            try:
                await self.source.start(self._news)
            except Exception as error:
                self._error = error
                raise

    def take(self) -> bytes | None:
        if self._error is not None:
            raise self._error
        try:
            data = self.source.take()
        except Exception as error:
            self._error = error
            raise
        return self._record(data) if data else None

    def leave(self) -> None:
        """Its reader is gone."""
        self._reader = None
        if self._running and not self.over:
            self.source.pause()
        self._running = False
        self._left(self)

    @property
    def began(self) -> bool:
        """A client may know of it."""
        return self._end > 0

    def _news(self) -> None:
        if self._reader is not None:
            self._reader.news()

    def _since(self, seen: int) -> bytes:
        events = b"".join(data for _, data in self._sent).split(b"\n\n")[seen - self._first : -1]
        return b"".join(event + b"\n\n" for event in events)


class Reader:
    """One connection's view of an answer, as a Flow of bytes."""

    def __init__(self, answer: Answer, missed: bytes) -> None:
        self._answer = answer
        self._missed = missed  # what was sent before, and not seen
        self.news: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        return not self._missed and self._answer.source.done

    async def start(self, news: Callable[[], None]) -> None:
        self.news = news
        await self._answer.start()
        news()

    def take(self) -> bytes | None:
        if not self._answer.has(self):
            raise ClientGone  # it came back over another connection
        if self._missed:
            missed, self._missed = self._missed, b""
            return missed
        return self._answer.take()

    def close(self) -> None:
        if self._answer.has(self):
            self._answer.leave()


class Kept:
    """The answers of a server that may be taken up again, by the id that stands in them."""

    def __init__(self, grace: float) -> None:
        """grace: seconds for which an answer without a client is kept; 0: none is."""
        self.grace = grace
        self._answers: dict[Place, Answer] = {}
        self._leaving: dict[Place, asyncio.TimerHandle] = {}  # those without a client, the oldest first

    def read(
        self, id_: str, source: Source, caller: bytes, idle: Callable[[], bytes]
    ) -> tuple[Flow[bytes], Callable[[], bytes]]:
        """A new answer as its client reads it, and what makes an event that says nothing."""
        if not self.grace:
            return source, idle
        place = caller, id_
        self._drop(place)  # a client may use an id of its own again
        answer = self._answers[place] = Answer(source, idle, lambda answer: self._left(place, answer))
        return answer.reader(0), answer.idle

    def take_up(self, id_: str, seen: int, caller: bytes) -> tuple[Flow[bytes], Callable[[], bytes]]:
        """The same for a client that has seen so many events. NotFound unless it is its own and still kept."""
        answer = self._answers.get((caller, id_))
        if answer is None:
            raise NotFound(
                f"There is no stream {id_[:100]!r} to take up: it never was, has another key, or lost its client more "
                f"than {self.grace:.0f} seconds ago (--stream-grace).",
                code="stream_not_found",
            )
        reader = answer.reader(seen)
        timer = self._leaving.pop((caller, id_), None)
        if timer is not None:
            timer.cancel()
        return reader, answer.idle

    def _left(self, place: Place, answer: Answer) -> None:
        if self._answers.get(place) is not answer:  # another one has its id now
            answer.close()
        elif not answer.began:
            self._drop(place)
            answer.close()
        else:
            if answer.over:
                answer.source.close()  # as far as it is counted; what was sent is kept
            self._leaving[place] = asyncio.get_running_loop().call_later(self.grace, self._drop, place)
            if len(self._leaving) > MOST_LEFT:
                self._drop(next(iter(self._leaving)))

    def _drop(self, place: Place) -> None:
        """Nobody can take this one up any more; it goes on only for a client that reads it now."""
        answer, timer = self._answers.pop(place, None), self._leaving.pop(place, None)
        if timer is not None and answer is not None:
            timer.cancel()
            answer.close()
