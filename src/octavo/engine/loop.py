"""The loop around EngineCore: receive, step, send, over a port: a socket in a process of its own, or queues of a thread
beside the front.

It knows fronts and which requests are theirs; it does not know what a step is.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from octavo import logs
from octavo.engine.core import Decoded, EngineCore
from octavo.engine.flight_record import FlightRecord
from octavo.engine.messages import (
    VERSION,
    Abort,
    Answer,
    Ask,
    ChoiceOutput,
    EngineMessage,
    ErrorRecord,
    FrontMessage,
    Hello,
    Outputs,
    Refused,
    Shutdown,
    Submit,
    Tokens,
    pack_who,
)
from octavo.engine.sequence import Sequence
from octavo.errors import OctavoError

SWITCH_INTERVAL = 1e-4  # seconds: a native call gets the GIL back at once, not after 5 ms
Peer = TypeVar("Peer")


class Port(Protocol, Generic[Peer]):
    """Where messages come from and go to. A peer is one front."""

    def receive(self, timeout: float) -> Iterable[tuple[Peer, FrontMessage | None]]:
        """Messages that have come, waiting up to `timeout` seconds for the first; None: this peer is gone."""

    def send(self, peer: Peer, message: EngineMessage) -> None:
        """Send; a peer that is gone is no error."""

    def greet(self, message: EngineMessage) -> None:
        """What every peer is told first, those to come too."""


def tune_interpreter() -> None:
    """After start: what lives now lives for good, so collections skip it; and the GIL changes hands quickly."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)


class EngineLoop(Generic[Peer]):
    """Receive, step, send, until a Shutdown."""

    def __init__(self, core: EngineCore, port: Port[Peer], flight: FlightRecord) -> None:
        self.core = core
        self._port = port
        self._flight = flight
        self._owner: dict[str, Peer] = {}  # request -> the front that sent it
        self._told: list[Sequence] = []  # rows of the last message in columns,
        self._peers: list[Peer] = []  # the fronts that sent them,
        self._who = b""  # and their names, packed
        self._running = True

    def serve(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Turn until a Shutdown comes, or `alive` says that nobody is left to serve."""
        self._port.greet(Hello(VERSION, self.core.epoch, self.core.info))
        logs.get("engine").debug("epoch %d is ready", self.core.epoch)
        while self._running and alive():
            self.turn(self.core.patience)

    def turn(self, timeout: float) -> None:
        """Take what has come, run one step, send what is new."""
        self._flight.advance()
        for peer, message in self._port.receive(timeout):
            self._take(peer, message)
        for request_id, error in self.core.settle():
            owner = self._owner.pop(request_id, None)
            if owner is not None:
                self._port.send(owner, Refused(self.core.epoch, request_id, ErrorRecord.of(error)))
        if self.core.has_work and self._running:
            self._send(self.core.step())

    def _take(self, peer: Peer, message: FrontMessage | None) -> None:
        core = self.core
        if message is None:
            for request_id in [r for r, owner in self._owner.items() if owner == peer]:
                core.abort(request_id)
        elif message.epoch != core.epoch:
            logs.get("engine").warning("a message of epoch %d is dropped", message.epoch)
        elif isinstance(message, Submit):
            self._submit(peer, message)
        elif isinstance(message, Abort):
            if self._owner.get(message.request) == peer:
                core.abort(message.request, message.choice)
        elif isinstance(message, Ask):
            if message.what == "reset_prefix_cache":
                core.reset_prefix_cache()
            self._port.send(peer, Answer(core.epoch, message.number, core.stats()))
        else:
            assert isinstance(message, Shutdown)
            self._running = False

    def _submit(self, peer: Peer, message: Submit) -> None:
        request = message.request
        try:
            self.core.submit(request, message.again)
        except OctavoError as error:
            self._port.send(peer, Refused(self.core.epoch, request.request_id, ErrorRecord.of(error)))
        else:
            self._owner[request.request_id] = peer

    def _send(self, outputs: list[ChoiceOutput] | Decoded) -> None:
        if isinstance(outputs, Decoded):
            if outputs.members != self._told:
                self._tell_of(outputs.members)
            if len(self._peers) == 1:
                number = self.core.scheduler.number
                self._port.send(
                    self._peers[0], Tokens(self.core.epoch, number, self._who, outputs.indices, outputs.ids)
                )
                return
            outputs = outputs.items()
        owner, live = self._owner, self.core.roster.requests
        batches: dict[Peer, list[ChoiceOutput]] = {}
        ended = []
        for output in outputs:
            batches.setdefault(owner[output.request], []).append(output)
            if output.finish is not None and output.request not in live:
                ended.append(output.request)
        for peer, items in batches.items():
            self._port.send(peer, Outputs(self.core.epoch, self.core.scheduler.number, items))
        for request in ended:
            owner.pop(request, None)

    def _tell_of(self, members: list[Sequence]) -> None:
        """These are the rows of messages in columns from now on."""
        self._told = members
        self._peers = list({id(peer): peer for peer in (self._owner[s.request_id] for s in members)}.values())
        self._who = pack_who([(s.request_id, s.choice) for s in members])
