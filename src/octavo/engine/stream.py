"""An open request as the front knows it: what every choice has given, and how a new engine goes on with it.

The front owns the truth of a request; whatever engine runs it, its ids come once and in order. It knows ids, never
text, and no socket.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.messages import ChoiceOutput
from octavo.errors import DeadlineExceeded, OctavoError
from octavo.request import FinishReason, Request, Resume

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient


TOO_LATE = "The deadline passed before the first token was there."


class Gap(Exception):
    """The engine left out ids of an answer: it is not to be trusted any more."""


class Stream:
    """A Flow of lists of outputs: what is new, in order, until every choice has its `finish`.

    start() raises QueueFull, Unavailable, ContextLengthExceeded, DeadlineExceeded or InvalidRequest, take() these,
    EngineDied and EngineKiller. pause() takes it from the engine, a second start() goes on.
    """

    def __init__(self, client: EngineClient, request: Request, patient: bool = False) -> None:
        """patient: it waits where no engine is there, because it is part of something that has begun."""
        count = request.params.n
        self.request = request
        self.patient = patient or bool(request.resume)
        self.again = False  # an engine has taken it before, or was to
        self._client = client
        self._ids = [array("i") for _ in range(count)]  # given by each choice so far
        self._mu: list[float | None] = [None] * count
        self._open = set(range(count))
        for resume in request.resume:
            self._ids[resume.choice].extend(resume.emitted_ids)
            self._mu[resume.choice] = resume.mu
            if resume.done:
                self._open.discard(resume.choice)
        self._told = [0] * count  # ids of each choice when the present engine was told of it
        self._knows_prompt = False
        self.aborted: list[int | None] = []  # what the engine was told to end; None: all of it
        self._items: list[ChoiceOutput] = []
        self._error: OctavoError | None = None
        self._name: str | None = None  # by which the client knows it, while it does
        self._news: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None  # of the request's deadline

    @property
    def done(self) -> bool:
        return not (self._open or self._items)

    @property
    def begun(self) -> bool:
        """Somebody has seen a part of the answer."""
        return any(self._ids)

    @property
    def failed(self) -> bool:
        """No engine needs to run it."""
        return self._error is not None or not self._open

    @property
    def given(self) -> list[int]:
        """How many ids each choice has given."""
        return [len(ids) for ids in self._ids]

    async def start(self, news: Callable[[], None]) -> None:
        self._news = news
        if self.request.deadline is not None:
            left = self.request.deadline - time.monotonic()
            if left <= 0 and not self.begun:
                raise DeadlineExceeded(TOO_LATE)
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._expire)
        try:
            await self._client.begin(self)
        except BaseException:
            self._stop_timer()
            raise

    def take(self) -> list[ChoiceOutput] | None:
        if self._items:
            items, self._items = self._items, []
            return items
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        self._stop_timer()
        if self._name is not None:
            name, self._name = self._name, None
            self._client.end(name, abort=not self.failed)

    def pause(self) -> None:
        """The engine forgets it, and gives back what it holds; what it has given is kept for a start() to come."""
        self.close()
        self.again = True

    def abort(self, choice: int, kept: int) -> None:
        """End one choice, of whose ids `kept` count. Nothing more comes of it."""
        if choice in self._open and self._name is not None:
            self._open.discard(choice)
            self._client.post_abort(self._name, choice, kept)

    def rewrite(self, choice: int, kept: int, ids: Sequence[int]) -> None:
        """What the choice has given from its id number `kept` on did not count: it goes on behind `ids` in their place.
        They are not given to the reader, who has them."""
        self._open.add(choice)
        self._ids[choice] = self._ids[choice][:kept]
        self._ids[choice].extend(ids)
        self._mu[choice] = None  # Mirostat begins again: its state there is not known
        self._items = [item for item in self._items if item.choice != choice]
        self.again = True
        if self._name is not None:
            self._client.begin_anew(self._name)

    # What the client says

    def named(self, name: str) -> None:
        self._name = name

    def for_engine(self, name: str) -> Request:
        """The request as the next engine is told of it, with what earlier ones have given."""
        self._told = self.given
        resume = tuple(
            Resume(choice, tuple(ids), self._mu[choice], choice not in self._open)
            for choice, ids in enumerate(self._ids)
            if ids or choice not in self._open
        )
        return replace(self.request, request_id=name, resume=resume)

    def proven(self, ids: int) -> bool:
        """Every choice that is not at its end has given so many since the present engine was told of it."""
        return all(len(self._ids[choice]) - self._told[choice] >= ids for choice in self._open)

    def push(self, item: ChoiceOutput) -> bool:
        """Take an output in: ids that are known already are dropped, Gap if some are missing. True if that is the first
        news since take(): tell() then."""
        choice, ids = item.choice, item.token_ids
        if choice not in self._open or self._error is not None:
            return False
        known = self._ids[choice]
        expected = len(known)
        if item.index != expected:
            old = expected - item.index
            if old < 0:
                raise Gap(f"{-old} ids of an answer are missing")
            ids = item.token_ids = ids[old:]
            item.logprobs = None if item.logprobs is None else item.logprobs[old:]
            item.index = expected
            if not ids and item.finish is None:
                return False
        known.extend(ids)
        if item.mu is not None:
            self._mu[choice] = item.mu
        if item.prompt is not None:
            if self._knows_prompt:  # a new engine tells what the front knows from an earlier one
                item.prompt = None
            self._knows_prompt = True
        if item.finish is not None:
            self._open.discard(choice)
        item.request = self.request.request_id
        self._items.append(item)
        return len(self._items) == 1

    def _expire(self) -> None:
        """The deadline has come, wherever the request is: its choices end with what they have. Where there is nothing
        yet it fails."""
        if self.failed:
            return
        if self._name is not None:
            self._client.post_abort(self._name)
        if not self.begun:
            self.fail(DeadlineExceeded(TOO_LATE))
            return
        id_, kind = self.request.request_id, DeadlineExceeded.__name__
        for each in sorted(self._open):
            self.push(ChoiceOutput(id_, each, len(self._ids[each]), [], finish=FinishReason.LENGTH, kind=kind))
        self._news()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lost(self) -> None:
        """The engine is gone: what it was told to end is over."""
        for choice in self.aborted:
            self.end(choice)

    def end(self, choice: int | None) -> None:
        """An abort while no engine has the request: it is over at once."""
        for each in sorted(self._open) if choice is None else [choice]:
            self.push(ChoiceOutput(self.request.request_id, each, len(self._ids[each]), [], finish=FinishReason.ABORT))
        self._news()

    def tell(self) -> None:
        """There is something to take."""
        self._news()

    def fail(self, error: OctavoError) -> None:
        self._error = self._error or error
        self._news()


def asked(request: Request) -> bytes:
    """A digest of what a request asks; names, seeds and tenants are not part of it."""
    params = replace(request.params, seed=None)
    return blake2b(msgspec.msgpack.encode((request.prompt_ids, params)), digest_size=16).digest()
