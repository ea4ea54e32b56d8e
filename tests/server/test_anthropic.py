"""The `anthropic` client against a live server of the real model, and the shapes that clients were measured to need."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from octavo.request import Reasoning
from octavo.sampling_params import SamplingParams
from octavo.server.anthropic.messages import _blocks, _end, _Stream
from octavo.server.anthropic.schema import BILLING, COUNT, MESSAGES, chat_request
from octavo.server.dialect import ANTHROPIC, dialect_of
from octavo.server.submit import Gathered
from tests.server.live import CONTEXT, Live
from tests.server.scripted import CALLS, Told, answering

GREEDY: Any = {"temperature": 0, "top_k": 1}  # fields that newer clients no longer name
HELLO: Any = [{"role": "user", "content": "Say hello to my cat."}]
WEATHER: Any = {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def client(live: Live) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


def post(live: Live, path: str = "/v1/messages", **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60, headers={"anthropic-version": "2023-06-01"})


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of a stream; every event has both lines."""
    made = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        made.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return made


# -- bodies and streams ------------------------------------------------------------------------------------------------


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="smol", max_tokens=24, extra_body=GREEDY, messages=HELLO)
    assert answer.id.startswith("msg_") and answer.type == "message" and answer.role == "assistant"
    (block,) = answer.content
    assert block.type == "text" and "hello" in block.text.lower()
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.stop_sequence is None
    usage = answer.usage
    assert usage.output_tokens and usage.input_tokens + (usage.cache_read_input_tokens or 0) > 5
    again = client.messages.create(model="smol", max_tokens=24, extra_body=GREEDY, messages=HELLO)
    assert again.usage.cache_read_input_tokens and again.content == answer.content


def test_a_stream_gives_the_same_message(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "smol", "max_tokens": 24, "extra_body": GREEDY, "messages": HELLO}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        made = stream.get_final_message()
    assert [text] == [block.text for block in whole.content if block.type == "text"]
    assert made.stop_reason == whole.stop_reason
    assert made.usage.output_tokens == whole.usage.output_tokens


async def test_the_asynchronous_client(live: Live) -> None:
    client = anthropic.AsyncAnthropic(base_url=live.url, auth_token="any")
    async with client, client.messages.stream(model="smol", max_tokens=8, messages=HELLO) as stream:
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def test_a_stream_on_the_wire(live: Live) -> None:
    """Every event has its `event:` line, usage stands in the first and the last but one, message_stop is the end."""
    answer = post(live, max_tokens=6, messages=HELLO, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    made = events(answer.text)
    names = [name for name, _ in made]
    assert all(name == data["type"] for name, data in made)
    assert names[:3] == ["message_start", "content_block_start", "ping"] and "content_block_delta" in names
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    message, delta = made[0][1]["message"], made[-2][1]
    assert message["content"] == [] and {"input_tokens", "output_tokens"} <= set(message["usage"])
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 6
    assert all(data["index"] == 0 for name, data in made if name.startswith("content_block"))


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    """The one that ended the answer is named."""
    asked: Any = {"model": "smol", "max_tokens": 60, "extra_body": GREEDY, "messages": HELLO}
    text = client.messages.create(**asked).content[0].text  # type: ignore[union-attr]
    word = text.split()[2]
    answer = client.messages.create(**asked, stop_sequences=["<never>", word], metadata={"user_id": "u"})
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
    assert answer.content[0].text == text[: text.index(word)]  # type: ignore[union-attr]


def test_the_answer_goes_on_from_a_prefill(client: anthropic.Anthropic) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "Hello, dear"}]}]
    answer = client.messages.create(model="smol", max_tokens=8, extra_body=GREEDY, messages=begun)
    assert not answer.content[0].text.startswith("Hello, dear")  # type: ignore[union-attr]


def test_what_such_clients_send_is_taken(live: Live) -> None:
    """Any version and beta, ?beta=true, cache_control, no thinking, a limit beyond the context, tools of theirs."""
    text = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    body = {
        "model": "smol", "max_tokens": 64000, "system": [{"type": "text", "text": BILLING + " cc_version=1"}, text],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "x"}}]}],
        "thinking": {"type": "disabled"}, "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "context_management": {"edits": []}, "service_tier": "auto", "stop_sequences": ["."], "top_k": None,
    }  # fmt: skip
    headers = {"anthropic-version": "2026-10-21", "anthropic-beta": "a-1,b-2", "authorization": "Bearer x"}
    answer = httpx.post(f"{live.url}/v1/messages?beta=true", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200 and answer.json()["type"] == "message"


def test_count_tokens_is_exact(client: anthropic.Anthropic, live: Live) -> None:
    """The number is that of the answer's own usage; the line that changes with every request does not count."""
    system: Any = [{"type": "text", "text": BILLING + " cch=1;"}, {"type": "text", "text": "You are a poet."}]
    counted = client.messages.count_tokens(model="smol", system=system, messages=HELLO).input_tokens
    for number in (2, 3):
        system[0]["text"] = f"{BILLING} cch={number};"
        usage = client.messages.create(model="smol", max_tokens=1, system=system, messages=HELLO).usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted
    assert usage.cache_read_input_tokens
    plain = client.messages.count_tokens(model="smol", system="You are a poet.", messages=HELLO).input_tokens
    assert plain == counted


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["smol", "a/b:c"]
    assert client.models.retrieve("a/b:c").display_name == "a/b:c"


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"model": "claude", "messages": HELLO}, 404, "not_found_error", "smol"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": "x"}, 400, "invalid_request_error", "messages"),
        ({}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error", "messages[0].role"),
        ({"messages": HELLO, "temperature": 2000}, 400, "invalid_request_error", "temperature"),
        ({"messages": HELLO, "thinking": {"type": "deep"}}, 400, "invalid_request_error", "thinking.type"),
        ({"messages": HELLO, "tool_choice": {"type": "tool"}}, 400, "invalid_request_error", "tool_choice.name"),
        ({"messages": HELLO, "tools": [{"name": "x"}]}, 400, "invalid_request_error", "tools[0].input_schema"),
        ({"messages": HELLO, "tools": [{"input_schema": {}}]}, 400, "invalid_request_error", "tools[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400, "invalid_request_error", "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * CONTEXT}]},
            400, "invalid_request_error", f"maximum context length is {CONTEXT} tokens",
        ),
    ],
)  # fmt: skip
def test_errors_have_their_shape(live: Live, body: dict[str, Any], status: int, kind: str, words: str) -> None:
    for stream in (False, True):
        answer = post(live, max_tokens=4, stream=stream, **body)
        told = answer.json()
        assert answer.status_code == status, told
        assert set(told) == {"type", "error", "request_id"} and told["type"] == "error"
        assert told["request_id"] == answer.headers["request-id"]
        assert told["error"]["type"] == kind and words in told["error"]["message"]


def test_errors_of_every_route_of_theirs(live: Live) -> None:
    """Also those that no handler sees: another method, no such route, a body that is too large."""
    for method, path, status in (
        ("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404), ("POST", "/v1/messages/count_tokens", 400)
    ):  # fmt: skip
        answer = httpx.request(method, live.url + path, json={})
        assert answer.status_code == status and answer.json()["type"] == "error"
    large = httpx.post(f"{live.url}/v1/messages", content=b" " * (17 << 20))
    assert large.status_code == 413 and large.json()["error"]["type"] == "request_too_large"


def test_the_client_raises_what_is_meant(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="smol"):
        client.messages.create(model="claude", max_tokens=4, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="smol", max_tokens=0, messages=HELLO)


def test_dialects_go_by_the_path() -> None:
    assert dialect_of("/v1/messages") is dialect_of("/v1/messages/count_tokens") is ANTHROPIC
    assert dialect_of("/v1/messagesx") is not ANTHROPIC


# -- thinking and tools, without a model -------------------------------------------------------------------------------


def test_thinking_and_calls_are_blocks() -> None:
    """Each opened, filled and closed in order; the client's own reader makes the message of them."""
    front: Any = type("Named", (), {"model": "smol"})()
    stream = _Stream(front, Told(CALLS))  # type: ignore[arg-type]
    wire = b"".join([*stream.pieces(0, CALLS[:5]), *stream.pieces(0, CALLS[5:]), stream.last()])
    with answering(wire) as url:
        client = anthropic.Anthropic(api_key="x", base_url=url)
        with client.messages.stream(model="smol", max_tokens=9, messages=HELLO) as read:
            message = read.get_final_message()
    thinking, text, first, second = message.content
    assert thinking.type == "thinking" and thinking.thinking == "Let me look." and thinking.signature
    assert text.type == "text" and text.text == "I ask."
    assert first.type == second.type == "tool_use"
    assert (first.id, first.name, first.input) == ("toolu_a", "weather", {"city": "Ulm"})
    assert (second.id, second.name, second.input) == ("toolu_b", "time", {})
    assert message.stop_reason == "tool_use" and message.usage.output_tokens == 9
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 16)


def test_the_body_says_what_the_stream_says() -> None:
    choice = Gathered()
    for event in CALLS:
        choice.add(event)
    thinking, text, first, second = _blocks(choice)
    assert thinking["thinking"] == "Let me look." and text["text"] == "I ask."
    assert first == {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {"city": "Ulm"}}
    assert second["input"] == {}
    assert _end("tool_calls", None) == {"stop_reason": "tool_use", "stop_sequence": None}


def test_blocks_become_messages() -> None:
    """Calls, results and thinking of earlier turns, and what is asked of the next."""
    body = {
        "model": "smol", "max_tokens": 5, "tools": [WEATHER, {"type": "bash_20250124", "name": "bash"}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"},
        "messages": [
            *HELLO,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True},
                {"type": "text", "text": "And now?"},
            ]},
        ],
    }  # fmt: skip
    llm: Any = type("Defaults", (), {"default_sampling_params": staticmethod(lambda **given: SamplingParams())})()
    chat = chat_request(llm, MESSAGES.decode(json.dumps(body)))
    user, assistant, result, failed, last = chat.messages
    assert user == HELLO[0] and assistant["content"] is None and assistant["reasoning_content"] == "Hm."
    assert assistant["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    ]
    assert result == {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"}
    assert failed["content"] == "" and last == {"role": "user", "content": "And now?"}
    (tool,) = chat.tools
    assert tool["function"]["name"] == "weather" and tool["function"]["parameters"] == WEATHER["input_schema"]
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("required", False)
    assert chat.reasoning == Reasoning(True, "low", 1024)
    named = COUNT.decode(json.dumps({"messages": HELLO, "tool_choice": {"type": "tool", "name": "weather"}}))
    assert chat_request(llm, named).tool_choice == "weather"
