"""The octavo servers of this user that run now: found in /proc, without root and without a file that could go stale.

A process of ours whose command is `octavo serve` and that listens somewhere. What it serves and how busy it is, it is
asked over HTTP (`look`); how to end it is told by a file descriptor of the process, which no later process can inherit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.cli.web import Address, Unreachable, ask
from octavo.errors import OctavoError

PROC = Path("/proc")
ASK_SECONDS = 3.0
_LISTENING = "0A"  # of the fourth column of /proc/net/tcp
_UNIX_LISTENING = "00010000"  # the flags column of /proc/net/unix
_ANY = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # what to type for "every address"


@dataclass(frozen=True)
class Running:
    """A server's process. since: seconds since 1970. words: its command line from `serve` on."""

    pid: int
    since: float
    addresses: tuple[Address, ...]
    words: tuple[str, ...]

    @property
    def address(self) -> Address:
        """The first: that of --port, where it can be told from --also-listen."""
        return self.addresses[0]


@dataclass(frozen=True)
class Seen:
    """What a server says of itself. state: ready, loading, or why nothing is known of it."""

    process: Running
    state: str
    names: tuple[str, ...] = ()
    id: str = ""
    nbytes: int = 0
    context: int = 0
    running: int | None = None
    waiting: int | None = None

    def named(self, word: str) -> bool:
        """Whether a word that a person typed means this server: a name of its model, an address, a port, a pid."""
        addresses = {text for each in self.process.addresses for text in _spellings(each)}
        return word.removesuffix(":latest") in self.names or word.rstrip("/").removesuffix("/v1") in addresses | {
            str(self.process.pid)
        }


def _spellings(address: Address) -> set[str]:
    if address.socket is not None:
        return {str(address), address.socket}
    hosts = {address.host, "localhost", "127.0.0.1"} if address.host in ("127.0.0.1", "::1") else {address.host}
    made = {f"{host}:{address.port}" for host in hosts}
    return made | {f"http://{each}" for each in made} | {str(address), str(address.port), f":{address.port}"}


def running(proc: Path = PROC) -> list[Running]:
    """The servers of this user, the oldest first."""
    tables = list(_listeners(proc))
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            words = serve_words((folder / "cmdline").read_bytes())
            if words is None:
                continue
            links = {os.readlink(link) for link in (folder / "fd").iterdir()}
            since = _since(proc, folder)
        except (OSError, ValueError, IndexError):
            continue  # it has just ended, or is not ours to look into
        addresses = tuple(dict.fromkeys(address for inode, address in tables if inode in links))
        if addresses:
            found.append(Running(int(folder.name), since, _first(addresses, words), words))
    return sorted(found, key=lambda each: (each.since, each.pid))


def serve_words(cmdline: bytes) -> tuple[str, ...] | None:
    """The words after `octavo serve` of a command line of /proc; None for any other command."""
    words = cmdline.decode("utf-8", "replace").rstrip("\0").split("\0")
    for at, word in enumerate(words[:-1]):
        ours = word == "octavo.cli.main" or Path(word).name == "octavo" or word.endswith("octavo/cli/main.py")
        if ours:
            return tuple(words[at + 2 :]) if words[at + 1] == "serve" else None
    return None


def _first(addresses: tuple[Address, ...], words: Sequence[str]) -> tuple[Address, ...]:
    """Those of --also-listen come last."""
    also = " ".join(re.findall(r"--also[-_]listen[= ](\S+)", " ".join(words)))
    return tuple(
        sorted(addresses, key=lambda each: bool(also) and (f":{each.port}" if each.port else str(each)) in also)
    )


def _since(proc: Path, folder: Path) -> float:
    """When a process began: ticks since the machine's start stand in its stat."""
    boot = int(re.findall(r"^btime (\d+)", (proc / "stat").read_text(), re.M)[0])
    after_name = (folder / "stat").read_text().rpartition(")")[2].split()
    return float(boot) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def _listeners(proc: Path) -> Iterator[tuple[str, Address]]:
    """(`socket:[inode]`, address) of all sockets that listen."""
    for name in ("tcp", "tcp6"):
        for columns in _rows(proc / "net" / name):
            if len(columns) > 9 and columns[3] == _LISTENING:
                host, port = columns[1].rsplit(":", 1)
                text = host_of(host)
                yield f"socket:[{columns[9]}]", Address(_ANY.get(text, text), int(port, 16))
    for columns in _rows(proc / "net" / "unix"):
        if len(columns) > 7 and columns[3] == _UNIX_LISTENING and columns[7].startswith("/"):
            yield f"socket:[{columns[6]}]", Address("localhost", 0, socket=columns[7])


def host_of(digits: str) -> str:
    """An address of /proc/net/tcp: 32-bit words in the machine's order (little endian), in hexadecimal."""
    data = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    found = ipaddress.ip_address(data)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _rows(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()[1:]]
    except OSError:
        return []


# -- asking ------------------------------------------------------------------------------------------------------------


async def look_at_all(found: Sequence[Running], keys: Sequence[str]) -> list[Seen]:
    """What each says, asked at the same time."""
    return list(await asyncio.gather(*(look(each, keys) for each in found)))


async def look(process: Running, keys: Sequence[str]) -> Seen:
    """What one says. keys: those that may be its key; one is sent to a server of this user alone."""
    state = "needs a key (--api-key)"
    key: str | None
    for key in (None, *keys):
        try:
            answer = await ask(process.address, "GET", "/api/ps", key=key, seconds=ASK_SECONDS)
        except Unreachable:
            return Seen(process, "does not answer")
        if answer.status == 503:
            return Seen(process, "loading")
        if answer.status == 200:
            break
        if answer.status not in (401, 403):
            state = f"answers {answer.status}"
    else:
        return Seen(process, state)
    (model,) = answer.json()["models"]
    names = await _json(process, "/v1/models", key)
    return Seen(
        process, "ready", tuple(str(each["id"]) for each in names.get("data", ())),
        str(model.get("digest", "")), int(model.get("size", 0)), int(model.get("context_length", 0)),
        *await _load(process, key),
    )  # fmt: skip


async def _json(process: Running, path: str, key: str | None) -> dict[str, Any]:
    try:
        made = (await ask(process.address, "GET", path, key=key, seconds=ASK_SECONDS)).json()
    except Unreachable:
        return {}
    return made if isinstance(made, dict) else {}


async def _load(process: Running, key: str | None) -> tuple[int | None, int | None]:
    """Sequences that run and requests that wait."""
    try:
        text = (await ask(process.address, "GET", "/metrics", key=key, seconds=ASK_SECONDS)).body.decode()
    except (Unreachable, UnicodeDecodeError):
        return None, None
    words = ("running", "waiting")
    values = [re.search(rf"^octavo:num_requests_{word}(?:\{{.*\}})? (\S+)$", text, re.M) for word in words]
    running, waiting = (None if found is None else int(float(found[1])) for found in values)
    return running, waiting


# -- ending ------------------------------------------------------------------------------------------------------------


def end(process: Running, seconds: float, now: bool) -> bool:
    """Ask a server to end (now: without finishing what runs) and wait; whether it has ended. Raises OctavoError where
    it may not be asked."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    except OSError as error:
        raise OctavoError(f"pid {process.pid} cannot be asked to end: {error.strerror}") from None
    try:
        if process.since != next((each.since for each in running() if each.pid == process.pid), process.since):
            return True  # the pid is another process's by now
        for _ in range(2 if now else 1):  # the second one ends what the first would wait for
            try:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            except ProcessLookupError:
                return True
            time.sleep(0.1 if now else 0.0)
        return _ended(handle, seconds)
    finally:
        os.close(handle)


def _ended(handle: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)  # readable once the process is gone
    return bool(poll.poll(seconds * 1000))
