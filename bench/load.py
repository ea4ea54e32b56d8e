"""A lean client of many streams at once, in a process of its own: it costs the machine little, and says how much.

    python bench/load.py PORT        one round for each line of standard input, one line of figures for each round

A round is a JSON list of request bodies. All are sent at once, each over its own connection, and their streams are read
to the end; nothing is parsed while the clock runs. The figures stand in `Round`.
"""

from __future__ import annotations

import json
import re
import resource
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

READ = 1 << 16  # bytes: more than a stream has waiting, so one read takes what one wake-up wrote
END = b"data: [DONE]"
USAGE = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True)
class Round:
    """seconds: from the first request to the last token. cpu: seconds of this process meanwhile. reads: of all streams.
    first, gap: median seconds to a stream's first bytes, and from read to read. gap99: the 99th
    percentile of these when all streams have begun. tokens: as the server counts them."""

    seconds: float
    cpu: float
    tokens: int
    reads: int
    bytes: int
    first: float
    gap: float
    gap99: float


class Stream:
    """One connection, made before the clock runs."""

    def __init__(self, port: int, body: object) -> None:
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        self.request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.parts: list[bytes] = []
        self.times: list[float] = []

    def tokens(self) -> int:
        """What the last chunk says; RuntimeError if the answer is not whole."""
        text = b"".join(self.parts)
        found = USAGE.findall(text)
        if not text.startswith(b"HTTP/1.1 200") or END not in text or not found:
            raise RuntimeError(f"not a whole stream: {text[:300]!r} ... {text[-300:]!r}")
        return int(found[-1])


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(port: int, bodies: Sequence[object]) -> Round:
    streams = [Stream(port, body) for body in bodies]
    left = len(streams)
    with selectors.EpollSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        cpu, begin = cpu_seconds(), time.perf_counter()
        for stream in streams:
            stream.socket.sendall(stream.request)
        while left:
            for key, _ in selector.select():
                stream = key.data
                data = stream.socket.recv(READ)
                stream.parts.append(data)
                stream.times.append(time.perf_counter())
                if not data or END in data[-64:]:
                    left -= 1
                    selector.unregister(stream.socket)
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    for stream in streams:
        stream.socket.close()
    firsts = sorted(stream.times[0] - begin for stream in streams)
    gaps = sorted(b - a for s in streams for a, b in zip(s.times, s.times[1:], strict=False))
    later = sorted(
        b - a for s in streams for a, b in zip(s.times, s.times[1:], strict=False) if a >= begin + firsts[-1]
    )
    return Round(
        seconds, cpu, sum(stream.tokens() for stream in streams), sum(len(stream.parts) for stream in streams),
        sum(len(part) for stream in streams for part in stream.parts), firsts[len(firsts) // 2], gaps[len(gaps) // 2],
        later[len(later) * 99 // 100] if later else 0.0,
    )  # fmt: skip


def main() -> None:
    port = int(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(asdict(run(port, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
