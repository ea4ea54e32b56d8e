"""The front's half of the engine: submit, receive, abort; the same over a thread of this process and over a socket.

It keeps what the front knows of each open request, drops ids that it has already and words of dead engines, and treats
a gap as the death of the engine. When an engine is lost, open requests end with EngineDied; the supervisor attaches the
next one. It knows ids, never text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from octavo import logs
from octavo.engine.messages import (
    VERSION,
    Abort,
    Answer,
    Ask,
    BrokenMessage,
    ChoiceOutput,
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
from octavo.errors import ContextLengthExceeded, EngineDied, InvalidRequest, OctavoError, Unavailable
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


class Stream:
    """An open request, as a Flow of lists of outputs: what is new, in order, until every choice has its `finish`.

    start() raises QueueFull, Unavailable, ContextLengthExceeded or InvalidRequest, take() these and EngineDied.
    """

    def __init__(self, client: EngineClient, request: Request) -> None:
        known = {resume.choice: len(resume.emitted_ids) for resume in request.resume}
        self.request = request
        self.begun = bool(known)
        self._client = client
        self._next_index = [known.get(choice, 0) for choice in range(request.params.n)]
        self._open = set(range(request.params.n))
        self._items: list[ChoiceOutput] = []
        self._error: OctavoError | None = None
        self._name: str | None = None  # by which the engine knows it, while it does
        self._news: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        return not (self._open or self._items)

    async def start(self, news: Callable[[], None]) -> None:
        self._news = news
        await self._client.begin(self)

    def named(self, name: str) -> Request:
        """The request as the engine is told of it."""
        self._name = name
        return replace(self.request, request_id=name)

    def take(self) -> list[ChoiceOutput] | None:
        if self._items:
            items, self._items = self._items, []
            return items
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        if self._name is not None:
            name, self._name = self._name, None
            self._client.end(name, self.request.request_id, abort=bool(self._open) and self._error is None)

    def abort(self, choice: int, kept: int) -> None:
        """End one choice, of whose ids `kept` count."""
        if self._name is not None:
            self._client.post_abort(self._name, choice, kept)

    # What the engine says

    def push(self, item: ChoiceOutput) -> bool:
        """Take an output in: ids that are known already are dropped, a gap is an error. True if that is the first news
        since take(): tell() then."""
        choice, ids = item.choice, item.token_ids
        if choice not in self._open:
            return False
        expected = self._next_index[choice]
        if item.index != expected:
            known = expected - item.index
            if known < 0:
                self.fail(EngineDied(f"The engine lost {-known} tokens of this answer.", begun=self.begun))
                return False
            ids = item.token_ids = ids[known:]
            item.logprobs = None if item.logprobs is None else item.logprobs[known:]
            item.index = expected
            if not ids and item.finish is None:
                return False
        item.request = self.request.request_id
        self._next_index[choice] = expected + len(ids)
        if ids:
            self.begun = True
        if item.finish is not None:
            self._open.discard(choice)
        self._items.append(item)
        return len(self._items) == 1

    def tell(self) -> None:
        """There is something to take."""
        self._news()

    def fail(self, error: OctavoError) -> None:
        self._error = self._error or error
        self._news()


class EngineClient:
    """An engine as the front sees it. One event loop uses it."""

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._link: Link | None = None
        self._epoch = 0
        self._streams: dict[str, Stream] = {}  # by the name that the engine knows a request by
        self._names: dict[str, str] = {}  # request id -> that name
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
        """Use this engine, which has said hello, from now on. lost: called when its connection ends."""
        if hello.version != VERSION:
            raise EngineDied(f"The engine speaks version {hello.version} of the messages, the front {VERSION}.")
        self._link, self._epoch, self._info, self._lost = link, hello.epoch, hello.info, lost
        link.start(self._received, lambda reason: self._connection_ended(hello.epoch, reason))

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

    def open(self, request: Request) -> Stream:
        """A request to be run: a Flow of what is new. Closing it early aborts the request."""
        return Stream(self, request)

    def submit(self, request: Request) -> AsyncGenerator[list[ChoiceOutput], None]:
        """The same, waited for."""
        return items(self.open(request))

    async def begin(self, stream: Stream) -> None:
        """Send a stream's request to the engine; outputs go to the stream from now on."""
        request = stream.request
        link = self._admit(request)
        self._number += 1
        # An id may be used again while words about its last owner are under way: the engine knows each by another name.
        name = self._names[request.request_id] = f"{self._number}-{request.request_id}"
        self._streams[name] = stream
        self._idle.clear()
        try:
            await link.send(Submit(self._epoch, stream.named(name)))
        except (UnicodeEncodeError, BrokenMessage) as error:
            stream.fail(InvalidRequest(f"The request cannot be sent to the engine: {error}."))

    def end(self, name: str, request_id: str, *, abort: bool) -> None:
        """Forget a stream; the engine is told if it does not know that it is over."""
        del self._streams[name]
        del self._names[request_id]
        if abort:
            self.post_abort(name)
        if not self._streams:
            self._idle.set()

    def post_abort(self, name: str, choice: int | None = None, kept: int | None = None) -> None:
        self._post(Abort(self._epoch, name, choice, kept))

    def _admit(self, request: Request) -> Link:
        if self._failed is not None:
            raise self._failed
        if self._draining:
            raise Unavailable("The server is shutting down.", retry_after=10.0)
        if self._link is None:
            raise Unavailable("The engine is being restarted.", retry_after=2.0)
        if len(request.prompt_ids) > self.info.longest_prompt:
            raise ContextLengthExceeded(self.info.max_model_len, len(request.prompt_ids), param="prompt")
        if request.request_id in self._names:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use.", param="request_id")
        return self._link

    async def abort(self, request_id: str, choice: int | None = None, kept: int | None = None) -> None:
        """End a request, or one choice. kept: how many of its ids the front kept. Unknown ids are no error."""
        name = self._names.get(request_id)
        if name is not None:
            self.post_abort(name, choice, kept)

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

    async def lose(self, reason: str) -> None:
        """The engine is gone: whoever waits gets EngineDied, new requests Unavailable until the next attach()."""
        link, self._link = self._link, None
        for stream in list(self._streams.values()):
            stream.fail(EngineDied(f"The engine died: {reason}. The request may be repeated.", begun=stream.begun))
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(Unavailable("The engine is being restarted.", retry_after=2.0))
        if link is not None:
            await link.close()

    def give_up(self, error: OctavoError) -> None:
        """There will be no other engine: every request from now on gets `error`."""
        self._failed = error

    # What the engine says

    def _post(self, message: FrontMessage) -> None:
        if self._link is not None:
            self._link.post(message)

    def _connection_ended(self, epoch: int, reason: str) -> None:
        if epoch != self._epoch or self._link is None:
            return
        if self._lost is not None:
            self._lost(reason)
        else:  # nobody restarts it
            self.give_up(EngineDied(f"The engine died: {reason}."))
            self._link = None
            for stream in list(self._streams.values()):
                stream.fail(EngineDied(f"The engine died: {reason}.", begun=stream.begun))

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
        for item in items:
            stream = streams.get(item.request)
            if stream is not None and stream.push(item):
                news.append(stream)
        for stream in news:  # once each, whatever the number of its choices
            stream.tell()
