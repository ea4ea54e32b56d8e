"""Starts the engine's process, watches it, kills it when it hangs, starts the next one.

Dead: the process is gone. Hung: its progress word stands still for 20 times the predicted node time, and at least 2 s,
or, while it starts, it neither computes nor reads for a minute;
a hung engine is killed before the next one starts. Each death leaves a report. More than 5 deaths in 10 minutes: it
gives up; those by which a poisonous request is found out count as one. It knows processes and the flight record; what
becomes of the requests is the client's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from octavo import logs
from octavo.engine.client import EngineClient
from octavo.engine.crash_report import crash_report, write_report
from octavo.engine.flight_record import FlightRecord
from octavo.engine.messages import Boot, BrokenMessage, Failed, Hello
from octavo.engine.transport import SocketLink
from octavo.errors import EngineDied, EngineDiedTooOften, OctavoError

HUNG_NODES = 20  # predicted node times without progress: later than any cache miss or preempted thread explains
HUNG_SECONDS = 2.0  # and at least this: virtual machines are paused for a second now and then
MAX_DEATHS, DEATH_WINDOW = 5, 600.0
STACK_BYTES = 1 << 16
WATCH_SECONDS = 0.25
LOOK_SECONDS = 2 * WATCH_SECONDS  # of standing still that one look can tell: this process may have stood still itself
START_SECONDS = 60.0  # of a start without any work: a disk that sleeps or a network that stalls takes less
CONNECT_SECONDS = 0.01  # between two tries to connect to a process that starts
LAST_WORDS_SECONDS = 0.2  # from the end of the connection to that of the process
T = TypeVar("T")
_BOOT = (
    "import json, sys; boot = json.load(sys.stdin); sys.path[:] = boot['path']; "
    "from octavo.engine.process import main; sys.exit(main(boot))"
)


@dataclass(frozen=True)
class EngineProcess:
    """How an engine is started. factory: `module:function` that makes an EngineSetup of `options` (plain data).
    max_members: of a step, for the flight record. faults: of tests only. crashes: the folder of crash reports;
    crash_prompts: prompts stand in them."""

    factory: str
    options: Mapping[str, Any]
    max_members: int = 4096
    log_level: str = "info"
    log_json: bool = False
    faults: Mapping[str, str] = field(default_factory=dict)
    crashes: Path | None = None
    crash_prompts: bool = False


def _work_of(pid: int) -> int:
    """What a process has computed and read so far, in units of their own; it only grows."""
    work = 0
    with contextlib.suppress(OSError):  # it is gone, or not shown
        times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        work = int(times[11]) + int(times[12])
        work += int(Path(f"/proc/{pid}/io").read_text().split()[1])
    return work


class Supervisor:
    """Keeps one engine alive behind one EngineClient."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self.client = EngineClient()
        self.deaths: deque[float] = deque()  # monotonic seconds, within the window
        self.restarts = 0
        self._pinned: Mapping[str, Mapping[str, Any]] = {}
        self._epoch = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._flight: FlightRecord | None = None
        self._stack = -1  # descriptor of what the process says when a signal kills it
        self._alarm = asyncio.Event()
        self._last_words = ""  # why the client will not use this engine any more
        self._watch: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[OctavoError] = asyncio.get_running_loop().create_future()
        self._last_look = (0, 0.0, 0.0)  # the progress word, when, and how long it had stood still then

    @property
    def pid(self) -> int | None:
        """Of the engine's process, if there is one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def healthy(self) -> bool:
        """The engine is there, takes requests and makes progress."""
        return self.client.ready and self.pid is not None and self._still_seconds() < HUNG_SECONDS

    async def start(self) -> EngineClient:
        """Start the first engine; returns when it is ready. Raises what its start raised."""
        try:
            await self._launch()
        except BaseException:
            await self.stop(0.0)
            raise
        self._watch = asyncio.create_task(self._keep(), name="octavo-supervisor")
        return self.client

    async def failure(self) -> OctavoError:
        """Waits for the day when no further engine will be started; gives the reason (EngineDiedTooOften)."""
        return await asyncio.shield(self._failure)

    async def stop(self, timeout: float = 5.0) -> None:
        """End the engine: by its own will within `timeout` seconds, else by force."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await self.client.close()
        if self._flight is not None:
            self._flight.request_stop()  # in the midst of a step as well
        await self._bury(timeout)

    # One engine

    async def _launch(self) -> None:
        """Start a process and attach the client to it."""
        self._epoch += 1
        self._flight = FlightRecord(self.engine.max_members)
        self._stack = os.memfd_create("octavo-stack", os.MFD_CLOEXEC)
        # Needed until the two are connected: a front that is killed leaves nothing behind.
        with tempfile.TemporaryDirectory(prefix="octavo-", ignore_cleanup_errors=True) as folder:  # mode 0700
            link = await self._while_it_works(self._connect(self._spawn(Path(folder) / "engine.sock")))
        self._alarm.clear()
        self._last_words = ""
        await self._while_it_works(self._attach(link))
        self._last_look = (self._flight.progress, time.monotonic(), 0.0)

    def _spawn(self, path: Path) -> Path:
        """Make the process, which will listen there."""
        assert self._flight is not None
        engine = self.engine
        options = {**engine.options, **{name: {**engine.options[name], **v} for name, v in self._pinned.items()}}
        boot = Boot(
            sys.path, os.getpid(), str(path), self._flight.descriptor, self._stack, engine.max_members, self._epoch,
            engine.factory, options, engine.log_level, engine.log_json,
            dict(engine.faults) if self._epoch == 1 else {},
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=2,  # standard output is for results
            pass_fds=(self._flight.descriptor, self._stack),
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: _connect sees that
            self._process.stdin.write(msgspec.json.encode(boot))
            self._process.stdin.close()
        return path

    async def _while_it_works(self, part: Coroutine[Any, Any, T]) -> T:
        """A part of the start. EngineDied if the process does nothing for too long meanwhile; it is killed then."""
        assert self._process is not None
        task, seen, still = asyncio.ensure_future(part), -1, 0.0
        try:
            while not task.done() and still < START_SECONDS:
                await asyncio.wait({task}, timeout=WATCH_SECONDS)
                work = _work_of(self._process.pid)
                still = still + WATCH_SECONDS if work == seen else 0.0
                seen = work
            if not task.done():
                self._process.kill()
                raise EngineDied(f"The engine did nothing for {START_SECONDS:.0f} s while starting.")
            return task.result()
        finally:
            task.cancel()

    async def _connect(self, path: Path) -> SocketLink:
        assert self._process is not None and self._flight is not None
        while True:
            try:
                return await SocketLink.connect(path, self._flight.announce)
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None:
                    raise EngineDied(f"The engine ended while starting ({self._exit_reason()}).") from None
                await asyncio.sleep(CONNECT_SECONDS)

    async def _attach(self, link: SocketLink) -> None:
        """Hear the first word: hello, or why there will be none."""
        try:
            first = await link.read()
        except (EOFError, BrokenMessage) as error:
            await link.close()
            raise EngineDied(f"The engine ended while starting: {error}.") from None
        if isinstance(first, Failed):
            await link.close()
            raise first.error.error()
        if not isinstance(first, Hello):
            await link.close()
            raise EngineDied("The engine did not say hello.")
        self._pinned = first.info.pinned
        self.client.attach(link, first, self._lost)

    def _lost(self, reason: str) -> None:
        """The client will not use this engine any more."""
        self._last_words = self._last_words or reason
        self._alarm.set()

    def _exit_reason(self) -> str:
        code = None if self._process is None else self._process.poll()
        if code is None or code == 1:  # its own words say more
            return self._last_words or f"exit code {code}"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    async def _bury(self, timeout: float) -> None:
        """The process is over when this returns."""
        process, self._process = self._process, None
        if process is not None:
            deadline = time.monotonic() + timeout
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            if process.poll() is None:
                process.kill()
            await asyncio.to_thread(process.wait)
        if self._flight is not None:
            self._flight.close()
            self._flight = None
            os.close(self._stack)

    # The watch

    async def _keep(self) -> None:
        """Watch the engine; replace it when it is dead or hung, until it has died too often."""
        while True:
            reason = await self._await_death()
            logs.get("supervisor").error("the engine died: %s", reason.partition("\n")[0])
            counts = await self._mourn(reason)
            await self._bury(0.0)
            while not await self._restart(counts):
                counts = True
                if self._failure.done():
                    return

    async def _mourn(self, reason: str) -> bool:
        """End what is left of the engine, tell the client, write the report; whether this death counts."""
        assert self._process is not None and self._flight is not None
        process = self._process
        code = process.poll()  # None: it hangs, or nobody believes it any more
        process.kill()
        await asyncio.to_thread(process.wait)
        flight = self._flight.read()
        loss = await self.client.lose(flight.members if flight.step else (), flight.ahead)
        log = logs.get("supervisor")
        if loss.open:
            log.warning(
                "%d open requests will go on; %d of them were in step %d", loss.open, len(loss.members), flight.step
            )
        if loss.guilty is not None:
            log.error("request %s ends the engine and is refused", loss.guilty)
        if self.engine.crashes is not None:
            stack = os.pread(self._stack, STACK_BYTES, 0).decode("utf-8", "replace")
            known = {"pid": process.pid, "epoch": self._epoch, "restarts": self.restarts}
            report = crash_report(
                reason, code, stack, flight, known, loss.members, guilty=loss.guilty, prompts=self.engine.crash_prompts
            )
            path = await asyncio.to_thread(write_report, self.engine.crashes, report)
            log.error("no crash report could be written" if path is None else f"crash report: {path}")
        return not loss.isolating

    async def _await_death(self) -> str:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._alarm.wait(), WATCH_SECONDS)
            assert self._process is not None
            if self._alarm.is_set():
                # The connection ended; the process is about to as a rule, and its exit code says more.
                deadline = time.monotonic() + LAST_WORDS_SECONDS
                while self._process.poll() is None and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                return self._exit_reason()
            if self._process.poll() is not None:
                return self._exit_reason()
            still = self._still_seconds()
            assert self._flight is not None
            flight = self._flight.read()
            if still > max(HUNG_SECONDS, HUNG_NODES * flight.node_seconds):
                return f"no progress for {still:.1f} s in step {flight.step}"

    def _still_seconds(self) -> float:
        """How long the progress word has stood still, as far as was seen."""
        if self._flight is None:
            return 0.0
        now, progress = time.monotonic(), self._flight.progress
        before, looked, still = self._last_look
        still = 0.0 if progress != before else still + min(now - looked, LOOK_SECONDS)
        self._last_look = (progress, now, still)
        return still

    async def _restart(self, counts: bool) -> bool:
        """Count a death and start the next engine; False if that failed or there were too many."""
        now = time.monotonic()
        if counts:
            self.deaths.append(now)
        while self.deaths and now - self.deaths[0] > DEATH_WINDOW:
            self.deaths.popleft()
        if len(self.deaths) > MAX_DEATHS:
            error = EngineDiedTooOften(
                f"The engine died {len(self.deaths)} times within {DEATH_WINDOW / 60:.0f} minutes; it is not started "
                "again. The log says what killed it."
            )
            self.client.give_up(error)
            self._failure.set_result(error)
            return False
        try:
            await self._launch()
        except OctavoError as error:
            logs.get("supervisor").error("the next engine did not start: %s", error)
            await self._bury(0.0)
            return False
        self.restarts += 1
        return True
