"""The front's half of the engine: submit, receive, abort; the same over a thread of this process and over a socket.

It drops words of dead engines, and treats a gap as the death of the engine. Where a supervisor attaches the next one,
open requests (open_requests.py) are told to it as they stand and go on. It knows ids, never text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from octavo import logs
from octavo.engine.messages import (
    VERSION,
    Abort,
    Answer,
    Ask,
    BrokenMessage,
    ChoiceOutput,
    Dead,
    EngineInfo,
    EngineMessage,
    EngineStats,
    FrontMessage,
    Hello,
    Outputs,
    Refused,
    Shutdown,
    Submit,
    Tokens,
    unpack_who,
)
from octavo.engine.open_requests import Loss, OpenRequests
from octavo.engine.stream import Stream
from octavo.errors import (
    ContextLengthExceeded,
    EngineDied,
    InvalidRequest,
    OctavoError,
    Unavailable,
)
from octavo.flow import items
from octavo.request import Request

if TYPE_CHECKING:
    from octavo.engine.core import EngineSetup

ANSWER_SECONDS = 10.0  # a question waits for the end of a step at most; beyond, the engine is not well


class Link(Protocol):
    """transport.SocketLink or in_process.ThreadLink."""

    def start(self, received: Callable[[EngineMessage], None], ended: Callable[[str], None]) -> None:
        """Deliver messages from now on."""

    def post(self, message: FrontMessage) -> None:
        """Send without waiting."""

    async def send(self, message: FrontMessage) -> None:
        """Send, with back-pressure."""

    async def close(self) -> None:
        """End the connection."""


class EngineClient:
    """An engine as the front sees it. One event loop uses it."""

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._link: Link | None = None
        self._epoch = 0
        self._requests = OpenRequests()
        self._waiting = False  # somebody may run whom the engine does not know
        self._sending: asyncio.Task[None] | None = None
        self.restarts = 0  # engines after the first
        self._questions: dict[int, asyncio.Future[EngineStats]] = {}
        self._number = 0
        self._draining = False
        self._failed: OctavoError | None = None
        self._lost: Callable[[str], None] | None = None
        self._who = b""  # of the last message in columns
        self._rows: list[tuple[str, int]] = []  # what that says

    @classmethod
    async def in_process(cls, setup: EngineSetup) -> EngineClient:
        """An engine in a thread of this process."""
        from octavo.engine.in_process import ThreadLink  # the engine's side: a front over a socket never imports it

        client, link = cls(), ThreadLink(setup)
        client.attach(link, link.hello)
        return client

    def attach(self, link: Link, hello: Hello, lost: Callable[[str], None] | None = None) -> None:
        """Use this engine, which has said hello, from now on, for the open requests first. lost: called with the reason
        when it is not to be used any more."""
        if hello.version != VERSION:
            raise EngineDied(f"The engine speaks version {hello.version} of the messages, the front {VERSION}.")
        if self._info is not None and hello.info.fingerprint != self._info.fingerprint:
            for stream in list(self._requests.streams.values()):
                if stream.begun:
                    stream.fail(
                        EngineDied("The next engine computes other numbers than the one that died.", begun=True)
                    )
        self.restarts += self._info is not None
        self._link, self._epoch, self._info, self._lost = link, hello.epoch, hello.info, lost
        self._requests.new_engine()
        link.start(self._received, lambda reason: self._connection_ended(hello.epoch, reason))
        self._send_waiting()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise Unavailable("The engine has not started yet.")
        return self._info

    @property
    def ready(self) -> bool:
        """An engine is attached and has said hello, and new requests are taken."""
        return self._link is not None and self._failed is None and not self._draining

    @property
    def open_requests(self) -> int:
        return len(self._requests.streams)

    @property
    def resumed(self) -> int:
        """How many requests a later engine has taken over."""
        return self._requests.resumed

    # Requests

    def open(self, request: Request, patient: bool = False) -> Stream:
        """A request to be run: a Flow of what is new. Closing it early aborts the request. patient: it waits for the
        next engine where there is none, because it is part of something that has begun."""
        return Stream(self, request, patient)

    def submit(self, request: Request, patient: bool = False) -> AsyncGenerator[list[ChoiceOutput], None]:
        """The same, waited for."""
        return items(self.open(request, patient))

    async def begin(self, stream: Stream) -> None:
        """Send a stream's request to the engine; outputs go to the stream from now on."""
        self._admit(stream.request, stream.patient)
        await self._send(self._requests.add(stream))

    def begin_anew(self, name: str) -> None:
        """The engine forgets a stream, and is told of it as it stands now; that is not waited for."""
        self.post_abort(name)
        self._requests.rename(name)
        self._send_waiting()

    def end(self, name: str, *, abort: bool) -> None:
        """Forget a stream; the engine is told if it does not know that it is over."""
        if abort:
            self.post_abort(name)
        if self._requests.remove(name):
            self._send_waiting()

    def post_abort(self, name: str, choice: int | None = None, kept: int | None = None) -> None:
        if self._requests.known(name):
            self._post(Abort(self._epoch, name, choice, kept))

    def _admit(self, request: Request, patient: bool) -> None:
        """Raises why this request is not taken."""
        if self._failed is not None:
            raise self._failed
        if self._draining and not patient:
            raise Unavailable("The server is shutting down.", retry_after=10.0)
        if self._link is None and not patient:
            raise Unavailable("The engine is being restarted.", retry_after=2.0)
        if len(request.prompt_ids) > self.info.longest_prompt:
            raise ContextLengthExceeded(self.info.max_model_len, len(request.prompt_ids), param="prompt")
        self._requests.check(request)

    async def _send(self, name: str) -> None:
        """Tell the engine of a request, if it is there and the request may run."""
        link = self._link
        if link is None or (taken := self._requests.take(name)) is None:
            return
        stream, again = taken
        try:
            await link.send(Submit(self._epoch, stream.for_engine(name), again))
        except (UnicodeEncodeError, BrokenMessage) as error:
            stream.fail(InvalidRequest(f"The request cannot be sent to the engine: {error}."))

    def _send_waiting(self) -> None:
        """Tell the engine of every request that may run and that it does not know, without waiting."""
        self._waiting = True
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send_all(), name="octavo-resume")

    async def _send_all(self) -> None:
        while self._waiting:
            self._waiting = False
            for name in list(self._requests.streams):
                await self._send(name)

    async def abort(self, request_id: str, choice: int | None = None, kept: int | None = None) -> None:
        """End a request, or one choice. kept: how many of its ids the front kept. Unknown ids are no error."""
        name = self._requests.name_of(request_id)
        if name is None:
            return
        stream = self._requests.streams[name]
        if self._requests.known(name) and self._link is not None:
            self.post_abort(name, choice, kept)
            stream.aborted.append(choice)
        else:
            stream.end(choice)

    # Questions

    async def stats(self) -> EngineStats:
        """Gauges and totals. Unavailable if the engine does not answer."""
        return await self._ask("stats")

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running requests go on."""
        await self._ask("reset_prefix_cache")

    async def _ask(self, what: str) -> EngineStats:
        if self._link is None:
            raise self._failed or Unavailable("The engine is being restarted.", retry_after=2.0)
        self._number += 1
        number = self._number
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self._post(Ask(self._epoch, number, what))
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            raise Unavailable(f"The engine did not answer within {ANSWER_SECONDS:.0f} seconds.") from None
        finally:
            del self._questions[number]

    # The end

    async def drain(self) -> None:
        """Take no new requests; returns when the open ones are done."""
        self._draining = True
        await self._requests.idle.wait()

    async def close(self) -> None:
        """Abort what is open and let go of the engine."""
        self._draining = True
        link, self._link = self._link, None
        self._requests.fail(Unavailable("The server is shutting down."))
        if link is not None:
            link.post(Shutdown(self._epoch))
            await link.close()

    async def lose(self, members: Sequence[int] = (), ahead: int = 1) -> Loss:
        """The engine is gone. What is open goes on with the one that is attached next; whoever asks something meanwhile
        gets Unavailable. members: digests of its last step; ahead: ids that this might have given to each."""
        link, self._link = self._link, None
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(Unavailable("The engine is being restarted.", retry_after=2.0))
        loss = self._requests.lose(members, ahead)
        if link is not None:
            await link.close()
        return loss

    def give_up(self, error: OctavoError) -> None:
        """There will be no other engine: every request from now on gets `error`, and the open ones do."""
        self._failed = error
        self._requests.fail(error)

    # What the engine says

    def _post(self, message: FrontMessage) -> None:
        if self._link is not None:
            self._link.post(message)

    def _connection_ended(self, epoch: int, reason: str) -> None:
        if epoch == self._epoch and self._link is not None:
            self._engine_ended(reason)

    def _engine_ended(self, reason: str) -> None:
        if self._lost is not None:
            self._lost(reason)
        else:  # nobody restarts it
            self._link = None
            for stream in list(self._requests.streams.values()):
                stream.fail(EngineDied(f"The engine died: {reason}.", begun=stream.begun))
            self.give_up(EngineDied(f"The engine died: {reason}."))

    def _received(self, message: EngineMessage) -> None:
        if message.epoch != self._epoch:
            logs.get("client").warning("a message of epoch %d is dropped", message.epoch)
        elif isinstance(message, Tokens):
            self._push(self._items(message))
        elif isinstance(message, Outputs):
            self._push(message.items)
        elif isinstance(message, Refused):
            stream = self._requests.streams.get(message.request)
            if stream is not None:
                stream.fail(message.error.error())
        elif isinstance(message, Answer):
            answer = self._questions.get(message.number)
            if answer is not None and not answer.done():
                answer.set_result(message.stats)
        elif isinstance(message, Dead):
            self._connection_ended(message.epoch, f"{message.reason}\n{message.trace}".strip())

    def _items(self, message: Tokens) -> list[ChoiceOutput]:
        if message.who != self._who:
            self._who, self._rows = message.who, unpack_who(message.who)
        rows, ids, count = self._rows, message.ids, len(self._rows)
        if len(message.indices) != count or len(ids) % max(1, count):
            raise BrokenMessage(f"{len(message.indices)} indices and {len(ids)} ids for {count} rows")
        return [
            ChoiceOutput(name, choice, index, ids[at::count])
            for at, ((name, choice), index) in enumerate(zip(rows, message.indices, strict=True))
        ]

    def _push(self, items: list[ChoiceOutput]) -> None:
        gap = self._requests.push(items)
        if gap is not None:
            self._epoch = -1  # nothing that it says counts any more
            self._engine_ended(str(gap))
        if self._requests.settled():
            self._send_waiting()
