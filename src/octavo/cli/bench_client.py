"""Many streams at once, at little cost: while the clock runs bytes are put away with the time at which they came, and
nothing is parsed. What the bytes say is found out afterwards.

It knows server-sent events of OpenAI's two text routes, and no statistics.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.cli.web import Address

DONE = b"data: [DONE]"
TAIL = 64  # bytes at the end of a read in which DONE stands
DATA = re.compile(rb"^data: ?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """One request. Seconds: begin since an arbitrary moment, times of each piece of text since then, latency to the
    last one. error: why it failed; empty where it did not."""

    begin: float
    times: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    text: str
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.times[0] if self.times else 0.0

    @property
    def latency(self) -> float:
        return self.times[-1] if self.times else 0.0

    @property
    def itls(self) -> list[float]:
        """From piece to piece."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Reads(asyncio.Protocol):
    """What came on one connection. `ended` is done when the stream is."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parts: list[bytes] = []
        self.times: list[float] = []

    def data_received(self, data: bytes) -> None:
        self.times.append(time.perf_counter())
        self.parts.append(data)
        tail = data[-TAIL:] if len(data) >= TAIL else b"".join(self.parts[-3:])[-2 * TAIL :]
        if DONE in tail:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass
class Sent:
    """A request under way or done."""

    begin: float
    reads: Reads | None = None
    failure: str = ""

    def outcome(self) -> Outcome:
        """What became of it; parses all that came."""
        if self.reads is None or self.failure:
            return Outcome(self.begin, (), 0, 0, "", self.failure or "no connection")
        return outcome_of(self.begin, self.reads.parts, self.reads.times)


async def send(address: Address, path: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Sent:
    """Ask and wait for the end of the stream."""
    loop = asyncio.get_running_loop()
    sent = Sent(time.perf_counter())
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(seconds):
            if address.socket is not None:
                transport, sent.reads = await loop.create_unix_connection(Reads, address.socket)
            else:
                context = ssl.create_default_context() if address.tls else None
                transport, sent.reads = await loop.create_connection(Reads, address.host, address.port, ssl=context)
            transport.write(address.head("POST", path, len(body), headers) + body)
            await sent.reads.ended
    except TimeoutError:
        sent.failure = f"no answer within {seconds:g} s"
    except OSError as error:
        sent.failure = f"no connection: {error.strerror or error}"
    finally:
        if transport is not None:
            transport.abort()
    return sent


def outcome_of(begin: float, parts: list[bytes], times: list[float]) -> Outcome:
    """What the bytes of an answer say."""
    ends, at = [], 0
    for part in parts:
        at += len(part)
        ends.append(at)
    raw = b"".join(parts)
    head, _, rest = raw.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = words[1].decode("latin-1") if len(words) > 1 else "nothing"
    if status != "200":
        return Outcome(begin, (), 0, 0, "", f"{status}: {_said(rest)}")
    came: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    done = False
    for data, end in _events(head, rest):
        if data == b"[DONE]":
            done = True
            break
        try:
            chunk = json.loads(data)
        except ValueError:
            return Outcome(begin, (), 0, 0, "", f"a broken event: {data[:100]!r}")
        if "error" in chunk:
            return Outcome(begin, (), 0, 0, "", str(chunk["error"])[:300])
        usage = chunk.get("usage") or usage
        if text := _text(chunk):
            texts.append(text)
            moment = times[bisect_left(ends, len(head) + 4 + end)]
            came.append(moment - begin)
    if not done:
        return Outcome(begin, (), 0, 0, "", "the stream broke off")
    made = int(usage.get("completion_tokens") or len(texts))
    return Outcome(begin, tuple(came), int(usage.get("prompt_tokens") or 0), made, "".join(texts))


def _text(chunk: Mapping[str, Any]) -> str:
    """Of all choices of a chunk: text, reasoning, arguments of calls."""
    made = []
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        calls = [call.get("function", {}).get("arguments") or "" for call in delta.get("tool_calls") or ()]
        made += [choice.get("text") or "", thought, delta.get("content") or "", *calls]
    return "".join(made)


def _events(head: bytes, rest: bytes) -> Iterator[tuple[bytes, int]]:
    """The data of each event, and up to which byte of `rest` it had come."""
    buffer = b""
    for piece, end in _pieces(head, rest):
        buffer += piece.replace(b"\r\n", b"\n")
        while (at := buffer.find(b"\n\n")) >= 0:
            for data in DATA.findall(buffer[:at]):
                yield data, end
            buffer = buffer[at + 2 :]


def _pieces(head: bytes, rest: bytes) -> Iterator[tuple[bytes, int]]:
    """The body without the lengths of its chunks, and where each piece ends."""
    if b"transfer-encoding: chunked" not in head.lower():
        yield rest, len(rest)
        return
    at = 0
    while (line := rest.find(b"\r\n", at)) >= 0:
        try:
            length = int(rest[at:line].split(b";")[0], 16)
        except ValueError:
            return
        if not length:
            return
        at = line + 2 + length + 2
        yield rest[line + 2 : line + 2 + length], min(line + 2 + length, len(rest))


def _said(body: bytes) -> str:
    """An error's message."""
    found = re.search(rb"\{.*\}", body, re.DOTALL)
    try:
        error = json.loads(found[0])["error"] if found else body.decode("utf-8", "replace")
    except (ValueError, KeyError, TypeError):
        error = body.decode("utf-8", "replace")
    return str(error.get("message") if isinstance(error, dict) else error)[:300]
