"""Events to a client: keep-alive comments, clients that left or do not read, errors in a stream that has begun.

It moves bytes that a dialect made; it knows neither tokens nor JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.types import Message, Receive, Scope, Send

from octavo import logs
from octavo.errors import OctavoError
from octavo.flow import Flow
from octavo.server.connection import BODY, Body
from octavo.server.dialect import OPENAI, Dialect

IDLE_SECONDS = 60.0  # some clients count chunks, not comments: LangChain gives up after 120 s without one
STALLED_SECONDS = 300.0  # a client that has not read for so long is gone
HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # a proxy must not collect chunks
}
log = logs.get("server")


class ClientGone(Exception):
    """The client closed the connection; nobody is there to be told."""


@contextlib.asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels what is inside when the client leaves, and raises ClientGone. The body must have been read before."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch(), name="octavo-disconnect")
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        watcher.cancel()


class EventStream:
    """An ASGI response of the bytes that `source` gives. It begins with the first of them, so that an error before it
    is an ordinary answer; after `ping` seconds of silence it begins with a comment.

    idle: makes a chunk of the dialect that says nothing, for clients that count chunks.
    """

    def __init__(
        self,
        source: Flow[bytes],
        headers: Mapping[str, str],
        ping: float,
        idle: Callable[[], bytes],
        dialect: Dialect = OPENAI,
    ) -> None:
        self._source = source
        told = {"content-type": dialect.content_type, **HEADERS, **headers}
        self._headers = [(k.encode(), v.encode("latin-1")) for k, v in told.items()]
        self._dialect = dialect
        self._ping = ping
        self._idle = idle
        self._begun = False
        self._writing_since: float | None = None
        self._last = self._last_chunk = 0.0  # seconds of the loop's clock
        self._clock: Callable[[], float] = time.monotonic
        self._send: Send | None = None
        self._body: Body | None = None
        self._news = asyncio.Event()
        self._asleep = False  # the task waits for news, so that pieces may go out without it
        self._unsent = b""  # a piece that could not
        self._failure: Exception | None = None  # what the source raised while the task slept
        self._silent = self._stalled = False  # what the timer found: a comment is due; the client does not read
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what ended `source` before the response began; ClientGone when nobody is left."""
        self._send = send
        self._body = scope.get("extensions", {}).get(BODY, {}).get("writer")
        self._clock = asyncio.get_running_loop().time
        self._last = self._last_chunk = self._clock()
        try:
            try:
                async with while_connected(receive), self._watched():
                    await self._source.start(self._came)
                    await self._pump()
            finally:
                self._source.close()
        except OctavoError as error:
            if not self._begun:
                raise
            await self._write(self._dialect.ending(error))
        except ClientGone:
            raise
        except Exception:
            if not self._begun:
                raise
            log.exception("a stream failed")
            await self._write(self._dialect.ending(OctavoError("The server failed; its log says why.")))
        await self._write(b"", last=True)

    async def _pump(self) -> None:
        """Write what comes while it cannot go out at once: the beginning, and what a slow client has waiting."""
        while True:
            self._news.clear()
            if self._failure is not None:
                raise self._failure
            data, self._unsent = self._unsent, b""
            if not data and self._source.done:
                return
            if data := data or self._source.take() or b"":
                self._silent = False
                await self._write(data)
                self._last_chunk = self._last
            elif self._silent:
                self._silent = False
                await self._keep_alive()
            elif not self._source.done:
                self._asleep = self._begun and self._body is not None
                await self._news.wait()
                self._asleep = False

    def _came(self) -> None:
        """News of the source. While the task sleeps and the client reads they go out here, without waking it."""
        if self._asleep:
            try:
                data = self._source.take()
            except Exception as error:
                self._failure = error
            else:
                if data:
                    assert self._body is not None
                    if self._body.write(data):
                        self._last = self._last_chunk = self._clock()
                    else:
                        self._unsent = data
                if not (self._unsent or self._source.done):
                    return
            self._asleep = False
        self._news.set()

    async def _write(self, data: bytes, last: bool = False) -> None:
        assert self._send is not None
        self._writing_since = self._last = self._clock()
        if not self._begun:
            self._begun = True
            start: Message = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self._writing_since = None

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """A timer looks after the stream, at a third of what a task of its own costs. ClientGone if nobody reads."""
        task = self._task = asyncio.current_task()
        assert task is not None
        self._look_again(self._clock() + (self._ping or STALLED_SECONDS))
        try:
            yield
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look_again(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        """The timer: wakes the task where a comment is due, ends it where a piece has waited too long."""
        now, interval = self._clock(), self._ping or STALLED_SECONDS
        if self._writing_since is not None:
            if now - self._writing_since > STALLED_SECONDS:
                self._stalled = True
                assert self._task is not None
                self._task.cancel()
                return
            self._look_again(now + interval)
        elif self._ping and now - self._last >= self._ping:
            self._silent, self._asleep = True, False
            self._news.set()
            self._look_again(now + interval)
        else:
            self._look_again(max(now + 0.05, self._last + interval))

    async def _keep_alive(self) -> None:
        if not self._dialect.ping or self._clock() - self._last_chunk >= IDLE_SECONDS:
            await self._write(self._idle())
            self._last_chunk = self._last
        else:
            await self._write(self._dialect.ping)
