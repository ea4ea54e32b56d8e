"""What chat and completions have in common on the wire: ids, the head of every chunk, usage, timings, logprobs.

Parts that do not change during an answer are encoded once; a token costs the encoding of its text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from octavo.errors import InvalidRequest
from octavo.server.auth import caller
from octavo.server.dialect import DONE
from octavo.server.sse import EventStream
from octavo.server.submit import Answering, Front
from octavo.text.events import Event, LogprobEntry

encode = msgspec.json.Encoder().encode
NOTHING = b"null"


def request_id(prefix: str, given: str | None) -> str:
    """`chatcmpl-…` or `cmpl-…`, with the client's own id where it gave one."""
    return f"{prefix}-{given or secrets.token_hex(12)}"


def receipt(answering: Answering) -> dict[str, str]:
    """Headers that say what repeats the answer."""
    seed = answering.seed
    return {"x-octavo-seed": str(seed) if isinstance(seed, int) else ",".join(map(str, seed))}


def usage(answering: Answering) -> dict[str, Any]:
    """OpenAI's usage, with the details always there."""
    known = answering.usage
    return {
        "prompt_tokens": known.prompt_tokens,
        "completion_tokens": known.completion_tokens,
        "total_tokens": known.total_tokens,
        "prompt_tokens_details": {"cached_tokens": known.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": known.reasoning_tokens},
    }


def timings(answering: Answering) -> dict[str, float]:
    """llama.cpp's timings; ms, tokens per second."""
    known = answering.usage
    first, following, _ = answering.seconds
    computed = known.prompt_tokens - known.cached_tokens
    after = max(0, known.completion_tokens - answering.choices)  # the first tokens come with the prompt's time
    return {
        "cache_n": known.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": round(first * 1e3, 3),
        "prompt_per_second": round(computed / first, 3) if first else 0.0,
        "predicted_n": known.completion_tokens,
        "predicted_ms": round(following * 1e3, 3),
        "predicted_per_second": round(after / following, 3) if following else 0.0,
    }


class Head:
    """The fields that stand in every chunk and body of one answer."""

    def __init__(self, front: Front, answering: Answering, id_: str, kind: str) -> None:
        self.answering = answering
        self._left = answering.choices  # that have not ended
        self.fields: dict[str, Any] = {
            "id": id_,
            "object": kind,
            "created": int(time.time()),
            "model": front.model,
            "system_fingerprint": front.llm.client.info.fingerprint,
        }
        self._open = b"data: " + encode(self.fields)[:-1] + b',"choices":['

    def around(self, before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
        """For each choice what stands around a text in a chunk that says nothing else. before: with the place of the
        choice's index (%d)."""
        return [(self._open + before % index, after + b"]}\n\n") for index in range(self.answering.choices)]

    def chunk(self, choice: bytes, with_usage: bool = False) -> bytes:
        """One event of a stream with one choice (JSON), or none."""
        if with_usage:
            return b"".join((self._open, choice, b'],"usage":', encode(usage(self.answering)), b"}\n\n"))
        return b"".join((self._open, choice, b"]}\n\n"))

    def finish_chunk(self, choice: bytes, usage_follows: bool, with_usage: bool) -> bytes:
        """The last event of a choice. That of the last choice brings timings and seed, unless a chunk of usage does:
        a chunk without choices, which surprises many a program, is only sent to who asked for it."""
        self._left -= 1
        if self._left or usage_follows:
            return self.chunk(choice, with_usage)
        return b"".join((self._open, choice, b"],", encode(self._tail(with_usage))[1:], b"\n\n"))

    def usage_chunk(self) -> bytes:
        """The event after all choices."""
        return self._open + b"]," + encode(self._tail(True))[1:] + b"\n\n"

    def _tail(self, with_usage: bool) -> dict[str, Any]:
        answering = self.answering
        first = {"usage": usage(answering)} if with_usage else {}
        return {**first, "timings": timings(answering), "seed": answering.seed}

    def body(self, choices: Sequence[dict[str, Any]], **more: Any) -> bytes:
        """A whole answer."""
        return encode({**self.fields, "choices": choices, **self._tail(True), **more})


class Chunks:
    """A streamed answer: a Flow of bytes over its events. What comes at once goes out at once.

    pieces: (number of the prompt, its new events) -> chunks. usage: a chunk of it stands at the end.
    """

    def __init__(
        self, answering: Answering, head: Head, pieces: Callable[[int, list[Event]], list[bytes]], usage: bool
    ) -> None:
        self._answering = answering
        self._head = head
        self._pieces = pieces
        self._usage = usage

    @property
    def done(self) -> bool:
        return self._answering.done

    async def start(self, news: Callable[[], None]) -> None:
        await self._answering.start(news)

    def take(self) -> bytes | None:
        batch = self._answering.take()
        if batch is None:
            return None
        made = [piece for prompt, events in batch for piece in self._pieces(prompt, events)]
        if self._answering.done:
            made += (self._head.usage_chunk() if self._usage else b"", DONE)
        return b"".join(made)

    def close(self) -> None:
        self._answering.close()

    def pause(self) -> None:
        self._answering.pause()

    def stream(self, front: Front, request: Request, headers: Mapping[str, str]) -> EventStream:
        """The response, which may be taken up again; a chunk of its head alone says nothing to clients that count
        chunks."""
        reader, idle = front.kept.read(
            self._head.fields["id"], self, caller(request.scope), lambda: self._head.chunk(b"")
        )
        return EventStream(reader, headers, front.config.sse_ping_interval, idle)


async def take_up(request: Request) -> EventStream:
    """Go on with a stream whose connection was lost: ?from=N, the number of its events that have come."""
    front: Front = request.app.state.front
    given = request.query_params.get("from", "0")
    if not given.isdecimal() or len(given) > 9:
        raise InvalidRequest(f"from must be the number of events that have come, got {given[:40]!r}.", param="from")
    front.check_quota()  # a stream that is refused when it has begun to go on would be lost
    reader, idle = front.kept.take_up(request.path_params["id"], int(given), caller(request.scope))
    return EventStream(reader, {}, front.config.sse_ping_interval, idle)


def top(entry: LogprobEntry, most: int) -> list[int]:
    """Ids of the most likely tokens of an entry, the likeliest first; the chosen one only if it is among them."""
    ranked = sorted((logprob.rank or 0, id_) for id_, logprob in entry.items())
    return [id_ for rank, id_ in ranked if 0 < rank <= most][:most]


def prompt_logprobs(entries: Sequence[LogprobEntry | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: null for the first token, then a map of ids."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(id_): {"logprob": each.logprob, "rank": each.rank, "decoded_token": each.decoded_token}
            for id_, each in entry.items()
        }
        for entry in entries
    ]
