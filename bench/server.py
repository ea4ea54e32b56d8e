"""A server of our own for measurements: started as users start it, timed to its first token, watched for its memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "octavo.cli.main", "serve")

# Of prompts that must differ.
WORDS = ("river", "stone", "light", "winter", "paper", "seven", "green", "under", "table", "song", "window", "cloud")


@dataclass
class Server:
    """A running `octavo serve`. started: monotonic seconds when the process was made."""

    process: subprocess.Popen[bytes]
    port: int
    started: float

    def post(self, path: str, body: dict[str, object], timeout: float = 300.0) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {data[:300]!r}")
        return dict(json.loads(data))

    def first_token(self) -> float:
        """Seconds from the start of the process to the first byte of a streamed answer."""
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True})
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"octavo serve ended with {self.process.returncode}") from None
                time.sleep(0.005)
                continue
            if response.status == 200:
                for line in response:
                    delta = json.loads(line[6:])["choices"][0]["delta"] if line.startswith(b"data: {") else {}
                    if delta.get("content"):
                        return time.monotonic() - self.started
            response.read()
            time.sleep(0.005)

    def pids(self) -> list[int]:
        """The front and every process below it."""
        found, at = [self.process.pid], 0
        while at < len(found):
            children = Path(f"/proc/{found[at]}/task/{found[at]}/children").read_text().split()
            found += [int(child) for child in children]
            at += 1
        return found

    def cpu_seconds(self, pid: int) -> float:
        """CPU time that a process of ours has used so far, over all its threads."""
        files = Path(f"/proc/{pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def resident(self) -> int:
        """RssAnon + RssShmem over all processes, in bytes: memory that is ours and not a file's; and what is
        resident of a mapped packed file, which stands for weights of the plan."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += sum(int(kib) * 1024 for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))
                if "/packed/" in Path(f"/proc/{pid}/maps").read_text():
                    maps = Path(f"/proc/{pid}/smaps").read_text()
                    total += sum(int(kib) * 1024 for kib in re.findall(r"/packed/.*\n(?:.*\n){0,4}?Rss:\s+(\d+)", maps))
        return total


@contextlib.contextmanager
def serve(model: str, flags: Sequence[str] = ()) -> Iterator[Server]:
    """`octavo serve MODEL --port FREE flags`, stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    process = subprocess.Popen([*COMMAND, model, "--port", str(port), *flags], stderr=subprocess.DEVNULL)
    try:
        yield Server(process, port, started)
    finally:
        process.terminate()
        process.wait(60)
