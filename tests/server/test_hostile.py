"""Bodies and heads that no client would send: each gets one clear answer, and memory stays within bounds."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest
import uvicorn

from octavo.server import connection, limits
from tests.server.live import Live, error_of, request

SMALL: dict[str, Any] = {"prompt": "a", "max_tokens": 1}


# -- hostile bodies ----------------------------------------------------------------------------------------------------

DEEP = 50_000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "\\ud800"}', b'{"prompt": "a" "b"}',
        b'{"prompt": "a", "max_tokens": %s}' % (b"9" * 5000), b'{"messages": [], "prompt": "a", "n": 1e308}',
        b'{"x": ' + b"[" * DEEP, b'{"x": ' + b'{"a":' * DEEP, b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"prompt": "a", "logit_bias": ' + b'{"1":' * DEEP + b"1" + b"}" * DEEP + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_hostile_bodies(live: Live, path: str, body: bytes) -> None:
    answer = httpx.post(live.url + path, content=body, timeout=20)
    if path == "/tokenize" and body.startswith((b'{"prompt": "a", "temperature": 1e', b'{"prompt": "a", "max_tokens"')):
        assert answer.status_code == 200  # fields that mean nothing here
        return
    assert answer.status_code == 400 and error_of(answer)["type"] == "invalid_request_error"


def test_nested_messages_and_arguments(live: Live) -> None:
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    url = f"{live.url}/v1/chat/completions"
    hello = {"role": "user", "content": "hi"}
    for body, param in (
        ({"messages": [{"role": "user", "content": nested}]}, "messages"),
        ({"messages": [hello], "chat_template_kwargs": {"a": nested}}, "chat_template_kwargs"),
    ):
        answer = httpx.post(url, json=body)
        assert answer.status_code == 400 and error_of(answer)["param"] == param


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" + ",".join(["[]"] * 2_000_000) + "]", "lists and objects"),
        ("[" + ",".join(["[[[{}]]]"] * 900_000) + "]", "lists and objects"),
        ("[" + "1," * 5_000_000 + "1]", "values"),
        ("[" + "1," * 500_000 + "1]", "messages has more than"),
        (json.dumps('{"[,\\' * 500_000), "maximum context length"),  # inside of a text they are no values
    ],
    ids=["lists", "nested", "numbers", "numbers in a message", "text"],
)
def test_more_values_than_are_read(live: Live, content: str, told: str) -> None:
    """Reading a body holds up every stream: 12 MB of empty lists took seconds."""
    body = b'{"messages": [{"role": "user", "content": %b}]}' % content.encode()
    answer = httpx.post(f"{live.url}/v1/chat/completions", content=body, timeout=30)
    assert answer.status_code == 400 and told in error_of(answer)["message"]


@pytest.mark.parametrize("value", [2**31, 2**63, -1, 1e308])
@pytest.mark.parametrize("field", ["n", "best_of", "max_tokens", "logprobs", "prompt_logprobs", "top_k"])
def test_bounds_come_before_any_work(live: Live, field: str, value: float) -> None:
    if (field, value) in (("max_tokens", -1), ("top_k", -1)):
        return  # these mean "no limit"
    before = psutil.Process(live.process.pid).memory_info().rss
    answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", field: value})
    assert answer.status_code == 400 and error_of(answer)["param"] == field
    assert answer.elapsed.total_seconds() < 2
    assert psutil.Process(live.process.pid).memory_info().rss - before < 20 << 20


def test_the_count_of_answers_is_bounded(live: Live) -> None:
    many = {"prompt": ["a"] * (limits.MAX_PROMPTS + 1)}
    assert error_of(httpx.post(f"{live.url}/v1/completions", json=many))["param"] == "prompt"
    many = {"prompt": ["a"] * 200, "n": 100}
    assert error_of(httpx.post(f"{live.url}/v1/completions", json=many))["param"] == "n"


@pytest.mark.parametrize("prompt", ["word " * 2_000_000, [5] * 1_500_000, [[5] * 1_500_000]], ids=type)
def test_prompts_that_cannot_fit_are_not_counted(live: Live, prompt: Any) -> None:
    """Tokenizing 10 MB would take a core for half a minute."""
    answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": prompt}, timeout=30)
    assert answer.status_code == 400 and error_of(answer)["code"] == "context_length_exceeded"
    assert answer.elapsed.total_seconds() < 3
    if isinstance(prompt, str):
        for body in ({"prompt": prompt}, {"content": prompt}):
            refused = httpx.post(f"{live.url}/tokenize", json=body, timeout=30)
            assert refused.status_code == 400 and refused.elapsed.total_seconds() < 3


def test_the_last_of_two_equal_keys_counts(live: Live) -> None:
    body = b'{"prompt": "a", "max_tokens": 5, "max_tokens": 2, "ignore_eos": true}'
    assert httpx.post(f"{live.url}/v1/completions", content=body).json()["usage"]["completion_tokens"] == 2


def test_sizes(live: Live) -> None:
    """A body that is too large as stated, as sent, or once unpacked; memory stays within bounds."""
    process = psutil.Process(live.process.pid)
    before = process.memory_info().rss
    stated = live.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
    assert stated.startswith(b"HTTP/1.1 413") and b"connection: close" in stated.lower()
    chunk = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
    endless = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 20
    assert b"413" in live.raw(endless)[:16]
    bomb = gzip.compress(b" " * (256 << 20), 9)
    assert live.raw(request("/v1/completions", bomb, "Content-Encoding: gzip")).startswith(b"HTTP/1.1 413")
    assert process.memory_info().rss - before < 4 * limits.MAX_BODY


def test_encodings(live: Live) -> None:
    body = json.dumps(SMALL).encode()
    url = f"{live.url}/v1/completions"

    def post(content: bytes, encoding: str) -> httpx.Response:
        return httpx.post(url, content=content, headers={"content-encoding": encoding}, timeout=20)

    assert post(gzip.compress(body), "gzip").status_code == 200
    assert post(zlib.compress(body), "deflate").status_code == 200
    assert post(body, "identity").status_code == 200
    for encoding in ("br", "zstd", "gzip, gzip"):
        assert error_of(post(body, encoding))["code"] == "unsupported_content_encoding"
    assert post(body, "gzip").status_code == 400 and post(gzip.compress(body)[:-12], "gzip").status_code == 400


def test_a_client_that_leaves_within_its_body(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.post(f"{live.url}/v1/completions", json=SMALL).status_code == 200
    assert not any(line.startswith("ERROR") for line in live.lines)


# -- hostile heads -----------------------------------------------------------------------------------------------------


def test_heads_that_are_too_large(live: Live) -> None:
    process = psutil.Process(live.process.pid)
    before = process.memory_info().rss
    for head in (
        b"GET /health HTTP/1.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(10_000)) + b"\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * (8 << 20),  # without an end
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(300)) + b"\r\n",
    ):
        answer = live.raw(head)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431") and b'"error"' in answer
    assert process.memory_info().rss - before < 10 << 20


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http(live: Live, head: bytes) -> None:
    answer = live.raw(head)
    assert answer.startswith(b"HTTP/1.1 400") and b'{"error":{"message"' in answer


def test_a_second_request_after_an_error(live: Live) -> None:
    """The connection goes on, or is closed; answers are never mixed up."""
    bad = b'{"prompt": 5}'
    first = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(bad) + bad
    got = live.raw(first + request("/tokenize", b'{"prompt": "a"}'))
    assert got.count(b"HTTP/1.1 ") == 2 and got.index(b"HTTP/1.1 400") < got.index(b"HTTP/1.1 200")
    assert got.index(b"neither") < got.index(b'"tokens"') if b"neither" in got else b'"prompt"' in got


async def test_a_head_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: the connection has a time limit. Over the protocol itself, with a short limit."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, http=connection.Connection, log_config=None, lifespan="off")
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: connection.Connection(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        slow = b"HTTP/1.1 408"
        for sent, expected in ((b"GET / HT", slow), (b"", b""), (b"GET / HTTP/1.1\r\n\r\nGET / H", slow)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            got = await asyncio.wait_for(reader.read(), 5)
            assert expected in got and (expected or not got)
            writer.close()
            await writer.wait_closed()


async def test_a_body_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps no connection: the limit is for the whole body."""
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)

    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    with pytest.raises(limits.SlowClient) as caught:
        await limits.read_body(drops(), {"content-length": "100000"})
    assert caught.value.status == 408
