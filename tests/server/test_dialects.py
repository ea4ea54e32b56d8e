"""Every error in the shape of its own API, before a stream and inside of one, and what fills a stream's silence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from octavo.errors import (
    EngineDied,
    InvalidRequest,
    ModelNotServed,
    OctavoError,
    QueueFull,
    Unauthorized,
    Unavailable,
)
from octavo.server.dialect import ANTHROPIC, OLLAMA, OPENAI, Dialect, dialect_of
from octavo.server.limits import TooLarge
from octavo.server.sse import EventStream
from tests.server.live import Live, error_of
from tests.server.scripted import answering
from tests.server.test_stream import Scripted, Wire

ERRORS: list[OctavoError] = [
    InvalidRequest("x is wrong.", param="x"), Unauthorized("no key"), ModelNotServed("gpt-4", ("smol",)),
    TooLarge("too large"), QueueFull("full"), Unavailable("loading"), EngineDied("died"), OctavoError("failed"),
]  # fmt: skip
HELLO: Any = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_shapes_of_errors(error: OctavoError) -> None:
    """The fields that each API has, its own words for the kind, and the same status, but for Anthropic's 529."""
    status, body = OPENAI.said(error, "r")
    assert status == error.status and set(body["error"]) == {"message", "type", "param", "code"}
    status, body = ANTHROPIC.said(error, "r")
    assert status == (529 if error.status == 503 else error.status)
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error" and body["request_id"] == "r"
    kinds = {
        400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
        429: "rate_limit_error", 503: "overloaded_error", 500: "api_error",
    }  # fmt: skip
    assert body["error"]["type"] == kinds[error.status] and body["error"]["message"] == error.message
    status, body = OLLAMA.said(error, "r")
    assert status == error.status and set(body) == {"error"} and isinstance(body["error"], str)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI), ("/v1/messages", ANTHROPIC), ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messagesx", OPENAI), ("/api/chat", OLLAMA), ("/api/nothing", OLLAMA), ("/api/v0/models", OPENAI),
        ("/completion", OPENAI), ("/", OPENAI), ("", OPENAI),
    ],
)  # fmt: skip
def test_the_path_says_which_it_is(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


async def streamed(dialect: Dialect, *items: bytes | float | Exception, ping: float = 15.0) -> Wire:
    wire, source = Wire(), Scripted(*items)
    await asyncio.wait_for(EventStream(source, {}, ping, lambda: b"idle\n\n", dialect)({}, wire.receive, wire.send), 10)
    assert source.closed
    return wire


def told(wire: Wire) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in wire.sent[0]["headers"]}


async def test_an_error_in_a_stream_is_raised_by_each_client() -> None:
    """After the first piece of an answer, in the way that its client raises it with its message."""
    died = EngineDied("the engine died", begun=True)
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    wire = await streamed(OPENAI, f"data: {json.dumps(chunk)}\n\n".encode(), died)
    assert wire.body.endswith(b"data: [DONE]\n\n")
    with (
        answering(wire.body) as url,
        openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError, match="the engine died"),
    ):
        list(client.chat.completions.create(model="m", messages=HELLO, stream=True))

    wire = await streamed(ANTHROPIC, b'event: ping\ndata: {"type":"ping"}\n\n', died)
    assert told(wire)["content-type"].startswith("text/event-stream")
    with (
        answering(wire.body) as url,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client_a,
        pytest.raises(anthropic.APIStatusError, match="the engine died"),
    ):
        list(client_a.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True))

    line = json.dumps({"message": {"role": "assistant", "content": "a"}, "done": False}).encode() + b"\n"
    wire = await streamed(OLLAMA, line, died)
    assert told(wire)["content-type"] == "application/x-ndjson"
    with (
        answering(wire.body, "application/x-ndjson") as url,
        ollama.Client(host=url) as client_o,
        pytest.raises(ollama.ResponseError, match="the engine died"),
    ):
        list(client_o.chat("m", HELLO, stream=True))


async def test_silence_is_filled_as_the_format_can() -> None:
    """A comment where there are comments; a line that says nothing where there are none."""
    for dialect, filler in ((OPENAI, b": ping\n\n"), (ANTHROPIC, b": ping\n\n"), (OLLAMA, b"idle\n\n")):
        wire = await streamed(dialect, 0.3, b"end", ping=0.1)
        assert wire.body.startswith(filler) and wire.body.endswith(b"end")


def test_a_key_is_asked_for_in_every_shape(live: Live, tmp_path: Any) -> None:
    """Of a server with a key; the same with a key that is right: bad bodies, unknown routes, wrong methods."""
    server = Live(tmp_path, "--api-key", "sk-1")
    try:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/messages/nothing", "/api/nothing"):
            answer = httpx.post(server.url + path, json={})
            assert answer.status_code == 401 and "API key" in error_of(answer)["message"]
        for path in ("/v1/messages", "/api/chat", "/v1/chat/completions"):
            for content in (b"{", b"[]", b'"x"', b"\xff", b'{"messages": 3}'):
                answer = httpx.post(server.url + path, content=content, headers={"x-api-key": "sk-1"})
                assert answer.status_code == 400 and error_of(answer)["message"]
            answer = httpx.put(server.url + path, headers={"x-api-key": "sk-1"})
            assert answer.status_code == 405 and answer.headers["allow"] == "POST" and error_of(answer)["message"]
    finally:
        assert server.stop() == 0


NESTED = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": NESTED}]}]}),
        ("/v1/messages", {"messages": HELLO, "tools": [{"name": "x", "input_schema": {"a": NESTED}}]}),
        (
            "/v1/messages",
            {"messages": HELLO, "output_config": {"format": {"type": "json_schema", "schema": {"a": NESTED}}}},
        ),
        ("/v1/responses", {"input": [{"type": "unknown", "x": NESTED}]}),
        ("/v1/responses", {"input": "a", "tools": [{"type": "unknown", "x": NESTED}]}),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema", "schema": {"x": NESTED}}}}),
        ("/v1/responses/input_tokens", {"input": [{"role": "user", "content": NESTED}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"a": NESTED}}]}]}),
        ("/api/chat", {"messages": HELLO, "tools": [{"x": NESTED}]}),
        ("/api/chat", {"messages": HELLO, "format": {"x": NESTED}}),
        ("/api/chat", {"messages": HELLO, "options": {"stop": NESTED}}),
        ("/completion", {"prompt": "a", "json_schema": {"x": NESTED}}),
        ("/completion", {"prompt": NESTED}),
        ("/completion", {"prompt": "a", "logit_bias": NESTED}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x", "y": NESTED}]}),
        ("/v1/batches", {"input_file_id": "x", "endpoint": "y", "metadata": {"a": NESTED}}),
    ],
)
def test_what_is_nested_too_deeply_is_refused(live: Live, path: str, body: dict[str, Any]) -> None:
    answer = httpx.post(live.url + path, json=body, timeout=60)
    assert answer.status_code == 400 and error_of(answer)["message"], answer.text
