"""How long a request holds up the front for all others: round trips of a probe beside requests that are heavy to read.

    python bench/stalls.py [--model smollm2:135m] [--rounds 5]

The probe asks `/live` over one connection, again and again; its longest round trip beside a request, less its median
without one, is a stall of the event loop (or of the interpreter's lock). Requests are just within the limits, or just
beyond them. The table has the median over the rounds; the last line the longest.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from served import described
from server import serve

from octavo.execution.ceilings import measure
from octavo.server.limits import MAX_BODY, MAX_CONTAINERS, MAX_NESTED, MAX_VALUES

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BOUNDARY = "bench"


def _message(content: str) -> bytes:
    return b'{"max_tokens": 1, "messages": [{"role": "user", "content": %s}]}' % content.encode()


def _parts(count: int) -> bytes:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
    return (part * count + f"--{BOUNDARY}--\r\n").encode()


def _schema(size: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"key{n}": {"type": "string", "maxLength": n} for n in range(size)}}


# What is sent: name -> path and body.
HEAVY: dict[str, tuple[str, bytes]] = {
    "10 MB of text": (TEXT, json.dumps({"prompt": "word " * 2_000_000, "max_tokens": 1}).encode()),
    "the longest body of text": (CHAT, _message(json.dumps("a" * (MAX_BODY - 200)))),
    "100 KB of text": (TEXT, json.dumps({"prompt": "word and " * 11_000, "max_tokens": 1}).encode()),
    "a million ids": (TEXT, json.dumps({"prompt": [5] * 1_000_000, "max_tokens": 1}).encode()),
    "as many numbers as are read": (CHAT, _message("[" + "1," * (MAX_VALUES - 10) + "1]")),
    "as many lists as are read": (CHAT, _message("[" + "[]," * (MAX_CONTAINERS - 10) + "[]]")),
    "as many values as a message may have": (CHAT, _message("[" + "1," * (MAX_NESTED - 10) + "1]")),
    "too many lists": (CHAT, _message("[" + "[]," * 4_000_000 + "[]]")),
    "a text of brackets": (CHAT, _message(json.dumps('{"[,\\' * 1_600_000))),
    "8,000 messages": (CHAT, json.dumps({"messages": [{"role": "user", "content": "a"}] * 8000}).encode()),
    "1,000 prompts": (TEXT, json.dumps({"prompt": ["a"] * 1000, "max_tokens": 1}).encode()),
    "a schema of 1 MB": (CHAT, json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
                                           "guided_json": _schema(20_000)}).encode()),
    "1,000 functions": (CHAT, json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "tools": [
        {"type": "function", "function": {"name": f"f{n}", "parameters": _schema(3)}} for n in range(1000)]}).encode()),
    "100,000 parts of a form": ("/v1/files", _parts(100_000)),
    "a file of 60 MB": ("/v1/files", _parts(1)[:-20] + b"a" * (60 << 20)),
    "1 MB to tokenize": ("/tokenize", json.dumps({"prompt": "word and " * 110_000}).encode()),
    "metrics": ("/metrics", b""),
    "the OpenAPI document": ("/openapi.json", b""),
}  # fmt: skip


class Probe(threading.Thread):
    """Asks `/live` again and again; keeps the round trips, in seconds."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.trips: list[float] = []
        self._port, self._ending = port, False

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        while not self._ending:
            begin = time.perf_counter()
            connection.request("GET", "/live")
            connection.getresponse().read()
            self.trips.append(time.perf_counter() - begin)
            time.sleep(0.001)

    def end(self) -> list[float]:
        self._ending = True
        self.join()
        return self.trips


def beside(port: int, action: Callable[[], object]) -> tuple[float, float]:
    """Median and longest round trip beside an action."""
    probe = Probe(port)
    probe.start()
    time.sleep(0.05)
    action()
    time.sleep(0.05)
    trips = probe.end()
    return statistics.median(trips), max(trips)


def post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    kind = f"multipart/form-data; boundary={BOUNDARY}" if path == "/v1/files" else "application/json"
    connection.request("POST" if body else "GET", path, body or None, {"Content-Type": kind})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(described(measure(threads=2)) + f"; {args.model}\n")
    longest: tuple[float, str] = (0.0, "")
    with serve(args.model, ["--max-model-len=8192"]) as server:
        server.first_token()
        quiet = statistics.median(beside(server.port, lambda: time.sleep(0.5))[0] for _ in range(3))
        print(f"the probe alone: {quiet * 1e3:.2f} ms\n")
        print("| beside | answer | longest stall, ms | of all rounds |\n|---|---|---|---|")
        for name, (path, body) in HEAVY.items():
            statuses: list[int] = []
            stalls = [
                beside(server.port, lambda: statuses.append(post(server.port, path, body)))[1] - quiet  # noqa: B023
                for _ in range(args.rounds)
            ]
            middle = statistics.median(stalls)
            longest = max(longest, (middle, name))
            print(f"| {name} | {statuses[-1]} | {middle * 1e3:.1f} | {max(stalls) * 1e3:.1f} |", flush=True)
    print(f"\nlongest stall of the event loop {longest[0] * 1e3:.0f} ms: {longest[1]}")


if __name__ == "__main__":
    main()
