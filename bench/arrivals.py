"""A lean client that asks as often as it is told to, whatever comes back, in a process of its own.

    python bench/arrivals.py PORT        one order for each line of standard input, one line of figures for each

An order is {"bodies", "path", "seconds"} with "rate" (requests a second, open loop: nobody waits for answers) or
"clients" (closed loop: so many, each asks again when it is answered). Answers are read whole and not parsed. The
figures stand in `Fates`; answers of the warm-up, a tenth of the time, do not count.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from load import cpu_seconds

WARM_UP = 0.1
READ = 1 << 16
LATEST = 120.0  # seconds after the last request by which every answer must be there


@dataclass(frozen=True)
class Fates:
    """What became of requests. answered: 200 in the counted time, of so many seconds. waits: seconds of each 200, in
    order. untold: 429 and 503 without Retry-After. lost: without a status, or cut off. late: seconds by which the
    client fell behind its own timetable at most."""

    asked: int
    statuses: dict[str, int]
    answered: int
    seconds: float
    waits: list[float]
    untold: int
    lost: int
    late: float
    cpu: float


class Call:
    """One request over its own connection."""

    def __init__(self, port: int, data: bytes) -> None:
        self.begin = time.perf_counter()
        self.got = b""
        self._left = data
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))

    def ready(self, events: int) -> bool:
        """Go on; True when the answer has ended."""
        try:
            if events & selectors.EVENT_WRITE and self._left:
                self._left = self._left[self.socket.send(self._left) :]
            if events & selectors.EVENT_READ:
                data = self.socket.recv(READ)
                self.got += data
                return not data
        except BlockingIOError:
            pass
        except OSError:
            return True
        return False

    @property
    def wants(self) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._left else 0)

    @property
    def status(self) -> str:
        """ "": it has none, or its answer is cut off."""
        head, separator, body = self.got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0].strip()
        whole = len(body) == int(length) if length else body.endswith(b"0\r\n\r\n")
        return head[9:12].decode() if separator and whole else ""

    @property
    def told(self) -> bool:
        return b"\r\nretry-after:" in self.got.partition(b"\r\n\r\n")[0].lower()


class Run:
    """One order."""

    def __init__(self, port: int, order: dict[str, Any]) -> None:
        self._port, self._seconds = port, order["seconds"]
        self._rate, self._clients = order.get("rate"), order.get("clients")
        self._requests = [_request(order["path"], body) for body in order["bodies"]]
        self._selector = selectors.EpollSelector()
        self._open, self._asked, self._late = 0, 0, 0.0
        self._statuses: Counter[str] = Counter()
        self._waits: list[float] = []
        self._answered = self._untold = 0

    def _ask(self) -> None:
        call = Call(self._port, self._requests[self._asked % len(self._requests)])
        self._asked += 1
        self._open += 1
        self._selector.register(call.socket, call.wants, call)

    def _end(self, call: Call, counts: bool) -> None:
        self._selector.unregister(call.socket)
        call.socket.close()
        self._open -= 1
        status = call.status
        self._statuses[status] += 1
        if status == "200":
            self._waits.append(time.perf_counter() - call.begin)
            self._answered += counts
        elif status in ("429", "503"):
            self._untold += not call.told

    def run(self) -> Fates:
        begin, cpu = time.perf_counter(), cpu_seconds()
        end, counted = begin + self._seconds, begin + WARM_UP * self._seconds
        while True:
            now = time.perf_counter()
            if now < end and self._rate is not None:
                due = begin + self._asked / self._rate
                if now >= due:
                    self._late = max(self._late, now - due)
                    self._ask()
                    continue
                wait = due - now
            elif now < end and self._clients is not None:
                while self._open < self._clients:
                    self._ask()
                wait = end - now
            elif self._open and now < end + LATEST:
                wait = 1.0
            else:
                break
            for key, events in self._selector.select(wait):
                call: Call = key.data
                if call.ready(events):
                    self._end(call, counted <= time.perf_counter() < end)
                elif key.events != call.wants:
                    self._selector.modify(call.socket, call.wants, call)
        return Fates(
            self._asked, dict(self._statuses), self._answered, end - counted, sorted(self._waits), self._untold,
            self._statuses[""] + self._open, self._late, cpu_seconds() - cpu,
        )  # fmt: skip


def _request(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def main() -> None:
    port = int(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(asdict(Run(port, json.loads(line)).run())), flush=True)


if __name__ == "__main__":
    main()
