"""The front's open requests, whatever engine runs them: their names, which of them the present engine was told of, and
what an engine's death means for each. It sends nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.engine.flight_record import request_digest
from octavo.engine.messages import ChoiceOutput
from octavo.engine.quarantine import Quarantine
from octavo.engine.stream import Gap, Stream, asked
from octavo.errors import EngineKiller, InvalidRequest, OctavoError
from octavo.request import Request

MAX_KILLERS = 64  # requests that are known to end the engine: who repeats one is refused before it does


@dataclass(frozen=True)
class Loss:
    """What an engine's death means for the open requests. members: of its last step, those first that came first, each
    with what it had given. guilty: the one that is not run again. isolating: quarantine.Verdict."""

    members: tuple[tuple[Request, list[int]], ...] = ()
    guilty: str | None = None
    isolating: bool = False
    open: int = 0


class OpenRequests:
    """Streams by the names that the engine knows them by."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.resumed = 0  # requests that a later engine has taken over
        self._names: dict[str, str] = {}  # request id -> name
        self._sent: set[str] = set()  # names that the present engine was told of
        self._quarantine = Quarantine()
        self._owed = 1  # ids that clear a suspect
        self._killers: OrderedDict[bytes, None] = OrderedDict()  # what those requests asked, as a digest
        self._number = 0

    def check(self, request: Request) -> None:
        """InvalidRequest for an id that is in use, EngineKiller for what is known to end the engine."""
        if request.request_id in self._names:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use.", param="request_id")
        if self._killers and asked(request) in self._killers:
            raise EngineKiller("This request is known to end the engine; it was not run again.")

    def add(self, stream: Stream) -> str:
        """The name of a new one."""
        self._number += 1
        request_id = stream.request.request_id
        # An id may be used again while words about its last owner are under way: the engine knows each by another name.
        name = self._names[request_id] = f"{self._number}-{request_id}"
        stream.named(name)
        self.streams[name] = stream
        self.idle.clear()
        return name

    def rename(self, name: str) -> None:
        """The engine is to be told anew of one that has been changed, and knows it by another name."""
        stream = self.streams.pop(name)
        self._sent.discard(name)
        self._quarantine.left(name)
        self.add(stream)

    def remove(self, name: str) -> bool:
        """Forget one. True if others may run now."""
        stream = self.streams.pop(name)
        del self._names[stream.request.request_id]
        self._sent.discard(name)
        if not self.streams:
            self.idle.set()
        return self._quarantine.active and self._quarantine.left(name)

    def name_of(self, request_id: str) -> str | None:
        return self._names.get(request_id)

    def known(self, name: str) -> bool:
        """Whether the present engine was told of it."""
        return name in self._sent

    def take(self, name: str) -> tuple[Stream, bool] | None:
        """The stream that the engine is to be told of now, and whether an engine has taken it before; None if it knows
        it, or it must wait."""
        stream = self.streams.get(name)
        if stream is None or name in self._sent or stream.failed or not self._quarantine.admits(name):
            return None
        self._sent.add(name)
        again, stream.again = stream.again, True
        self.resumed += again
        return stream, again

    def push(self, items: Sequence[ChoiceOutput]) -> Gap | None:
        """What the engine says; a Gap if it left something out."""
        streams, gap = self.streams, None
        news = []
        try:
            for item in items:
                stream = streams.get(item.request)
                if stream is not None and stream.push(item):
                    news.append(stream)
        except Gap as found:
            gap = found
        for stream in news:  # once each, whatever the number of its choices
            stream.tell()
        return gap

    def settled(self) -> bool:
        """Whether suspects have been cleared, so that others may run now."""
        return self._quarantine.active and self._quarantine.settle(self._proven)

    def fail(self, error: OctavoError) -> None:
        """End all of them."""
        for stream in list(self.streams.values()):
            stream.fail(error)

    # Engines come and go

    def new_engine(self) -> None:
        """It knows nothing."""
        self._sent.clear()

    def lose(self, members: Sequence[int], ahead: int) -> Loss:
        """The engine is gone. members: digests of its last step; ahead: ids that this might have given to each."""
        known = {request_digest(name): name for name in self._sent}
        names = {known[digest] for digest in members if digest in known}
        ran = [name for name, stream in self.streams.items() if name in names and not stream.failed]
        told = tuple((self.streams[name].request, self.streams[name].given) for name in ran)
        verdict = self._quarantine.died(ran, {name for name in ran if self._proven(name)})
        self._owed = max(ahead, self._owed) if verdict.isolating else ahead
        guilty = None if verdict.guilty is None else self._refuse(verdict.guilty)
        self._sent.clear()
        for stream in list(self.streams.values()):
            stream.lost()
        return Loss(told, guilty, verdict.isolating, len(self.streams))

    def _refuse(self, name: str) -> str:
        """Nobody but this request can have ended the engine; its id."""
        stream = self.streams[name]
        self._killers[asked(stream.request)] = None
        if len(self._killers) > MAX_KILLERS:
            self._killers.popitem(last=False)
        stream.fail(EngineKiller("This request ended the engine, the last time alone; it is not run again."))
        return stream.request.request_id

    def _proven(self, name: str) -> bool:
        """Whether a suspect is cleared."""
        stream = self.streams.get(name)
        return stream is None or stream.failed or (name in self._sent and stream.proven(self._owed))
