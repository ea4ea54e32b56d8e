"""Two keys of weights 3 : 1 that both ask for more than the server can give: the tokens that each of them gets.

    python bench/shares.py [--model smollm2:135m] [--seconds 60] [--clients 24] [--slots 8] [--weights 3 1]

So many clients of each key ask again as soon as they are answered, for completions of 8 to 120 random words and up to
64 tokens, every other one ignoring its end: nobody knows how long an answer will be. Tokens are those that /v1/usage
tells, prompts and answers, between the end of the first tenth of the time and the end. The last line is the figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from server import WORDS, serve

from octavo.server.key_file import key_line

WARM_UP = 0.1  # of the time


class Client(threading.Thread):
    """Asks again and again until it is told to stop."""

    def __init__(self, port: int, key: str, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.seconds: list[float] = []
        self._port, self._key, self._stop_asking = port, key, stop
        self._random = random.Random(seed)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not self._stop_asking.is_set():
            words = self._random.choices(WORDS, k=self._random.randrange(8, 121))
            body = {
                "prompt": " ".join(words), "max_tokens": self._random.randrange(1, 65), "temperature": 1,
                "seed": self._random.randrange(2**31), "ignore_eos": self._random.random() < 0.5,
            }  # fmt: skip
            begin = time.perf_counter()
            status, data = call(connection, "POST", "/v1/completions", self._key, body)
            if status == 200:
                self.answers += 1
                self.seconds.append(time.perf_counter() - begin)
            elif status == 429:
                time.sleep(0.1)
            else:
                raise RuntimeError(f"{status}: {data!r}")


def call(connection: http.client.HTTPConnection, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
    """Status and body of an answer."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def tokens(port: int) -> dict[str, int]:
    """Of each key so far."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    _, told = call(connection, "GET", "/v1/usage", "sk-ops")
    return {each["key"]: each["total"]["prompt_tokens"] + each["total"]["generated_tokens"] for each in told["data"]}


def measured(port: int, names: list[str], count: int, seconds: float) -> tuple[list[int], list[list[Client]]]:
    """Tokens of each key after the warm-up, and its clients."""
    stop = threading.Event()
    clients = [
        [Client(port, f"sk-{name}", 1000 * place + n, stop) for n in range(count)] for place, name in enumerate(names)
    ]
    for own in clients:
        for client in own:
            client.start()
    time.sleep(WARM_UP * seconds)
    before = tokens(port)
    time.sleep((1 - WARM_UP) * seconds)
    after = tokens(port)
    stop.set()
    for own in clients:
        for client in own:
            client.join(120)
    return [after[name] - before[name] for name in names], clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=24, help="of each key")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--weights", type=float, nargs=2, default=[3.0, 1.0])
    args = parser.parse_args()
    names = ["first", "second"]
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            key_line(name, f"sk-{name}", [f"weight={weight:g}"])
            for name, weight in zip(names, args.weights, strict=True)
        ]
        keys = Path(folder, "keys")
        keys.write_text("\n".join([*lines, key_line("ops", "sk-ops", ["admin"])]) + "\n")
        flags = ["--api-key-file", str(keys), "--state-dir", folder, "--max-num-seqs", str(args.slots)]
        with serve(args.model, [*flags, "--max-model-len", "1024"]) as server:
            ready(server.port)
            given, clients = measured(server.port, names, args.clients, args.seconds)
    for name, own, count in zip(names, clients, given, strict=True):
        waits = sorted(second for client in own for second in client.seconds)
        print(f"{name}: {count:,} tokens, {len(waits):,} answers, median {waits[len(waits) // 2]:.2f} s")
    first, second = args.weights
    error = abs(given[0] / given[1] / (first / second) - 1)
    rate = sum(given) / ((1 - WARM_UP) * args.seconds)
    told = f"tokens {given[0] / given[1] * second:.3f} : {second:g}, {100 * error:.1f} % off"
    print(f"weights {first:g} : {second:g}: {told}; {rate:,.0f} tokens a second")


def ready(port: int) -> None:
    """Until the model is loaded."""
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            if call(connection, "GET", "/health", "")[0] == 200:
                return
        except ConnectionRefusedError:
            pass
        time.sleep(0.05)


if __name__ == "__main__":
    main()
