"""One HTTP call over asyncio: to a server at an address or on a unix socket, read whole.

Enough for asking servers of ours many things at once. It knows no dialect; where every microsecond counts
(bench_client.py) nothing of it is used.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from octavo.errors import ConfigError, OctavoError

MOST_BYTES = 256 << 20  # of an answer: one that is longer is no answer to anything that is asked here


class Unreachable(OctavoError):
    """Nobody answers there, or what comes is no HTTP."""


@dataclass(frozen=True)
class Address:
    """Where a server listens: a host and a port, or a unix socket. prefix: of every path."""

    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    socket: str | None = None

    @classmethod
    def of(cls, url: str) -> Address:
        """Of `http://HOST:PORT[/prefix]` (a /v1 at its end is left out), `HOST:PORT`, or `unix:PATH`; else
        ConfigError."""
        if url.startswith("unix:"):
            return cls("localhost", 0, socket=url.removeprefix("unix:").removeprefix("//"))
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ConfigError(f"{url[:200]}: expected http://HOST:PORT or unix:PATH.", flag="--base-url")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/").removesuffix("/v1"), tls)

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.prefix}"

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection. Raises OSError."""
        if self.socket is not None:
            return await asyncio.open_unix_connection(self.socket)
        context = ssl.create_default_context() if self.tls else None
        return await asyncio.open_connection(self.host, self.port, ssl=context)

    def head(self, method: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        """Of a request whose connection ends with the answer."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {host}:{self.port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


@dataclass(frozen=True)
class Answer:
    """What a server said. Names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """Of an error's body, or its beginning."""
        made = self.json()
        error = made.get("error") if isinstance(made, dict) else None
        told = error.get("message") if isinstance(error, dict) else error
        return str(told or self.body[:300].decode("utf-8", "replace")).strip()


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


async def ask(
    address: Address, method: str, path: str, body: bytes = b"", *, key: str | None = None, seconds: float = 600.0
) -> Answer:
    """Ask and read to the end. Raises Unreachable."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await address.open()
            try:
                writer.write(address.head(method, path, len(body), bearer(key)) + body)
                await writer.drain()
                return await _answer(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise Unreachable(f"{address}{path} does not answer within {seconds:g} s") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"no server answers at {address}: {why}") from None


class _Reading:
    """An answer while it comes: the callbacks of httptools' parser."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


async def _answer(reader: asyncio.StreamReader) -> Answer:
    reading = _Reading()
    parser = httptools.HttpResponseParser(reading)
    first = b""
    while not reading.done and (data := await reader.read(1 << 16)):
        first = first or data
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            raise ValueError(f"what comes is no HTTP: {first[:60]!r}") from None
        if len(reading.body) > MOST_BYTES:
            raise ValueError("the answer is too long")
    # A body of no told length ends with its connection.
    if not reading.done and (not reading.headers or reading.headers.keys() & {"content-length", "transfer-encoding"}):
        raise ValueError("the connection ended before the answer did")
    return Answer(parser.get_status_code(), reading.headers, bytes(reading.body))
