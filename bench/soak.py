"""Hours of everything at once: each API, clients that leave, read slowly or send nonsense, and now and then a fault.

    python -m bench.soak [--minutes 60] [--clients 12] [--fault-every 60] [--seed 1] [--log FILE] > table.md

A fifth of the requests are left half-way, one in twenty is read slowly, one in fifty is malformed. Faults are drawn
from kill -9 of the engine (at most 4 in ten minutes), kill -9 of its grammar process, a stop of either for a moment,
SIGHUP and a flushed prefix cache. Streams whose answer is known are compared with it, faults or not. Memory is what is
private (RssAnon); its slope is fitted over the lives of each process, each without its first requests. Afterwards
nothing may be left: blocks, descriptors, threads, processes, shared memory. Time in which this process itself was
stopped does not count. SIGTERM ends it early, with the table. The exit code is 1 if anything was lost, wrong or left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from bench.holdings import MIB, Holding, Samples, holdings, leaks, processes, shared, slope
from bench.soak_requests import Ask, Requests, fine, probes
from tests.server.live import Live

LEFT, SLOW = 0.2, 0.05  # shares of requests that are left half-way, and that are read slowly
NOT_NOW = {429, 503, 504, 529}
DEATHS, DEATHS_SECONDS = 4, 660.0  # of the engine: the server gives up after 5 in ten minutes
SAMPLE_SECONDS = 10.0
TICK = 0.25
BOUND = 1.0  # MiB per 10,000 requests


class Clock:
    """Seconds in which this process ran: a stop of it, and of the server with it, is nobody's fault."""

    def __init__(self) -> None:
        self.running = 0.0
        self.stopped = 0.0
        self.last_stop = -1e9  # `running` when it last went on after a stop

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            gap, last = now - last, now
            self.running += min(gap, 4 * TICK)
            if gap > 8 * TICK:
                self.stopped += gap
                self.last_stop = self.running

    def pardons(self, begin: float) -> bool:
        """Whether what began at `running` == begin met a stop: time limits of the server may have passed in it."""
        return self.last_stop >= begin - 30


@dataclass
class Tally:
    """What became of the requests."""

    requests: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, fate: str, text: str) -> None:
        self.fates[fate] += 1
        self.problems.append(f"{fate}: {text}"[:600])


class Gone(Exception):
    """The connection ended before the answer did."""


async def exchange(port: int, ask: Ask, leave: int | None, slow: bool, reset: bool) -> tuple[int, bytes] | None:
    """Status and body of an answer; None where the client left on purpose, after so many bytes. Gone if the server
    closed before the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    try:
        head = (
            f"{ask.method} {ask.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {ask.content_type}\r\n"
        )
        writer.write(f"{head}Content-Length: {len(ask.data)}\r\n\r\n".encode() + ask.data)
        await writer.drain()
        got = b""
        while True:
            if leave is not None and len(got) >= leave:
                if reset:
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                return None
            data = await reader.read(64 if slow else 1 << 16)
            if not data:
                return whole(got)
            got += data
            if slow:
                await asyncio.sleep(0.02)
    except ConnectionError:
        raise Gone("reset") from None
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def whole(got: bytes) -> tuple[int, bytes]:
    """Status and body of an answer that is complete. Gone if it is not."""
    head, separator, body = got.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/1.1 "):
        raise Gone(f"no answer: {got[:100]!r}")
    status, lower = int(head[9:12]), head.lower()
    if b"transfer-encoding: chunked" in lower:
        parts = []
        while body:
            size, _, rest = body.partition(b"\r\n")
            length = int(size or b"0", 16)
            if not length:
                return status, b"".join(parts)
            parts.append(rest[:length])
            body = rest[length + 2 :]
        raise Gone(f"{status} broke off: {got[-200:]!r}")
    length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")
    if len(body) != length:
        raise Gone(f"{status} with {len(body)} of {length} bytes")
    return status, body


# -- the soak ----------------------------------------------------------------------------------------------------------


class Soak:
    """One run on one server."""

    def __init__(self, live: Live, seed: int, patience: float) -> None:
        """patience: seconds of this process's running time after which a request is lost."""
        self._live, self._patience = live, patience
        self._random = random.Random(seed)
        self._requests = Requests(seed)
        self._stop = asyncio.Event()
        self._kills: deque[float] = deque(maxlen=DEATHS)
        self.clock, self.tally = Clock(), Tally()
        self.samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))

    def stop(self) -> None:
        """End at once, with what there is."""
        self._stop.set()

    async def run(self, seconds: float, clients: int, fault_every: float) -> None:
        """So many seconds of running time."""
        clock = asyncio.create_task(self.clock.run())
        for number in range(len(probes())):  # undisturbed: what they say now they must say always
            await self._one(self._requests.probe(number), False)
        tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        tasks += [asyncio.create_task(self._faults(fault_every)), asyncio.create_task(self._sampler())]
        while self.clock.running < seconds and not self._stop.is_set():
            await asyncio.sleep(TICK)
            for task in tasks:
                if task.done():
                    task.result()
        self._stop.set()
        await asyncio.gather(*tasks)
        clock.cancel()

    async def _client(self) -> None:
        while not self._stop.is_set():
            ask: Ask | None = self._requests.draw()
            while ask is not None:
                ask = await self._one(ask, True)

    async def _one(self, ask: Ask, rude: bool) -> Ask | None:
        """Send it and judge its answer; the request that follows from it."""
        draw, tally, begin = self._random.random(), self.tally, self.clock.running
        leave = self._random.choice((0, 1, 400, 2000)) if rude and draw < LEFT else None
        slow = rude and LEFT <= draw < LEFT + SLOW
        tally.requests += 1
        tally.kinds[ask.kind.split()[0]] += 1
        answering = asyncio.create_task(exchange(self._live.port, ask, leave, slow, self._random.random() < 0.5))
        while not answering.done():
            await asyncio.wait({answering}, timeout=10)
            if self.clock.running - begin > self._patience:
                answering.cancel()
                tally.problem("lost", f"{ask.kind}: no end after {self._patience:.0f} s")
                return None
        try:
            answer = answering.result()
        except (Gone, OSError) as error:
            if self.clock.pardons(begin):
                tally.fates["met a stop"] += 1
            else:
                tally.problem("lost", f"{ask.kind}: {error}")
            return None
        if answer is None:
            tally.fates["left"] += 1
            return None
        status, body = answer
        if status in NOT_NOW:
            tally.fates[f"not now ({status})"] += 1
        elif problem := ask.judge(status, body):
            tally.problem("wrong", f"{ask.kind}: {problem}")
        else:
            tally.fates["slowly" if slow else "malformed" if ask.kind == "malformed" else "answered"] += 1
            return ask.then(body)
        return None

    async def _sampler(self) -> None:
        next_at = 0.0
        while not self._stop.is_set():
            await asyncio.sleep(TICK)
            if self.clock.running >= next_at:
                next_at = self.clock.running + SAMPLE_SECONDS
                print(f"{self.clock.running:.0f} s: {self.tally.requests:,} requests", file=sys.stderr)
                for name, held in holdings(self._live).items():
                    self.samples[name][held.pid].append((self.tally.requests, held.anon))

    async def _faults(self, every: float) -> None:
        next_at = self.clock.running + every
        while every and not self._stop.is_set():
            await asyncio.sleep(TICK)
            if self.clock.running >= next_at:
                next_at = self.clock.running + every * self._random.uniform(0.5, 1.5)
                name = self._random.choice(("kill", "grammar", "stop", "stop grammar", "flush", "keys"))
                with contextlib.suppress(psutil.Error, httpx.HTTPError):
                    await self._fault(name)

    async def _fault(self, name: str) -> None:
        found = processes(self._live)
        if name == "kill":
            if len(self._kills) == DEATHS and time.monotonic() - self._kills[0] < DEATHS_SECONDS:
                return
            self._kills.append(time.monotonic())
            found["engine"].kill()
        elif name == "grammar" and "grammar" in found:
            found["grammar"].kill()
        elif name.startswith("stop"):
            victim = found.get("grammar" if name.endswith("grammar") else "engine")
            if victim is None:
                return
            victim.suspend()
            await asyncio.sleep(0.5)
            victim.resume()
        elif name == "flush":
            async with httpx.AsyncClient() as client:
                await client.post(f"{self._live.url}/reset_prefix_cache", timeout=60)
        elif name == "keys":
            found["front"].send_signal(signal.SIGHUP)
        else:
            return
        self.tally.faults[name] += 1


async def idle(live: Live, requests: Requests) -> dict[str, Holding]:
    """What is held when nothing runs and each process has been used."""
    for number in range(len(probes())):
        await exchange(live.port, requests.probe(number), None, False, False)
    await exchange(live.port, requests.schema(), None, False, False)
    tokenize = Ask("small", "POST", "/tokenize", b'{"prompt": "%s"}' % (b"a b " * 500), fine)
    await asyncio.gather(*(exchange(live.port, tokenize, None, False, False) for _ in range(64)))  # every thread
    ask: Ask | None = requests.file()
    while ask is not None:  # files are read by threads of their own
        _, body = await exchange(live.port, ask, None, False, False) or (0, b"")
        ask = ask.then(body)
    await asyncio.sleep(8)  # streams that were left are kept for so long (--stream-grace)
    await asyncio.to_thread(live.wait_idle, 120)
    return holdings(live)


def report(soak: Soak, left: list[str], deaths: int) -> bool:
    """Print the tables; whether all is well."""
    tally, good = soak.tally, True
    print(f"{soak.clock.running / 60:.1f} minutes ({soak.clock.stopped:.0f} s stopped), {tally.requests:,} requests\n")
    print("| | |\n|---|---|")
    for title, counter in (("became of them", tally.fates), ("kinds", tally.kinds), ("faults", tally.faults)):
        print(f"| {title} | {', '.join(f'{name} {n:,}' for name, n in counter.most_common())} |")
    print(f"| deaths of the engine | {deaths} |\n| left afterwards | {'; '.join(left) or 'nothing'} |")
    columns, slopes = ("memory of", "lives", "first MiB", "last MiB", "MiB per 10,000 requests", "over requests"), []
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name, lives in soak.samples.items():
        fitted = slope(lives)
        told, span = ("too short", 0) if fitted is None else (f"{fitted[0]:+.2f}", fitted[1])
        held = [anon / MIB for life in lives.values() for _, anon in life]
        print(f"| {name} | {len(lives)} | {held[0]:.0f} | {held[-1]:.0f} | {told} | {span:,} |")
        good &= fitted is None or fitted[0] < BOUND
        slopes.append(f"{name} {told}")
    for problem in tally.problems[:20]:
        print(f"\n{problem}")
    lost, wrong = tally.fates["lost"], tally.fates["wrong"]
    print(
        f"\n{soak.clock.running / 60:.0f} minutes, {tally.requests:,} requests: lost {lost}, wrong {wrong}, "
        f"left {len(left)}; MiB per 10,000 requests: {', '.join(slopes)}"
    )
    return good and not (lost or wrong or left)


async def measured(live: Live, args: argparse.Namespace) -> bool:
    soak, requests = Soak(live, args.seed, args.patience), Requests(args.seed)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, soak.stop)
    before, names = await idle(live, requests), shared()
    await soak.run(args.minutes * 60, args.clients, args.fault_every)
    after = await idle(live, requests)
    errors = [line for line in live.lines if line.startswith("ERROR")]
    print(f"{len(errors)} lines of errors in the log" + "".join(f"\n{line.rstrip()}" for line in errors[:3]) + "\n")
    return report(soak, leaks(live, before, after, names), live.log.count("the engine died: "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--fault-every", type=float, default=60.0, help="seconds, on average; 0: never")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until a request counts as lost")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="where the server's log goes")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    with tempfile.TemporaryDirectory() as folder:
        live = Live(Path(folder), "--stream-grace", "5", "--kv-cache-memory", "192MiB")
        try:
            good = asyncio.run(measured(live, args))
            own = psutil.Process(live.process.pid).children(recursive=True)
            code = live.stop()
            if code or any(each.is_running() for each in own):
                print(f"exit code {code}, processes left: {[each for each in own if each.is_running()]}")
                good = False
        finally:
            if live.process.poll() is None:
                live.process.kill()
            if args.log is not None:
                args.log.write_text(live.log)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
