"""Streams and bodies of every kind and dialect held to the rules that clients were measured to need (wire_rules.py)."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from octavo.request import FinishReason
from octavo.server.anthropic.messages import _Stream as MessageStream
from octavo.text.events import Event, Finished, ToolCallDelta
from tests.server import wire_rules
from tests.server.live import Live, events
from tests.server.scripted import CALLS, Told
from tests.server.streams import ANTHROPIC_TOOLS, AS_LISTED, ASK, CITY, NAMED, PERSON, TOOLS, WEATHER
from tests.server.test_tools import wire

HELLO: Any = [{"role": "user", "content": "Say hello to my cat."}]
CUT = [*CALLS[:6], Finished(0, FinishReason.LENGTH)]  # in the midst of the arguments
WHOLE: list[Event] = [ToolCallDelta(0, 0, "call_a", "time", "{}", (1, 2)), Finished(0, FinishReason.TOOL_CALLS)]
REQUIRED = {"messages": ASK, "tools": TOOLS, "tool_choice": "required", "seed": 1, "max_tokens": 90}
FOXES = {"regex": "(🦊|é|世|ß){12}"}  # of characters that are several tokens


def post(live: Live, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    answer = httpx.post(live.url + path, json={"max_tokens": 12, **body}, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


# -- chat --------------------------------------------------------------------------------------------------------------

CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": HELLO},
    "to its end": {"messages": [{"role": "user", "content": "Say only: hi"}], "max_tokens": 200, "temperature": 0},
    "three": {"messages": HELLO, "n": 3, "temperature": 1.0},
    "stopped": {"messages": HELLO, "stop": ["e", "a"], "temperature": 0},
    "log-probabilities": {"messages": HELLO, "logprobs": True, "top_logprobs": 2},
    "a schema": {"messages": HELLO, "response_format": AS_LISTED},
    "required": REQUIRED,
    "named twice": {**REQUIRED, "tool_choice": NAMED, "n": 2},
    "one call": {**REQUIRED, "parallel_tool_calls": False, "logprobs": True},
    "foxes": {"messages": HELLO, "structured_outputs": FOXES, "max_tokens": 60},
    "continued": {"messages": [*HELLO, {"role": "assistant", "content": "Hello, dear"}], "echo": True},
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(live: Live, name: str) -> None:
    """Streamed in each of the ways to ask for usage, and whole: the rules are kept, and all say the same."""
    body = {"seed": 3, **CHATS[name]}
    whole = post(live, "/v1/chat/completions", **body).json()
    wire_rules.chat_body(whole)
    for asked in ({}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        answer = post(live, "/v1/chat/completions", **body, stream=True, stream_options=asked)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
        chunks = wire_rules.chat_stream(answer.text, usage=bool(asked), always=len(asked) == 2)
        assert chunks[0]["system_fingerprint"] == whole["system_fingerprint"]
        for each in whole["choices"]:
            own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == each["index"]]
            deltas = [choice["delta"] for choice in own]
            assert "".join(delta.get("content", "") for delta in deltas) == (each["message"]["content"] or "")
            calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
            for number, call in enumerate(each["message"].get("tool_calls", ())):
                parts = [part["function"]["arguments"] for part in calls if part["index"] == number]
                assert "".join(parts) == call["function"]["arguments"]
            assert own[-1]["finish_reason"] == each["finish_reason"]


@pytest.mark.parametrize("told", [CALLS, CUT, WHOLE], ids=["thinks and calls", "cut in a call", "a call in one piece"])
@pytest.mark.parametrize("asked", [{}, {"include_usage": True}], ids=["", "usage"])
def test_kinds_of_events_that_are_rare(told: list[Event], asked: dict[str, bool]) -> None:
    """Reasoning under both names, a call whose name and arguments come at once, one that is cut."""
    text = wire(told, stream_options=asked).decode()
    if asked:  # the chunk of usage is the stream's, not the shape's
        text = text.replace("data: [DONE]\n\n", "")
        assert all(each["choices"] for each in events(text))
    else:
        wire_rules.chat_stream(text)


def test_letters_of_several_tokens_are_never_split(live: Live) -> None:
    """In every dialect each piece is whole characters."""
    body = {"messages": HELLO, "structured_outputs": FOXES, "max_tokens": 80, "temperature": 1.0}
    for seed in range(3):
        chunks = events(post(live, "/v1/chat/completions", **body, seed=seed, stream=True).text)[:-1]
        pieces = [each["choices"][0]["delta"].get("content", "") for each in chunks]
        assert set("".join(pieces)) <= set("🦊é世ß") and "\ufffd" not in "".join(pieces)
    asked = {"prompt": "x", "grammar": 'root ::= ("🦊" | "é" | "世"){12}', "n_predict": 80, "stream": True}
    pieces = [each["content"] for each in events(post(live, "/completion", **asked).text)]
    assert set("".join(pieces)) <= set("🦊é世")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_that_is_cut_from_outside_has_its_end(live: Live, path: str) -> None:
    """A deadline: each choice has a chunk with its finish_reason all the same, and [DONE] follows."""
    body = {"messages": HELLO} if "chat" in path else {"prompt": "Once"}
    more: dict[str, Any] = {"n": 3, "max_tokens": 900, "ignore_eos": True, "stream": True}
    answer = post(live, path, {"x-request-deadline-ms": "400"}, **body, **more)
    chunks = (wire_rules.chat_stream if "chat" in path else wire_rules.completion_stream)(answer.text)
    ended = {c["index"]: c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]}
    assert set(ended) == {0, 1, 2}


# -- completions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Once"}, {"prompt": ["Once", "Twice"], "n": 2}, {"prompt": "Once", "best_of": 3, "n": 2},
        {"prompt": [[504, 505], [506]], "echo": True, "logprobs": 1}, {"prompt": [504, 505], "logprobs": 0},
        {"prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 1},
    ],
    ids=str,
)  # fmt: skip
def test_completions(live: Live, body: dict[str, Any]) -> None:
    """Texts, lists, ids, lists of ids; answers in order of their index; logprobs as parallel lists."""
    body = {"seed": 3, **body}
    whole = post(live, "/v1/completions", **body).json()
    assert whole["id"].startswith("cmpl-") and whole["object"] == "text_completion"
    wire_rules.openai_usage(whole["usage"])
    assert [each["index"] for each in whole["choices"]] == list(range(len(whole["choices"])))
    chunks = wire_rules.completion_stream(post(live, "/v1/completions", **body, stream=True).text)
    for each in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == each["index"]]
        assert "".join(choice["text"] for choice in own) == each["text"]
        if "logprobs" in body:
            lists = each["logprobs"]
            names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            assert set(lists) == set(names) and len({len(lists[name]) for name in names}) == 1
            chosen = zip(lists["tokens"], lists["top_logprobs"], strict=True)
            assert all(top is None or token in top for token, top in chosen)
            if body.get("echo"):
                assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
            for name in names:
                assert [x for choice in own if choice["logprobs"] for x in choice["logprobs"][name]] == lists[name]
        else:
            assert each["logprobs"] is None


# -- the others --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"input": "Say hello."},
        {"input": "The weather in Paris?", "tools": [{"type": "function", **WEATHER, "parameters": CITY}],
         "tool_choice": "required", "max_output_tokens": 90},
        {"input": "A person.", "text": {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}},
        {"input": "Say hello.", "include": ["message.output_text.logprobs"], "top_logprobs": 1},
    ],
    ids=["text", "functions", "a schema", "log-probabilities"],
)  # fmt: skip
def test_responses(live: Live, body: dict[str, Any]) -> None:
    body = {"max_output_tokens": 12, "seed": 3, **body}
    made = wire_rules.response_stream(post(live, "/v1/responses", **body, stream=True).text)
    whole = post(live, "/v1/responses", **body).json()
    assert whole["id"].startswith("resp_") and made[-1]["response"]["status"] == whole["status"]
    told = [[item.get("content"), item.get("arguments")] for item in whole["output"]]
    assert [[item.get("content"), item.get("arguments")] for item in made[-1]["response"]["output"]] == told
    for item in whole["output"]:
        assert item["id"].startswith({"message": "msg_", "function_call": "fc_"}[item["type"]])


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HELLO},
        {"messages": HELLO, "stop_sequences": ["e"]},
        {"messages": ASK, "tools": ANTHROPIC_TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 90},
    ],
    ids=["text", "stopped", "functions"],
)
def test_messages(live: Live, body: dict[str, Any]) -> None:
    body = {"temperature": 0, **body}
    made = wire_rules.message_stream(post(live, "/v1/messages", **body, stream=True).text)
    whole = post(live, "/v1/messages", **body).json()
    assert made[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    blocks: list[list[str]] = []  # name and text of each
    for event in made:
        if event["type"] == "content_block_start":
            blocks.append([event["content_block"].get("name", ""), ""])
        elif event["type"] == "content_block_delta":
            blocks[-1][1] += event["delta"].get("text", "") + event["delta"].get("partial_json", "")
    told = [[block.get("name", ""), block.get("text") or block["input"]] for block in whole["content"]]
    streamed = [[name, json.loads(text) if name else text] for name, text in blocks]
    assert sorted(map(str, streamed)) == sorted(map(str, told))  # a text behind the calls stands before them there


@pytest.mark.parametrize("told", [CALLS, CUT, WHOLE], ids=["thinks and calls", "cut in a call", "a call in one piece"])
def test_messages_of_rare_kinds(told: list[Event]) -> None:
    front: Any = type("Named", (), {"model": "smol"})()
    shape = MessageStream(front, Told(told))  # type: ignore[arg-type]
    made = wire_rules.message_stream(b"".join([*shape.pieces(0, told), shape.last()]).decode())
    ends = {"tool_use"} if told is not CUT else {"max_tokens"}
    assert made[-2]["delta"]["stop_reason"] in ends


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": HELLO}),
        ("/api/chat", {"messages": HELLO, "tools": [], "think": False, "keep_alive": "5m"}),
        ("/api/chat", {"messages": HELLO, "format": PERSON}),
        ("/api/generate", {"prompt": "Once"}),
    ],
    ids=["chat", "no tools", "a schema", "generate"],
)
def test_ollama(live: Live, path: str, body: dict[str, Any]) -> None:
    """NDJSON without being asked for."""
    options = {"num_predict": 12, "seed": 1}
    answer = post(live, path, **body, options=options)
    assert answer.headers["content-type"] == "application/x-ndjson"
    made = wire_rules.ollama_lines(answer.text, "chat" in path)
    whole = post(live, path, **body, options=options, stream=False).json()
    key = (lambda line: line["message"]["content"]) if "chat" in path else (lambda line: line["response"])
    assert "".join(map(key, made)) == key(whole) and made[-1]["done_reason"] == whole["done_reason"]
    assert made[-1]["eval_count"] == whole["eval_count"]
