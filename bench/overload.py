"""What too much does to those who are served: five times the capacity, idle and stalled clients, hostile constraints.

    python bench/overload.py [--model smollm2:135m] [--seconds 60] [--rounds 7] [--only flood,open,stalled,hostile]

flood: so many requests a second as five times what a closed loop gets, each over its own connection, of 64 words and
64 tokens; the queue holds as many as run. Goodput is what was answered against the closed loop before and after it. The
CPU time of the client, which one elsewhere would not take from these cores, is taken off both as served.py does.
open, stalled, hostile: the time between reads of 16 streams (p99) beside 1,000 open connections, beside 100 clients
that do not read their streams, beside a client that sends hostile constraints without end; with and without in turns,
the change is the median over the rounds. The last line has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from served import Load, described
from server import WORDS, Server, serve

from octavo.execution.ceilings import measure

SLOTS, TOKENS, TIMES = 16, 64, 5
STREAMS, LENGTH = 16, 96  # of those whose gaps are measured
OPEN, STALLED = 1000, 100
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ARRIVALS = Path(__file__).with_name("arrivals.py")


class Drawn:
    """Random prompts, never the same twice."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))

    def streams(self) -> list[dict[str, Any]]:
        """Bodies of a measured round."""
        more = {"max_tokens": LENGTH, "stream": True, "ignore_eos": True, "temperature": 0}
        usage = {"stream_options": {"include_usage": True}}
        return [{"messages": [{"role": "user", "content": self.words(24)}], **more, **usage} for _ in range(STREAMS)]

    def completions(self, count: int) -> list[dict[str, Any]]:
        return [{"prompt": self.words(64), "max_tokens": TOKENS, "ignore_eos": True} for _ in range(count)]

    def hostile(self) -> dict[str, Any]:
        """A constraint that is refused after work, or never done."""
        tag = f"{self._random.getrandbits(40):x}"
        made = [
            {"guided_regex": f"{tag}.{{1,10000}}x{{1,10000}}"},
            {"guided_regex": f"({tag}|a+)+(b|a*)*c{{1,2000}}"},
            {"guided_json": _nested(tag)},
            {"guided_json": {"enum": [f"{tag}{n}" for n in range(20_000)]}},
            {"guided_json": {"type": "string", "pattern": f"^({tag}|(a?){{300}}a{{300}})$"}},
        ]
        return {"prompt": "a", "max_tokens": 1, **self._random.choice(made)}


def _nested(tag: str) -> dict[str, Any]:
    """Twice as large with each level, up to 100 KB."""
    schema: dict[str, Any] = {"type": "object", "properties": {tag: {"type": "string", "pattern": "(a|b|c){1,500}d"}}}
    while len(json.dumps(schema)) < 50_000:
        schema = {"type": "object", "properties": {f"{tag}a": schema, "x": {"anyOf": [schema, {"type": "null"}]}}}
    return schema


# -- the flood ---------------------------------------------------------------------------------------------------------


class Arrivals:
    """bench/arrivals.py on a server."""

    def __init__(self, server: Server) -> None:
        command = [sys.executable, str(ARRIVALS), str(server.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": TEXT, **order}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def flood(model: str, seconds: float, threads: int) -> str:
    """Prints the table; the figure. SystemExit if a request was lost or refused with a 5xx or without a time."""
    flags = [f"--max-num-seqs={SLOTS}", f"--max-num-queued-reqs={SLOTS}", "--no-enable-prefix-caching"]
    drawn = Drawn()
    with serve(model, ["--max-model-len=1024", f"--threads={threads}", *flags]) as server:
        server.first_token()
        arrivals = Arrivals(server)
        bodies = drawn.completions(2000)
        arrivals.order(bodies=bodies, clients=2 * SLOTS, seconds=3)  # warms up
        closed = [arrivals.order(bodies=bodies, clients=2 * SLOTS, seconds=seconds / 3)]
        capacity = closed[0]["answered"] / closed[0]["seconds"]
        front = server.pids()[0]
        before = server.cpu_seconds(front)
        told = arrivals.order(bodies=bodies, rate=TIMES * capacity, seconds=seconds)
        busy = server.cpu_seconds(front) - before
        closed.append(arrivals.order(bodies=bodies, clients=2 * SLOTS, seconds=seconds / 3))
        arrivals.close()
    rates = [_rate(each, threads) for each in closed]
    capacity, goodput = statistics.fmean(rates), _rate(told, threads)
    waits = told["waits"]
    last, bound = waits[int(0.99 * len(waits))], (2 * SLOTS + 1) / capacity
    fives = sum(count for status, count in told["statuses"].items() if status.startswith("5"))
    refused = told["statuses"].get("429", 0)
    print(
        "| flood | asked | 200 | 429 | 5xx | lost | without Retry-After | answered/s | capacity/s |\n"
        + "|---" * 9
        + "|"
    )
    print(
        f"| {TIMES} x {capacity:.1f}/s for {seconds:.0f} s | {told['asked']:,} | {len(waits):,} | {refused:,} "
        f"| {fives} | {told['lost']} | {told['untold']} | {goodput:.2f} | {rates[0]:.2f}, {rates[1]:.2f} |\n"
    )
    print(
        f"as it is, with the client's share of these cores: {told['answered'] / told['seconds']:.2f} of "
        f"{', '.join(format(each['answered'] / each['seconds'], '.2f') for each in closed)}; the client was "
        f"{told['late'] * 1e3:.0f} ms late at most; the front took {busy / told['asked'] * 1e6:.0f} us of CPU a "
        f"request; waits: median {waits[len(waits) // 2]:.2f} s, p99 {last:.2f} s, longest {waits[-1]:.2f} s; a full "
        f"queue and every slot are {bound:.2f} s of work\n"
    )
    if fives or told["lost"] or told["untold"]:
        sys.exit("requests were lost, failed, or refused without Retry-After")
    return (
        f"{TIMES} x capacity: goodput {goodput / capacity:.1%} of capacity, wait p99 {last / bound:.2f} of a full "
        f"queue, 5xx {fives}, lost {told['lost']}, untold {told['untold']}"
    )


def _rate(told: dict[str, Any], threads: int) -> float:
    """Answers a second, had the client been elsewhere."""
    whole = told["seconds"] / 0.9
    return float(told["answered"] / told["seconds"] / (1 - told["cpu"] / (threads * whole)))


# -- others beside streams ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def idle_connections(server: Server) -> Iterator[None]:
    """1,000 of them, each of which has been answered once."""
    made = []
    try:
        for _ in range(OPEN):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            if b" 200 " not in connection.recv(4096):
                raise RuntimeError("a connection was refused")
            made.append(connection)
        yield
    finally:
        for connection in made:
            connection.close()


@contextlib.contextmanager
def stalled_readers(server: Server) -> Iterator[None]:
    """100 clients whose streams fill every buffer; their answers are made meanwhile, and nobody takes them."""
    body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "logprobs": 20, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    made = []
    try:
        for _ in range(STALLED):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head + data)
            made.append(connection)
        while _load(server):  # the engine is done with them: what is left to them is the front's
            time.sleep(0.2)
        yield
    finally:
        for connection in made:
            connection.close()
        time.sleep(0.5)


def _load(server: Server) -> float:
    """Sequences that the engine computes or has waiting."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    lines = [
        line for line in text.splitlines() if line.startswith(("octavo:num_requests_running", "octavo:num_requests_w"))
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


class HostileClient:
    """Sends hostile constraints, one after the other, while it is told to."""

    def __init__(self, server: Server) -> None:
        self.sent = 0
        self.statuses: set[int] = set()
        self._port, self._drawn = server.port, Drawn()
        self._on, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def __call__(self, server: Server) -> Iterator[None]:
        self._on.set()
        time.sleep(0.5)
        yield
        self._on.clear()
        time.sleep(0.5)

    def _run(self) -> None:
        while True:
            self._on.wait()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            connection.request("POST", TEXT, json.dumps(self._drawn.hostile()), {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            connection.close()
            self.statuses.add(response.status)
            self.sent += 1


Beside = Callable[[Server], AbstractContextManager[None]]


def change(server: Server, load: Load, beside: Beside, rounds: int) -> tuple[list[float], list[float], float]:
    """p99 gaps (seconds) without and with, and the median of their quotients less 1; in turns, each first in half."""
    drawn, without, along = Drawn(), [], []
    load.round(drawn.streams())
    for turn in range(rounds):
        for now in (False, True) if turn % 2 else (True, False):
            with beside(server) if now else contextlib.nullcontext():
                (along if now else without).append(load.round(drawn.streams())["gap99"])
    changes = [b / a - 1 for a, b in zip(without, along, strict=True)]
    return without, along, statistics.median(changes)


def others(model: str, rounds: int, threads: int, only: set[str]) -> list[str]:
    """The rows of the table; the figures."""
    flags = ["--max-model-len=1024", "--max-num-seqs=32", f"--threads={threads}", "--no-enable-prefix-caching"]
    told = []
    with serve(model, flags) as server:
        server.first_token()
        load, hostile = Load(server), HostileClient(server)
        kinds: dict[str, tuple[str, Beside]] = {
            "open": (f"{OPEN:,} open connections", idle_connections),
            "stalled": (f"{STALLED} stalled readers", stalled_readers),
            "hostile": ("hostile constraints", hostile),
        }
        head = ("beside", "gap p99 without, ms", "with, ms", "change of p99")
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for kind, (title, beside) in kinds.items():
            if kind in only:
                without, along, changed = change(server, load, beside, rounds)
                each = [", ".join(f"{1e3 * second:.1f}" for second in side) for side in (without, along)]
                print(f"| {title} | {each[0]} | {each[1]} | {changed:+.1%} |", flush=True)
                told.append(f"{title} {changed:+.1%}")
        load.close()
    if hostile.sent:
        print(f"\n{hostile.sent} hostile constraints, answered with {sorted(hostile.statuses)}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the flood")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="flood,open,stalled,hostile")
    args = parser.parse_args()
    only = set(args.only.split(","))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    print(described(measure(threads=args.threads)) + f"; {args.model}\n")
    told = [flood(args.model, args.seconds, args.threads)] if "flood" in only else []
    if only - {"flood"}:
        told.append("gap p99 of others: " + ", ".join(others(args.model, args.rounds, args.threads, only)))
    print("\n" + "; ".join(told))


if __name__ == "__main__":
    main()
