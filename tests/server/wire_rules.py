"""What streams and bodies must have, and must not, for the clients that were measured: the rules as code.

Each function takes what came over the wire, and fails with the rule that it breaks. docs/conventions.md says which
client breaks otherwise.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

TIMINGS = {
    "cache_n", "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second",
}  # fmt: skip
FINGERPRINT = re.compile(r"octavo-n\d+-[0-9a-f]{12}")
REASONS = {"stop", "length", "tool_calls", "content_filter", "abort"}


def chat_stream(text: str, *, usage: bool = False, always: bool = False) -> list[dict[str, Any]]:
    """A stream of /v1/chat/completions -> its chunks. usage, always: include_usage, continuous_usage_stats."""
    chunks = _openai_stream(text, "chat.completion.chunk", "chatcmpl-", usage, always)
    by_choice: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            by_choice.setdefault(choice["index"], []).append(choice)
    assert by_choice
    for first, *rest in by_choice.values():
        assert first["delta"]["role"] == "assistant" and first["delta"]["content"] is not None
        assert [bool(each["finish_reason"]) for each in (first, *rest)] == [False] * len(rest) + [True]
        assert rest[-1]["finish_reason"] in REASONS and rest[-1]["delta"] == {}
        called: set[int] = set()
        for each in rest[:-1]:
            _chat_delta(each["delta"], called)
        assert (rest[-1]["finish_reason"] == "tool_calls") <= bool(called)
    return chunks


def _chat_delta(delta: dict[str, Any], called: set[int]) -> None:
    """A delta behind the first one: it says something, and nothing is null."""
    assert delta and None not in delta.values() and "role" not in delta
    assert delta.get("content", "x") and delta.get("reasoning_content", "x")
    assert delta.get("reasoning_content") == delta.get("reasoning")
    for call in delta.get("tool_calls", ()):
        assert isinstance(call["function"]["arguments"], str)
        if call["index"] in called:
            assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
        else:
            assert call["type"] == "function" and call["id"].startswith("call_") and call["function"]["name"]
            called.add(call["index"])


def completion_stream(text: str, *, usage: bool = False, always: bool = False) -> list[dict[str, Any]]:
    """A stream of /v1/completions -> its chunks."""
    chunks = _openai_stream(text, "text_completion", "cmpl-", usage, always)
    ended = [each["index"] for chunk in chunks for each in chunk["choices"] if each["finish_reason"]]
    assert sorted(ended) == list(range(len(ended))) and ended
    assert all(isinstance(each["text"], str) for chunk in chunks for each in chunk["choices"])
    return chunks


def _openai_stream(text: str, kind: str, prefix: str, usage: bool, always: bool) -> list[dict[str, Any]]:
    """Comments and data alone, one head for all chunks, [DONE] last; usage where it was asked for."""
    lines = text.split("\n")
    assert "\r" not in text and all(each == "" or each.startswith(("data: ", ": ")) for each in lines)
    *data, done = [each.removeprefix("data: ") for each in lines if each.startswith("data: ")]
    assert done == "[DONE]" and text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(each) for each in data]
    heads = [
        {name: chunk[name] for name in ("id", "object", "created", "model", "system_fingerprint")} for chunk in chunks
    ]
    assert heads == heads[:1] * len(heads) and heads[0]["object"] == kind and heads[0]["id"].startswith(prefix)
    assert type(heads[0]["created"]) is int and FINGERPRINT.fullmatch(heads[0]["system_fingerprint"])
    told = [chunk.get("usage") for chunk in chunks]
    silent = told if not usage else told[:-1]
    assert all(silent) if always else not any(silent)
    assert [chunk["choices"] == [] for chunk in chunks] == [False] * (len(chunks) - usage) + [True] * usage
    for each in filter(None, told):
        openai_usage(each)
    assert set(chunks[-1]["timings"]) == TIMINGS and isinstance(chunks[-1]["seed"], int | list)
    return chunks


def openai_usage(told: dict[str, Any]) -> None:
    """With its details always, and a sum that is one."""
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    assert isinstance(told["prompt_tokens_details"]["cached_tokens"], int)
    assert isinstance(told["completion_tokens_details"]["reasoning_tokens"], int)


def chat_body(body: dict[str, Any]) -> None:
    """An answer of /v1/chat/completions that is not streamed."""
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-") and type(body["created"]) is int
    assert FINGERPRINT.fullmatch(body["system_fingerprint"]) and set(body["timings"]) == TIMINGS
    openai_usage(body["usage"])
    for index, choice in enumerate(body["choices"]):
        message = choice["message"]
        assert choice["index"] == index and choice["finish_reason"] in REASONS and "logprobs" in choice
        assert message["role"] == "assistant" and message["refusal"] is None
        if "tool_calls" not in message:
            assert isinstance(message["content"], str)
            continue
        assert message["content"] is None or message["content"]
        assert message["tool_calls"]
        for call in message["tool_calls"]:
            assert call["type"] == "function" and call["id"].startswith("call_")
            assert isinstance(call["function"]["arguments"], str)


def response_stream(text: str) -> list[dict[str, Any]]:
    """A stream of /v1/responses -> its events."""
    made = _named_events(text)
    kinds = [event["type"] for event in made]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert [event["sequence_number"] for event in made] == list(range(len(made)))
    assert {"created_at", "model", "id", "status"} <= set(made[0]["response"])
    items: dict[int, str] = {}  # output_index -> id
    parts: set[tuple[int, int]] = set()
    for event in made:
        kind = event["type"]
        if kind == "response.output_item.added":
            item = event["item"]
            assert event["output_index"] == len(items) and item["id"]
            assert item["type"] != "function_call" or (item["call_id"] and item["id"].startswith("fc_"))
            items[event["output_index"]] = item["id"]
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == items[event["output_index"]]
        elif kind.startswith(("response.output_text", "response.content_part", "response.reasoning_text")):
            place = (event["output_index"], event["content_index"])
            assert event["item_id"] == items[event["output_index"]]
            assert (kind == "response.content_part.added") != (place in parts)
            parts.add(place)
        elif kind.startswith("response.function_call_arguments"):
            assert event["item_id"] == items[event["output_index"]]
    assert kinds.count("response.output_item.done") == len(items) == len(made[-1]["response"]["output"])
    assert {"input_tokens_details", "output_tokens_details"} <= set(made[-1]["response"]["usage"])
    return made


def message_stream(text: str) -> list[dict[str, Any]]:
    """A stream of /v1/messages -> its events."""
    made = _named_events(text)
    kinds = [event["type"] for event in made if event["type"] != "ping"]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert {"input_tokens", "output_tokens"} <= set(made[0]["message"]["usage"])
    last = made[-2]
    assert last["usage"]["output_tokens"] >= 0
    assert last["delta"]["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")
    if "content_block_start" in kinds:  # a ping behind the first, as their own servers send it
        assert [event["type"] for event in made[:3]] == ["message_start", "content_block_start", "ping"]
    block, index = None, -1
    for event in made:
        kind = event["type"]
        if kind == "content_block_start":
            assert block is None and event["index"] == index + 1
            block, index = event["content_block"], event["index"]
            assert block["type"] != "tool_use" or (block["id"].startswith("toolu_") and block["input"] == {})
        elif kind == "content_block_delta":
            fits = {"text": ("text_delta",), "tool_use": ("input_json_delta",),
                    "thinking": ("thinking_delta", "signature_delta")}  # fmt: skip
            assert block is not None and event["index"] == index and event["delta"]["type"] in fits[block["type"]]
        elif kind == "content_block_stop":
            assert block is not None and event["index"] == index
            block = None
    assert block is None
    return made


def ollama_lines(text: str, chat: bool) -> list[dict[str, Any]]:
    """A stream of /api/chat or /api/generate -> its lines."""
    made = [json.loads(each) for each in text.splitlines()]
    for each in made:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", each["created_at"])
        datetime.fromisoformat(each["created_at"])
        assert (each["message"]["role"] == "assistant") if chat else isinstance(each["response"], str)
        for call in each.get("message", {}).get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], dict)
    assert [each["done"] for each in made] == [False] * (len(made) - 1) + [True]
    last = made[-1]
    assert last["done_reason"] in ("stop", "length")
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(type(last[name]) is int for name in (*durations, "prompt_eval_count", "eval_count"))
    assert last["total_duration"] >= last["eval_duration"] and last["total_duration"] > 10_000, "nanoseconds"
    return made


def _named_events(text: str) -> list[dict[str, Any]]:
    """Blocks of an `event:` line and a `data:` line that agree; comments may stand between."""
    made = []
    for block in text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {made[-1]['type']}"
    return made
