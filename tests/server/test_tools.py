"""Functions and reasoning over HTTP: the shapes of conventions that clients were measured to need, and a real model.

Without an engine the events are given, the wire is ours and the reader is the openai client. With Qwen2.5-Coder the
calls are the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from octavo.server.openai.chat import _Shape
from octavo.server.openai.schema import CHAT
from octavo.text.events import Event
from tests import real
from tests.server.live import Live, error_of, events
from tests.server.scripted import CALLS, Told, answering

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "additionalProperties": False},
    },
}
NONE = {"arguments": ""}
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris right now? Use the function."}]


def shape(told: list[Event], **body: Any) -> _Shape:
    """What /v1/chat/completions makes of events."""
    info: Any = type("Info", (), {"fingerprint": "octavo-n1-0123456789ab"})()
    tokenizer: Any = type("Tokens", (), {"token_bytes": staticmethod(lambda id_: b"x")})()
    llm: Any = type("Named", (), {"tokenizer": tokenizer, "client": type("Client", (), {"info": info})()})()
    front: Any = type("Named", (), {"model": "smol", "llm": llm})()
    return _Shape(front, CHAT.decode(json.dumps({"messages": HELLO, **body})), Told(told))  # type: ignore[arg-type]


def wire(told: list[Event], **body: Any) -> bytes:
    made = shape(told, stream=True, **body)
    return b"".join(made._pieces(0, told[:5]) + made._pieces(0, told[5:])) + b"data: [DONE]\n\n"


# -- shapes, without a model -------------------------------------------------------------------------------------------


def test_deltas_have_the_keys_that_clients_need() -> None:
    """Role first; a call's first delta has index, id, type, name and empty arguments, the others index and arguments
    alone; reasoning under both names; no empty delta; a finish_reason."""
    chunks = [each["choices"][0] for each in events(wire(CALLS).decode()) if each != "[DONE]"]
    first, *deltas = [each["delta"] for each in chunks]
    assert first == {"role": "assistant", "content": ""}
    assert deltas == [
        {"reasoning_content": "Let me ", "reasoning": "Let me "},
        {"reasoning_content": "look.", "reasoning": "look."},
        {"content": "I "},
        {"content": "ask."},
        {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", **NONE}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Ulm"}'}}]},
        {"tool_calls": [{"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", **NONE}}]},
        {},
    ]  # fmt: skip
    assert chunks[-1]["finish_reason"] == "tool_calls" and all(each["finish_reason"] is None for each in chunks[:-1])


def test_the_openai_client_reads_the_stream() -> None:
    """Iterating, and through its own helper, which is the strictest reader of all."""
    with answering(wire(CALLS)) as url:
        client = openai.OpenAI(api_key="x", base_url=f"{url}/v1")
        tools = [WEATHER]
        with client.chat.completions.stream(model="smol", messages=HELLO, tools=tools) as stream:
            message = stream.get_final_completion().choices[0].message
        arguments = ""
        for chunk in client.chat.completions.create(model="smol", messages=HELLO, tools=tools, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                arguments += call.function.arguments or "" if call.index == 0 and call.function else ""
    assert message.content == "I ask." and arguments == '{"city": "Ulm"}'
    assert message.tool_calls is not None
    assert [(each.id, each.function.name) for each in message.tool_calls] == [("call_a", "weather"), ("call_b", "time")]


def test_what_is_refused(live: Live) -> None:
    for body, param in (
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 7}}]}, "tools[0].function.parameters"),
        ({"tools": "all"}, "tools"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"exclude": 1}}, "reasoning.exclude"),
        ({"thinking_token_budget": "many"}, "thinking_token_budget"),
    ):
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, **body})
        assert answer.status_code == 400 and error_of(answer)["param"] == param, body
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"properties": deep}
    body = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": deep}}}]}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, **body})
    assert answer.status_code == 400 and error_of(answer)["param"] == "tools"


def test_a_model_without_functions_is_told_in_words(live: Live) -> None:
    """SmolLM2's template has no place for them: the summary and a header of the answer say so."""
    assert any("functions: told in words" in line for line in live.lines)
    body = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
    given = httpx.post(f"{live.url}/v1/chat/completions", json={**body, "tools": [WEATHER]}, timeout=60)
    assert given.status_code == 200 and given.headers["x-octavo-tools"] == "fallback"
    plain = httpx.post(f"{live.url}/v1/chat/completions", json=body)
    assert "x-octavo-tools" not in plain.headers
    assert given.json()["usage"]["prompt_tokens"] > plain.json()["usage"]["prompt_tokens"] + 100
    asks = {"reasoning_effort": "low", "reasoning": {"max_tokens": 9, "exclude": True}, "include_reasoning": False}
    told = httpx.post(f"{live.url}/v1/chat/completions", json={**body, **asks, "thinking_token_budget": 5})
    assert told.status_code == 200  # a model that does not reason has nothing to leave out
    assert told.json()["choices"][0]["message"]["content"] == plain.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_that_are_asked_for_always_parse(live: Live, choice: Any) -> None:
    """Of a model that cannot call, hot: streamed and whole, the arguments follow the schema."""
    client = openai.OpenAI(api_key="x", base_url=f"{live.url}/v1")
    for seed in range(4):
        given: dict[str, Any] = {
            "model": "smol", "messages": QUESTION, "tools": [WEATHER, TIME], "tool_choice": choice, "seed": seed,
            "temperature": 1.2, "max_tokens": 120, "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.chat.completions.create(**given).choices[0]
        with client.chat.completions.stream(**given) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert whole.message.tool_calls and streamed.message.tool_calls
        (call,), (again,) = whole.message.tool_calls, streamed.message.tool_calls
        assert call.function.arguments == again.function.arguments and whole.message.content is None
        if whole.finish_reason == "length":
            continue
        arguments = json.loads(call.function.arguments)
        if isinstance(choice, dict) or call.function.name == "get_weather":
            assert isinstance(arguments["city"], str) and set(arguments) <= {"city", "unit"}
        assert whole.finish_reason == streamed.finish_reason == "tool_calls"


# -- a model that calls ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(
        tmp_path_factory.mktemp("state"), "--max-model-len", "4096", "--kv-cache-memory", "512MiB",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", model=Path(real.qwen_half_b()),
    )  # fmt: skip
    yield server
    assert server.stop() == 0


@pytest.mark.slow
def test_qwen_calls_a_function_and_reads_its_result(qwen: Live) -> None:
    """Streamed and whole say the same; the result goes back, and the model answers in words."""
    assert any("functions: hermes" in line for line in qwen.lines)
    client = openai.OpenAI(api_key="x", base_url=f"{qwen.url}/v1")
    given: dict[str, Any] = {"model": "default", "temperature": 0, "max_tokens": 200, "seed": 1, "tools": [WEATHER]}
    whole = client.chat.completions.create(messages=QUESTION, **given)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls" and message.content is None and message.tool_calls
    (call,) = message.tool_calls
    assert call.id.startswith("call_") and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"
    with client.chat.completions.stream(messages=QUESTION, **given) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "cloudless"}'}
    history = [*QUESTION, message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(messages=history, **{**given, "tool_choice": "none"})
    assert "21" in (after.choices[0].message.content or "") and after.choices[0].finish_reason == "stop"


@pytest.mark.slow
def test_tokens_and_logprobs_of_a_call_are_complete(qwen: Live) -> None:
    """usage counts every token, each stands in one chunk's logprobs, and with one call allowed nothing is behind it."""
    body = {
        "messages": QUESTION, "temperature": 0, "max_tokens": 200, "tools": [WEATHER], "logprobs": True,
        "parallel_tool_calls": False,
    }  # fmt: skip
    whole = httpx.post(f"{qwen.url}/v1/chat/completions", json=body, timeout=120).json()
    text = httpx.post(f"{qwen.url}/v1/chat/completions", json={**body, "stream": True}, timeout=120).text
    chunks = [each["choices"][0] for each in events(text) if each != "[DONE]" and each["choices"]]
    told = [entry for each in chunks if each["logprobs"] for entry in each["logprobs"]["content"]]
    assert told == whole["choices"][0]["logprobs"]["content"]
    assert len(told) == whole["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in told).rstrip().endswith(("}", "</tool_call>"))
    qwen.wait_idle()
