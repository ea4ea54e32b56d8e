"""Streams of every kind and dialect, and what they say: text, calls of functions, logprobs, end and usage of each
choice, whatever pieces they came in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
Body = tuple[str, dict[str, Any]]
FOX = [{"role": "user", "content": "Tell me a story about a fox."}]
COUNT = [{"role": "user", "content": "Count to twenty."}]
ASK = [{"role": "user", "content": "What is the weather in Paris, and what in Rome? Use the function for each."}]
CITY: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 40}, "days": {"type": "integer"}},
    "required": ["city", "days"], "additionalProperties": False,
}  # fmt: skip
WEATHER = {"name": "get_weather", "description": "The weather in a city."}
TOOLS = [
    {"type": "function", "function": {**WEATHER, "parameters": CITY}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}},
]
ANTHROPIC_TOOLS = [{**WEATHER, "input_schema": CITY}]
LISTED = {"type": "array", "items": {"enum": ["red", 12, True]}, "minItems": 25, "maxItems": 25}
AS_LISTED = {"type": "json_schema", "json_schema": {"name": "colours", "schema": LISTED, "strict": True}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
KINDS: tuple[Body, ...] = (
    (CHAT, {"messages": FOX, "temperature": 0.8}),
    (CHAT, {"messages": COUNT, "logprobs": True, "top_logprobs": 3}),
    (TEXT, {"prompt": "The three largest cities are", "n": 2, "temperature": 1.0}),
    (TEXT, {"prompt": "Once upon a time", "frequency_penalty": 0.7, "repetition_penalty": 1.2, "temperature": 0.9}),
    (TEXT, {"prompt": "a b c d e f g", "stop": [" the ", "q", "\n\n"], "temperature": 1.3}),
    (TEXT, {"prompt": "1, 2, 3,", "logprobs": 2, "echo": True, "temperature": 0.7}),
    (TEXT, {"prompt": "def main():", "mirostat": 2, "mirostat_tau": 4.0, "temperature": 1.0}),
    (TEXT, {"prompt": "In the beginning", "dry_multiplier": 0.8, "min_tokens": 20, "best_of": 3}),
    (TEXT, {"prompt": ["Red, green", "One, two"], "xtc_probability": 0.5, "temperature": 1.0}),
    (MESSAGES, {"messages": FOX, "temperature": 0.0, "stop_sequences": ["zebra"]}),  # that API has no seed
    ("/api/chat", {"messages": COUNT, "options": {"temperature": 0.8}}),
    ("/api/generate", {"prompt": "The sea is", "options": {"temperature": 0.8, "top_k": 30}}),
    ("/completion", {"prompt": "Rain falls", "temperature": 0.9}),
    # functions, structure, responses: what is in flight besides text is a parser's state and a matcher's
    (CHAT, {"messages": ASK, "tools": TOOLS, "temperature": 0.4}),
    (CHAT, {"messages": ASK, "tools": TOOLS, "tool_choice": "required", "temperature": 1.0, "logprobs": True}),
    (CHAT, {"messages": ASK, "tools": TOOLS, "tool_choice": NAMED, "temperature": 1.0, "n": 2}),
    (CHAT, {"messages": FOX, "response_format": AS_LISTED}),
    (TEXT, {"prompt": "A number:", "structured_outputs": {"regex": r"(\d{3}-){30}\d"}, "temperature": 1.0, "n": 2}),
    (TEXT, {"prompt": "Letters:", "grammar": 'root ::= ("<" [a-z]{3} ">"){30}', "frequency_penalty": 0.4}),
    (RESPONSES, {"input": "Tell me a story about a fox.", "temperature": 0.8}),
    (RESPONSES, {"input": "The weather in Paris?", "tools": [{"type": "function", **WEATHER, "parameters": CITY}],
                 "tool_choice": "required", "temperature": 1.0}),
    (MESSAGES, {"messages": ASK, "tools": ANTHROPIC_TOOLS, "tool_choice": {"type": "any"}, "temperature": 0.0}),
    ("/api/chat", {"messages": FOX, "format": PERSON, "options": {"temperature": 0.8}}),
    ("/completion", {"prompt": "Colours:", "json_schema": LISTED, "temperature": 0.9}),
    (TEXT, {"prompt": "Trips:", "guided_json": {"type": "array", "items": CITY}, "grammar_close": True}),
)  # fmt: skip


def bodies(count: int, tokens: int = 40) -> list[Body]:
    """So many streams, each with a seed and from `tokens` to 2 * tokens tokens."""
    made = []
    for number in range(count):
        path, body = KINDS[number % len(KINDS)]
        most, seed = tokens + number * 7 % tokens, 500 + number
        if path.startswith("/api/"):
            body = {**body, "model": "default", "options": {**body["options"], "num_predict": most, "seed": seed}}
        elif path == "/completion":
            body = {**body, "n_predict": most, "seed": seed}
        elif path == MESSAGES:
            body = {**body, "model": "default", "max_tokens": most}
        elif path == RESPONSES:
            body = {**body, "max_output_tokens": most, "seed": seed}
        else:
            body = {**body, "max_tokens": most, "seed": seed, "stream_options": {"include_usage": True}}
        made.append((path, {**body, "stream": True}))
    return made


def read(url: str, path: str, body: dict[str, Any], begun: Callable[[], object] = lambda: None) -> dict[Any, Any]:
    """What a stream says. begun: called when something has come. AssertionError if it breaks off."""
    events = []
    with httpx.stream("POST", url + path, json=body, timeout=600) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            data = line.removeprefix("data: ") if line.startswith("data: ") else line
            if data.startswith("{"):
                events.append(json.loads(data))
                begun()
                begun = lambda: None  # noqa: E731
    assert not any("error" in event for event in events), events[-1]
    return told(path, events)


def told(path: str, events: Sequence[dict[str, Any]]) -> dict[Any, Any]:
    """Text, logprobs, end and usage of a stream's events; a call of a function is part of the text."""
    made: dict[Any, Any] = {}
    for event in events:
        for index, piece, logprobs, end in _pieces(path, event):
            text, before, ended = made.get(index, ("", (), None))
            made[index] = (text + piece, (*before, *logprobs), end or ended)
        usage = event.get("usage") or (event.get("type") == "response.completed" and event["response"]["usage"]) or {}
        if "completion_tokens" in usage or "output_tokens" in usage:
            made["usage"] = [usage.get(key) for key in ("prompt_tokens", "completion_tokens", "output_tokens")]
        if event.get("done") or event.get("stop") is True:
            made["usage"] = [event.get(key) for key in ("eval_count", "prompt_eval_count", "tokens_predicted")]
    ends = [value[2] for key, value in made.items() if key != "usage"]
    assert ends and all(ends) and made["usage"], f"{path} broke off: {events[-1:]}"
    return made


def _pieces(path: str, event: dict[str, Any]) -> list[tuple[int, str, list[Any], Any]]:
    """(choice, text, logprobs, end) of an event."""
    if path == MESSAGES:
        delta, block = event.get("delta", {}), event.get("content_block", {})
        piece = block.get("name", "") + delta.get("text", "") + delta.get("partial_json", "")
        return [(0, piece, [], delta.get("stop_reason"))]
    if path == RESPONSES:
        return _of_response(event)
    if path.startswith("/api/"):
        text = event.get("response") or event.get("message", {}).get("content") or ""
        return [(0, text, [], event.get("done_reason"))]
    if path == "/completion":
        return [(event.get("index", 0), event.get("content", ""), [], event.get("stop_type"))]
    found = []
    for choice in event["choices"]:
        delta = choice.get("delta", {})
        piece = choice.get("text") or delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            piece += call["function"].get("name", "") + call["function"]["arguments"]
        logprobs = choice.get("logprobs") or {}
        end = choice["finish_reason"] and (choice["finish_reason"], choice.get("stop_reason"))
        found.append((choice["index"], piece, _each_token(logprobs), end))
    return found


def _of_response(event: dict[str, Any]) -> list[tuple[int, str, list[Any], Any]]:
    """(item, text, logprobs, end) of an event of /v1/responses."""
    kind = event["type"]
    if kind.endswith(".delta"):
        return [(event["output_index"], event["delta"], [], None)]
    if kind == "response.output_item.added":
        return [(event["output_index"], event["item"].get("name", ""), [], None)]
    if kind == "response.output_item.done":
        return [(event["output_index"], "", [], event["item"]["status"])]
    return []


def _each_token(logprobs: dict[str, Any]) -> list[Any]:
    """Logprobs in either shape, a value for each token."""
    if "content" in logprobs:
        return list(logprobs["content"])
    keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return list(zip(*(logprobs[key] for key in keys), strict=True)) if logprobs else []


def all_streams(
    url: str, wanted: Sequence[Body], between: Callable[[], object] | None = None, first: int | None = None
) -> list[Any]:
    """All at once; `between` is called when `first` of them, or half, have begun. An AssertionError stands for a
    stream that was lost."""
    begun = threading.Semaphore(0)

    def one(path: str, body: dict[str, Any]) -> Any:
        try:
            return read(url, path, body, begun.release)
        except (AssertionError, httpx.HTTPError) as error:
            begun.release()
            return error

    with ThreadPoolExecutor(len(wanted)) as pool:
        running = [pool.submit(one, path, body) for path, body in wanted]
        if between is not None:
            for _ in range(first or len(wanted) // 2):
                assert begun.acquire(timeout=120)
            between()
        return [each.result() for each in running]
