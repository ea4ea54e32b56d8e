"""The `ollama` client against a live server of the real model, on a second address as programs for Ollama find it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama
import pytest

from octavo.request import Reasoning
from octavo.sampling_params import SamplingParams
from octavo.server.ollama import schema
from octavo.server.ollama.lines import Lines
from octavo.server.submit import Gathered
from tests.server.live import CONTEXT, Live, error_of
from tests.server.scripted import CALLS, Told

HELLO: Any = [{"role": "user", "content": "Say hello to my cat."}]
GREEDY: Any = {"temperature": 0, "num_predict": 12}
FIGURES = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, str]]:
    """A server on two addresses, and the second one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = Live(tmp_path_factory.mktemp("second"), "--also-listen", address)
    yield server, f"http://{address}"
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[ollama.Client]:
    with ollama.Client(host=live.url) as made:
        yield made


def post(live: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(each) for each in answer.text.splitlines()]


# -- chat and generate -------------------------------------------------------------------------------------------------


def test_chat(client: ollama.Client) -> None:
    answer = client.chat("smol", HELLO, options=GREEDY)
    assert answer.message.role == "assistant" and "hello" in (answer.message.content or "").lower()
    assert answer.done and answer.done_reason == "length" and answer.eval_count == 12
    assert answer.prompt_eval_count and answer.total_duration and answer.prompt_eval_duration
    seconds = answer.total_duration / 1e9
    assert 1e-4 < seconds < 60, "durations are nanoseconds"
    streamed = "".join(part.message.content or "" for part in client.chat("smol", HELLO, options=GREEDY, stream=True))
    assert streamed == answer.message.content


def test_generate(client: ollama.Client) -> None:
    """Through the template, with a system message, raw, and going on from the ids of an answer."""
    answer = client.generate("smol", "Say hello to my cat.", options=GREEDY)
    assert answer.response and answer.response == client.chat("smol", HELLO, options=GREEDY).message.content
    raw = client.generate("smol", "Once upon a time", raw=True, options=GREEDY, stream=True)
    *parts, last = raw
    assert "".join(part.response or "" for part in parts) and last.done and last.eval_count == 12
    other = client.generate("smol", "Say hello to my cat.", system="You are a pirate.", options=GREEDY)
    assert (other.prompt_eval_count, answer.prompt_eval_count) == (other.prompt_eval_count, answer.prompt_eval_count)
    assert answer.context and len(answer.context) == (answer.prompt_eval_count or 0) + 12
    going_on = client.generate("smol", "And my dog.", context=answer.context, options=GREEDY)
    assert (going_on.prompt_eval_count or 0) > len(answer.context)


async def test_the_asynchronous_client(live: Live) -> None:
    async with ollama.AsyncClient(host=live.url) as client:
        stream = await client.chat("smol", HELLO, options=GREEDY, stream=True)
        assert [part.done async for part in stream][-1] is True


def test_lines_on_the_wire(live: Live) -> None:
    """A stream unless told otherwise; each line has a time; the last one the figures; `tools: []` changes nothing."""
    *parts, last = lines(post(live, "/api/chat", model="smol:latest", messages=HELLO, tools=[], options=GREEDY))
    assert parts and all(part["done"] is False and part["message"]["role"] == "assistant" for part in parts)
    assert all(part["message"]["content"] for part in parts) and last["message"]["content"] == ""
    assert last["done"] is True and last["done_reason"] == "length" and last["model"] == "smol:latest"
    assert all(isinstance(last[name], int) for name in FIGURES)
    for each in (*parts, last):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", each["created_at"])
        datetime.fromisoformat(each["created_at"])
    whole = post(live, "/api/generate", model="smol", prompt="Hi", stream=False, options=GREEDY)
    assert whole.headers["content-type"].startswith("application/json") and whole.json()["done"] is True


def test_the_stop_of_an_answer(client: ollama.Client) -> None:
    text = client.chat("smol", HELLO, options=GREEDY).message.content or ""
    word = text.split()[1]
    cut = client.chat("smol", HELLO, options={**GREEDY, "stop": [word]})
    assert cut.done_reason == "stop" and cut.message.content == text[: text.index(word)]


def test_seeds_repeat_an_answer(client: ollama.Client) -> None:
    asked = {"seed": 5, "num_predict": 16}
    first, again = (client.chat("smol", HELLO, options=asked).message.content for _ in range(2))
    assert first == again
    assert len({client.chat("smol", HELLO, options={"num_predict": 16}).message.content for _ in range(4)}) > 1


def test_log_probabilities(client: ollama.Client) -> None:
    for stream in (False, True):
        made: Any = client.chat("smol", HELLO, options=GREEDY, logprobs=True, top_logprobs=2, stream=stream)
        entries = [entry for part in (made if stream else [made]) for entry in part.logprobs or ()]
        assert len(entries) == 12 and all(len(entry.top_logprobs) == 2 for entry in entries)
        assert all(entry.logprob == pytest.approx(entry.top_logprobs[0].logprob) for entry in entries)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_an_empty_prompt_loads(live: Live, path: str) -> None:
    for keep_alive, reason in ((None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0", "unload")):
        for stream in (False, True):
            body = {"model": "smol", "messages": [], "keep_alive": keep_alive, "stream": stream}
            told = json.loads(post(live, path, **body).text)
            assert told["done"] is True and told["done_reason"] == reason


# -- what is sent ------------------------------------------------------------------------------------------------------


class Defaults:
    """An AsyncLLM as far as bodies need it."""

    info: Any = type("Info", (), {"max_model_len": CONTEXT})

    def __init__(self, **defaults: Any) -> None:
        self.defaults = defaults


def params(defaults: Any = None, **body: Any) -> SamplingParams:
    made = schema.CHAT.decode(json.dumps(body))
    return schema.sampling(Defaults(**(defaults or {})), made)  # type: ignore[arg-type]


def test_defaults_are_those_of_ollama() -> None:
    made = params()
    assert (made.temperature, made.top_k, made.top_p) == (0.8, 40, 0.9)
    assert (made.repetition_penalty, made.repeat_last_n, made.max_tokens, made.seed) == (1.0, 64, None, None)
    assert params({"temperature": 0.3}).temperature == 0.3, "the model's own stand over them"
    given = params({"temperature": 0.3}, options={"temperature": 0.5, "num_predict": -1, "num_ctx": 8192, "stop": "a"})
    assert (given.temperature, given.max_tokens, given.stop) == (0.5, None, ("a",))
    assert params(options={"num_predict": 7, "seed": 3, "repeat_penalty": 1.1, "numa": False}).max_tokens == 7
    formats = [params(format=each).structured_outputs for each in ("", None, "json", {"type": "object"})]
    assert formats[:2] == [None, None] and formats[2] and formats[2].json_object
    assert formats[3] and formats[3].json == '{"type":"object"}'


def test_a_context_beyond_the_server_s_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """And used up to what there is."""
    params(options={"num_ctx": CONTEXT})
    assert not caplog.records
    params(options={"num_ctx": 131072})
    assert "num_ctx 131072" in caplog.text and str(CONTEXT) in caplog.text


def test_thinking() -> None:
    asked = [schema.reasoning(each) for each in (None, True, False, "high", "false")]
    assert asked == [Reasoning(), Reasoning(True), Reasoning(False), Reasoning(True, "high"), Reasoning(False)]


def test_messages_become_a_conversation() -> None:
    """Arguments are objects; results name their tool; thinking comes back."""
    body = schema.CHAT.decode(json.dumps({"messages": [
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "Hm.", "images": None,
         "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}]},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
    ], "tools": [{"type": "function", "function": {"name": "weather"}}], "think": True}))  # fmt: skip
    chat = schema.chat_request(Defaults(), body)  # type: ignore[arg-type]
    user, assistant, result = chat.messages
    assert user == HELLO[0] and assistant["thinking"] == "Hm." and assistant["content"] is None
    function = {"name": "weather", "arguments": {"city": "Ulm"}}
    assert assistant["tool_calls"] == [{"id": "call_0", "type": "function", "function": function}]
    assert result == {"role": "tool", "content": "rain", "name": "weather"}
    assert chat.reasoning == Reasoning(True) and len(chat.tools) == 1


def test_thinking_and_calls_are_lines() -> None:
    """A call stands whole in one line, its arguments an object; the body says the same."""
    told: Any = Told(CALLS)
    told.generations = [type("One", (), {"prompt": type("Prompt", (), {"token_ids": (1, 2)})()})()]
    front: Any = type("Named", (), {"llm": type("L", (), {"tokenizer": type("T", (), {"token_bytes": None})()})()})()
    made = Lines(front, told, "smol", True)
    wire = b"".join([*made.pieces(0, CALLS[:6]), *made.pieces(0, CALLS[6:]), made.last()])
    parts = [ollama.ChatResponse(**json.loads(each)) for each in wire.splitlines()]
    assert "".join(part.message.thinking or "" for part in parts) == "Let me look."
    assert "".join(part.message.content or "" for part in parts) == "I ask."
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    told_calls = [(call.function.name, call.function.arguments) for call in calls]
    assert told_calls == [("weather", {"city": "Ulm"}), ("time", {})]
    assert [part.done for part in parts] == [False] * 6 + [True] and parts[-1].done_reason == "stop"
    assert (parts[-1].prompt_eval_count, parts[-1].eval_duration) == (20, 500_000_000)
    choice = Gathered()
    for event in CALLS:
        choice.add(event)
    body = ollama.ChatResponse(**Lines(front, told, "smol", True).whole(choice))
    assert body.message.thinking == "Let me look." and len(body.message.tool_calls or ()) == 2


# -- the model ---------------------------------------------------------------------------------------------------------


def test_names_and_places(live: Live, client: ollama.Client) -> None:
    listed = client.list().models
    assert [model.model for model in listed] == ["smol:latest", "a/b:c"]
    model = listed[0]
    assert model.size and model.size > 50e6 and re.fullmatch("[0-9a-f]{64}", model.digest or "")
    assert model.details and model.details.format == "gguf" and model.details.quantization_level == "Q4_1"
    (running,) = client.ps().models
    assert running.context_length == CONTEXT and running.size_vram == 0
    assert running.expires_at and running.expires_at > datetime.now(UTC)
    for path in ("/api/tags", "/api/version"):
        head = httpx.head(live.url + path)
        assert head.status_code == 200 and head.text == ""
    assert re.fullmatch(r"\d+\.\d+\.\d+", httpx.get(f"{live.url}/api/version").json()["version"])


def test_show(live: Live, client: ollama.Client) -> None:
    shown = client.show("smol")
    assert shown.capabilities and "completion" in shown.capabilities
    assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == CONTEXT
    assert "<|im_start|>" in (shown.template or "") and "stop" in (shown.parameters or "")
    assert post(live, "/api/show", name="smol").json()["details"]["family"] == "llama"
    verbose = post(live, "/api/show", model="smol", verbose=True).json()
    assert {"name", "type", "shape"} == set(verbose["tensors"][0])


def test_pull_copy_and_delete(live: Live, client: ollama.Client) -> None:
    """What is there is there at once; a name that nobody has is told in a line; the served model stays."""
    assert client.pull("smol").status == "success"
    assert [part.status for part in client.pull("smol", stream=True)][-1] == "success"
    last = lines(post(live, "/api/pull", model="no-such-model-anywhere"))[-1]
    assert set(last) == {"error"} and "no-such-model-anywhere" in last["error"]
    for path in ("/etc/passwd", "./setup.py", "~/x", "pyproject.toml"):
        refused = post(live, "/api/pull", model=path, stream=False)
        assert refused.status_code == 404 and "no model named" in error_of(refused)["message"]
    with pytest.raises(ollama.ResponseError, match="being served"):
        client.delete("smol")
    with pytest.raises(ollama.ResponseError):
        client.delete("no-such-model-anywhere")


def test_a_copy_is_a_second_name(second: tuple[Live, str]) -> None:
    server, address = second
    with ollama.Client(host=address) as client:
        assert client.copy(client.list().models[0].model or "", "gpt-4").status == "success"
        assert client.chat("gpt-4", HELLO, options=GREEDY).model == "gpt-4"
        assert "gpt-4:latest" in [model.model for model in client.list().models]
    evil = httpx.post(f"{address}/api/copy", json={}, headers={"origin": "https://evil.example"})
    assert evil.status_code == 403 and "evil.example" in evil.json()["error"]
    assert httpx.get(f"{server.url}/health").status_code == httpx.get(f"{address}/health").status_code == 200
    assert f"also: {address}" in server.log


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "llama9", "messages": HELLO}, 404, "model 'llama9' not found"),
        ("/api/chat", {"model": "smol", "messages": "x"}, 400, "messages"),
        ("/api/chat", {"messages": HELLO, "options": {"temperature": -1}}, 400, "temperature"),
        ("/api/chat", {"messages": HELLO, "options": {"num_predict": "x"}}, 400, "num_predict"),
        ("/api/chat", {"messages": HELLO, "keep_alive": "soon"}, 400, "keep_alive"),
        ("/api/chat", {"messages": HELLO, "format": "yaml"}, 400, "format"),
        ("/api/chat", {"messages": HELLO, "think": "deep"}, 400, "think"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}, 400, "images"),
        ("/api/generate", {"prompt": "word " * CONTEXT}, 400, "maximum context length"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, 400, "template"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"name": "llama9"}, 404, "not found"),
        ("/api/embed", {"input": "x"}, 400, "generates text"),
        ("/api/nothing", {}, 404, "no route"),
    ],
)
def test_errors_are_a_word(live: Live, path: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = post(live, path, **body)
    assert answer.status_code == status and set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


def test_an_error_in_a_stream_is_a_line(client: ollama.Client) -> None:
    """The client raises it."""
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.chat("llama9", HELLO, stream=True))
