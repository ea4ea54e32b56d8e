"""An engine in a thread of the front's process: the same loop and messages as over a socket, without bytes.

For `LLM` and for tests. The thread runs native code with the GIL released; it knows the event loop only to hand it
messages.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import sys
import threading
from collections.abc import Callable

from octavo import logs
from octavo.engine.core import EngineCore, EngineSetup
from octavo.engine.flight_record import FlightRecord
from octavo.engine.loop import SWITCH_INTERVAL, EngineLoop
from octavo.engine.messages import VERSION, Dead, EngineMessage, FrontMessage, Hello, Shutdown


@functools.cache
def _idle_page() -> FlightRecord:
    """The control page of executors that no engine runs."""
    return FlightRecord(1)


class _QueuePort:
    """The engine's side: its one peer is 0."""

    def __init__(self, deliver: Callable[[EngineMessage], None]) -> None:
        self.inbox: queue.SimpleQueue[FrontMessage] = queue.SimpleQueue()
        self._deliver = deliver

    def receive(self, timeout: float) -> list[tuple[int, FrontMessage | None]]:
        came: list[tuple[int, FrontMessage | None]] = []
        try:
            came.append((0, self.inbox.get(timeout > 0, timeout or None)))
            while True:
                came.append((0, self.inbox.get_nowait()))
        except queue.Empty:
            return came

    def send(self, peer: int, message: EngineMessage) -> None:
        self._deliver(message)

    def greet(self, message: EngineMessage) -> None:
        self._deliver(message)


class ThreadLink:
    """The front's side; the same face as transport.SocketLink."""

    def __init__(self, setup: EngineSetup, epoch: int = 1) -> None:
        self._flight = FlightRecord(setup.runner.facts.max_seqs)
        self._core = EngineCore(setup, self._flight, epoch)
        self._thread: threading.Thread | None = None
        self._port = _QueuePort(self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received: Callable[[EngineMessage], None] = lambda message: None
        self._ended: Callable[[str], None] = lambda reason: None

    @property
    def hello(self) -> Hello:
        return Hello(VERSION, self._core.epoch, self._core.info)

    def start(self, received: Callable[[EngineMessage], None], ended: Callable[[str], None]) -> None:
        """Run the engine; both are called in the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._received, self._ended = received, ended
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            sys.setswitchinterval(SWITCH_INTERVAL)  # nothing is frozen for the collector: the process is the user's
            EngineLoop(self._core, self._port, self._flight).serve()
        except Exception as error:  # the engine is over; whoever waits is told, as when a process dies
            logs.get("engine").exception("the engine ends")
            self._deliver(Dead(self._core.epoch, f"{type(error).__name__}: {error}"))

    def _deliver(self, message: EngineMessage) -> None:
        assert self._loop is not None, "start() comes first"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived, message)

    def _arrived(self, message: EngineMessage) -> None:
        if isinstance(message, Dead):
            self._ended(message.reason)
        else:
            self._received(message)

    def post(self, message: FrontMessage) -> None:
        self._flight.announce()
        self._port.inbox.put(message)

    async def send(self, message: FrontMessage) -> None:
        self.post(message)

    async def close(self) -> None:
        """End the thread, in the midst of its step if it has one."""
        self.post(Shutdown(self._core.epoch))
        self._flight.request_stop()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._core.close()
        self._received, self._ended = (lambda message: None), (lambda reason: None)  # no cycle keeps the model alive
        if self._core.setup.watch is not None:  # the executor may outlive this engine, and reads its page at every node
            self._core.setup.watch(_idle_page().address)
        self._flight.close()
