"""Who answers `octavo run` and `complete`: an engine in this process, or a server. Both give text as it comes.

They know conversations in OpenAI's shape; they know no terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from octavo.async_llm import AsyncLLM
from octavo.errors import OctavoError
from octavo.flow import items
from octavo.request import ChatRequest
from octavo.sampling_params import SamplingParams
from octavo.text.best_of import Answers
from octavo.text.events import Event, ReasoningDelta, TextDelta
from octavo.text.fim import FillIn

PROBE_SECONDS = 3.0  # where nobody listens that is known at once; a busy server may need a moment
ANSWER_SECONDS = 600.0  # silence after which a server is given up; its comments count as words

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Figures:
    """Of one answer. seconds: from the question to the last token."""

    prompt_tokens: int
    completion_tokens: int
    first_seconds: float
    seconds: float

    def line(self, context: int) -> str:
        """What --stats shows."""
        decoding = self.seconds - self.first_seconds
        rate = (self.completion_tokens - 1) / decoding if self.completion_tokens > 1 and decoding > 0 else 0.0
        used = self.prompt_tokens + self.completion_tokens
        return (
            f"{self.completion_tokens} tok · {rate:,.0f} tok/s · first token {self.first_seconds:.2f} s · "
            f"{used:,}/{context:,} context"
        )


class Thought(str):
    """A piece of reasoning: shown, but no part of the answer."""

    __slots__ = ()


def apart(pieces: Iterable[str]) -> Iterator[str]:
    """The same with an empty line between reasoning and answer."""
    last = ""
    for piece in pieces:
        if isinstance(last, Thought) and not isinstance(piece, Thought):
            yield Thought("\n\n")
        yield piece
        last = piece


class Answering(Protocol):
    """Somebody who answers."""

    model: str
    where: str
    context: int
    last: Figures | None

    def answer(self, messages: Messages, params: Mapping[str, Any]) -> Generator[str]:
        """Pieces of the answer, and Thoughts. params: sampling parameters by name. Closing the iterator ends the
        answer."""

    def complete(self, prompt: str, suffix: str, params: Mapping[str, Any]) -> Generator[str]:
        """Pieces of what follows a text as it stands, or of what stands between it and a suffix."""

    def close(self) -> None:
        """Let go of memory and connections."""


class InProcess:
    """An engine in a thread of this process. The event loop runs only while something is awaited."""

    where = "in-process"

    def __init__(self, options: Mapping[str, Any], progress: Callable[[str, int, int], None]) -> None:
        """options: fields of config.py. Raises what loading raises."""
        from octavo.start import start_in_process

        self._runner = asyncio.Runner()
        try:
            self._llm: AsyncLLM = self._runner.run(start_in_process(None, options, progress))
        except BaseException:
            self._runner.close()
            raise
        self.model = self._llm.info.model_name
        self.context = self._llm.info.max_model_len
        self.last: Figures | None = None

    def answer(self, messages: Messages, params: Mapping[str, Any]) -> Generator[str]:
        sampling = SamplingParams(**{**self._llm.defaults, "max_tokens": None, **params})
        return self._texts(self._llm.submit_chat(ChatRequest(messages, sampling)))

    def complete(self, prompt: str, suffix: str, params: Mapping[str, Any]) -> Generator[str]:
        sampling = SamplingParams(**{**self._llm.defaults, "max_tokens": None, **params})
        if not suffix:
            return self._texts(self._llm.submit(prompt, sampling))
        between = FillIn(self._llm.tokenizer)
        sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *between.stop_ids))
        return self._texts(self._llm.submit(between.ids(prompt, suffix), sampling))

    def _texts(self, submitted: Coroutine[Any, Any, Answers]) -> Generator[str]:
        begin = time.monotonic()
        generation = self._runner.run(submitted)
        events = items(generation)
        first = 0.0
        try:
            while batch := self._runner.run(_next(events)):
                first = first or time.monotonic() - begin
                if thought := "".join(event.text for event in batch if isinstance(event, ReasoningDelta)):
                    yield Thought(thought)
                if text := "".join(event.text for event in batch if isinstance(event, TextDelta)):
                    yield text
        finally:
            self._runner.run(events.aclose())
            usage = generation.usage
            self.last = Figures(usage.prompt_tokens, usage.completion_tokens, first, time.monotonic() - begin)

    def close(self) -> None:
        self._runner.run(self._llm.close())
        self._runner.close()


async def _next(events: Any) -> list[Event]:
    """The next events, none at the end."""
    with contextlib.suppress(StopAsyncIteration):
        made: list[Event] = await anext(events)
        return made
    return []


class Server:
    """A server at `url` (with or without /v1). Made by asking it what it serves."""

    def __init__(self, url: str, model: str | None, key: str | None) -> None:
        """model None: the first that it serves. Raises OctavoError when it does not answer or refuses."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        served = self._get("/v1/models", ANSWER_SECONDS).get("data") or []
        if not served:
            raise OctavoError(f"{self.url} serves no model.")
        chosen = next((each for each in served if each.get("id") == model), served[0])
        self.model = model or str(chosen["id"])
        self.where = f"server {self.url}"
        self.context = int(chosen.get("max_model_len") or 0)
        self.last: Figures | None = None

    def answer(self, messages: Messages, params: Mapping[str, Any]) -> Generator[str]:
        return self._texts("/v1/chat/completions", {"messages": list(messages), **params})

    def complete(self, prompt: str, suffix: str, params: Mapping[str, Any]) -> Generator[str]:
        """A server's completion without max_tokens is 16 tokens long, as OpenAI's: here it goes on to its end."""
        between = {"suffix": suffix} if suffix else {}
        return self._texts("/v1/completions", {"prompt": prompt, "max_tokens": self.context, **between, **params})

    def _texts(self, path: str, body: Mapping[str, Any]) -> Generator[str]:
        begin = time.monotonic()
        body = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}, **body}
        connection = self._connect(ANSWER_SECONDS)
        first = 0.0
        usage: dict[str, int] = {}
        try:
            for chunk in _chunks(self._ask(connection, "POST", path, body)):
                usage = chunk.get("usage") or usage
                if "error" in chunk:
                    raise OctavoError(f"{self.url}: {_message(chunk)}")
                for choice in chunk.get("choices", ()):
                    delta = choice.get("delta") or {}
                    thought = delta.get("reasoning_content") or delta.get("reasoning")
                    text = delta.get("content") or choice.get("text")
                    if thought or text:
                        first = first or time.monotonic() - begin
                    if thought:
                        yield Thought(thought)
                    if text:
                        yield text
        except (OSError, http.client.HTTPException) as error:
            raise OctavoError(f"{self.url} broke off: {error}.") from None
        finally:
            connection.close()
            self.last = Figures(
                usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), first, time.monotonic() - begin
            )

    def close(self) -> None:
        return  # every answer has a connection of its own

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        connection = self._connect(timeout)
        try:
            found = json.loads(self._ask(connection, "GET", path).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise OctavoError(f"no server answers at {self.url}: {error}. Start one: octavo serve") from None
        finally:
            connection.close()
        return found if isinstance(found, dict) else {}

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        return _connection(self.url, timeout)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: object = None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, urlsplit(self.url).path + path, data, headers)
        response = connection.getresponse()
        if response.status >= 400:
            try:
                said = _message(json.loads(response.read()))
            except ValueError:
                said = response.reason
            raise OctavoError(f"{self.url}{path} answers {response.status}: {said}")
        return response


def octavo_at(url: str) -> bool:
    """Whether a server of ours answers there."""
    connection = _connection(url, PROBE_SECONDS)
    try:
        connection.request("GET", "/version")
        response = connection.getresponse()
        found = json.loads(response.read(4096))
        return response.status == 200 and isinstance(found, dict) and found.get("server") == "octavo"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def served_at(url: str, key: str | None) -> list[str]:
    """The names that a server of ours answers to; none if it does not tell."""
    connection = _connection(url, PROBE_SECONDS)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
        return [str(each["id"]) for each in json.loads(connection.getresponse().read())["data"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return []
    finally:
        connection.close()


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OctavoError(f"--url {url}: expected http://HOST:PORT.", exit_code=2)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=timeout)


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in response:
        name, _, data = line.decode("utf-8").rstrip("\r\n").partition(":")
        data = data.strip()
        if name != "data" or not data:
            continue
        if data == "[DONE]":
            return
        made = json.loads(data)
        if isinstance(made, dict):
            yield made


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or body)[:2000]
