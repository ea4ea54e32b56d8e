"""The front's half of the engine: submit, receive, abort; the same over a thread of this process and over a socket.

It drops words of dead engines, and treats a gap as the death of the engine. Where a supervisor attaches the next one,
open requests are told to it as they stand and go on; quarantine.py says which of them must wait. It knows ids, never
text.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from octavo import logs
from octavo.engine.flight_record import request_digest
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
from octavo.engine.quarantine import Quarantine
from octavo.engine.stream import Gap, Stream, asked
from octavo.errors import (
    ContextLengthExceeded,
    EngineDied,
    EngineKiller,
    InvalidRequest,
    OctavoError,
    Unavailable,
)
from octavo.flow import items
from octavo.request import Request

if TYPE_CHECKING:
    from octavo.engine.core import EngineSetup

ANSWER_SECONDS = 10.0  # a question waits for the end of a step at most; beyond, the engine is not well
MAX_KILLERS = 64  # requests that are known to end the engine: who repeats one is refused before it does


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


@dataclass(frozen=True)
class Loss:
    """What an engine's death means for the open requests. members: of its last step, those first that came first, each
    with what it had given. guilty: the one that is not run again. isolating: quarantine.Verdict."""

    members: tuple[tuple[Request, list[int]], ...] = ()
    guilty: str | None = None
    isolating: bool = False
    open: int = 0


class EngineClient:
    """An engine as the front sees it. One event loop uses it."""

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._link: Link | None = None
        self._epoch = 0
        self._streams: dict[str, Stream] = {}  # by the name that the engine knows a request by
        self._names: dict[str, str] = {}  # request id -> that name
        self._sent: set[str] = set()  # names that the present engine was told of
        self._waiting = False  # somebody may run whom the engine does not know
        self._sending: asyncio.Task[None] | None = None
        self._quarantine = Quarantine()
        self._owed = 1  # ids that clear a suspect
        self._killers: OrderedDict[bytes, None] = OrderedDict()  # what those requests asked, as a digest
        self.restarts = 0  # engines after the first
        self.resumed = 0  # requests that a later engine has taken over
        self._questions: dict[int, asyncio.Future[EngineStats]] = {}
        self._number = 0
        self._idle = asyncio.Event()
        self._idle.set()
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
            for stream in list(self._streams.values()):
                if stream.begun:
                    stream.fail(
                        EngineDied("The next engine computes other numbers than the one that died.", begun=True)
                    )
        self.restarts += self._info is not None
        self._link, self._epoch, self._info, self._lost = link, hello.epoch, hello.info, lost
        self._sent.clear()
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
        return len(self._streams)

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
        request = stream.request
        self._admit(request, stream.patient)
        name = self._name(stream)
        self._idle.clear()
        await self._send(name)

    def begin_anew(self, name: str, stream: Stream) -> None:
        """The engine forgets a stream, and is told of it as it stands now; that is not waited for."""
        self.post_abort(name)
        self._sent.discard(name)
        del self._streams[name]
        self._quarantine.left(name)
        self._name(stream)
        self._send_waiting()

    def _name(self, stream: Stream) -> str:
        # An id may be used again while words about its last owner are under way: the engine knows each by another name.
        self._number += 1
        name = self._names[stream.request.request_id] = f"{self._number}-{stream.request.request_id}"
        stream.named(name)
        self._streams[name] = stream
        return name

    def end(self, name: str, request_id: str, *, abort: bool) -> None:
        """Forget a stream; the engine is told if it does not know that it is over."""
        del self._streams[name]
        del self._names[request_id]
        if abort:
            self.post_abort(name)
        self._sent.discard(name)
        if self._quarantine.active and self._quarantine.left(name):
            self._send_waiting()
        if not self._streams:
            self._idle.set()

    def post_abort(self, name: str, choice: int | None = None, kept: int | None = None) -> None:
        if name in self._sent:
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
        if request.request_id in self._names:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use.", param="request_id")
        if self._killers and asked(request) in self._killers:
            raise EngineKiller("This request is known to end the engine; it was not run again.")

    async def _send(self, name: str) -> None:
        """Tell the engine of a request, if it is there and the request may run."""
        stream, link = self._streams.get(name), self._link
        if stream is None or link is None or name in self._sent or stream.failed or not self._quarantine.admits(name):
            return
        self._sent.add(name)
        again, stream.again = stream.again, True
        self.resumed += again
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
            for name in list(self._streams):
                await self._send(name)

    async def abort(self, request_id: str, choice: int | None = None, kept: int | None = None) -> None:
        """End a request, or one choice. kept: how many of its ids the front kept. Unknown ids are no error."""
        name = self._names.get(request_id)
        if name in self._sent and self._link is not None:
            self.post_abort(name, choice, kept)
            self._streams[name].aborted.append(choice)
        elif name is not None:
            self._streams[name].end(choice)

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
        await self._idle.wait()

    async def close(self) -> None:
        """Abort what is open and let go of the engine."""
        self._draining = True
        link, self._link = self._link, None
        for stream in list(self._streams.values()):
            stream.fail(Unavailable("The server is shutting down."))
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
        known = {request_digest(name): name for name in self._sent}
        names = {known[digest] for digest in members if digest in known}
        ran = [name for name, stream in self._streams.items() if name in names and not stream.failed]
        told = tuple((self._streams[name].request, self._streams[name].given) for name in ran)
        verdict = self._quarantine.died(ran, {name for name in ran if self._proven(name)})
        self._owed = max(ahead, self._owed) if verdict.isolating else ahead
        if verdict.guilty is not None:
            self._refuse(verdict.guilty)
        self._sent.clear()
        for stream in list(self._streams.values()):
            stream.lost()
        if link is not None:
            await link.close()
        guilty = None if verdict.guilty is None else verdict.guilty.partition("-")[2]
        return Loss(told, guilty, verdict.isolating, len(self._streams))

    def _refuse(self, name: str) -> None:
        """Nobody but this request can have ended the engine."""
        stream = self._streams[name]
        self._killers[asked(stream.request)] = None
        if len(self._killers) > MAX_KILLERS:
            self._killers.popitem(last=False)
        stream.fail(EngineKiller("This request ended the engine, the last time alone; it is not run again."))

    def _proven(self, name: str) -> bool:
        """Whether a suspect is cleared."""
        stream = self._streams.get(name)
        return stream is None or stream.failed or (name in self._sent and stream.proven(self._owed))

    def give_up(self, error: OctavoError) -> None:
        """There will be no other engine: every request from now on gets `error`, and the open ones do."""
        self._failed = error
        for stream in list(self._streams.values()):
            stream.fail(error)

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
            for stream in list(self._streams.values()):
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
            stream = self._streams.get(message.request)
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
        streams = self._streams
        news = []
        try:
            for item in items:
                stream = streams.get(item.request)
                if stream is not None and stream.push(item):
                    news.append(stream)
        except Gap as gap:
            self._epoch = -1  # nothing that it says counts any more
            self._engine_ended(str(gap))
        for stream in news:  # once each, whatever the number of its choices
            stream.tell()
        if self._quarantine.active and self._quarantine.settle(self._proven):
            self._send_waiting()
