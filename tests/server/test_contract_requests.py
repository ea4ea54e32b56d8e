"""What clients send is taken: nulls, unknown fields, extras of other servers, roles, limits beyond the context; what is
wrong is refused by name, and every error has the shape, the type and the status that clients expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo import errors
from octavo.errors import OctavoError
from octavo.server.anthropic.schema import MessagesBody
from octavo.server.llamacpp.schema import LlamaCompletionBody
from octavo.server.ollama.schema import OllamaChatBody, OllamaGenerateBody
from octavo.server.openai.embeddings import EmbeddingsBody
from octavo.server.openai.response_body import ResponseBody
from octavo.server.openai.schema import ChatBody, CompletionBody
from octavo.server.routes import ROUTES
from tests.server.live import CONTEXT, Live, error_of
from tests.server.streams import CITY

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TYPES = {  # status -> type; of the statuses that are left server_error
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


def post(live: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=120)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_types_go_with_statuses() -> None:
    """A 500 that called itself invalid_request_error would be the client's fault to some; a code is a word or null."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OctavoError)]
    for each in classes:
        assert each.type == TYPES.get(each.status, "server_error"), each
        assert each.status in (*TYPES, 500, 503, 504) and (each.code is None or isinstance(each.code, str)), each


def refused(live: Live) -> list[httpx.Response]:
    """What can be wrong with a request, on every route that reads a body."""
    made = []
    for entry in ROUTES:
        if entry.body is None or "POST" not in entry.methods:
            continue
        url = live.url + entry.path
        made += [httpx.post(url, content=content) for content in (b"{", b"[]", b"\xff", b'"x"')]
        made.append(httpx.post(url, content=b"{}", headers={"content-encoding": "zstd"}))
        if "model" in entry.body.__struct_fields__ and not entry.admin:
            made.append(httpx.post(url, json={"model": "gpt-4", "messages": HELLO, "input": "x", "prompt": "x"}))
        made.append(httpx.put(url, json={}))
        made.append(httpx.post(url + "/nothing/there", json={}))
    return made


def test_errors_of_every_route(live: Live) -> None:
    """Never `detail`, never 422, never a bare text where OpenAI's clients read; the id stands in the headers."""
    statuses = set()
    for answer in refused(live):
        told = error_of(answer)
        statuses.add(answer.status_code)
        assert answer.status_code in (400, 404, 405, 415), (answer.url, answer.text)
        assert answer.headers["x-request-id"] and told["message"]
        if told["type"] is not None and "request-id" not in answer.headers:
            assert told["type"] == TYPES[answer.status_code], answer.url
        assert told["code"] is None or isinstance(told["code"], str)
    assert statuses == {400, 404, 405, 415}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat", "/v1/nothing"])
def test_ids_of_requests_come_back(live: Live, path: str) -> None:
    for body in ({"messages": HELLO, "max_tokens": 1, "stream": False}, {"messages": 7}):
        answer = httpx.post(live.url + path, json=body, headers={"x-request-id": "mine-1"}, timeout=60)
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers.get("request-id") == ("mine-1" if path == "/v1/messages" else None)


# -- bodies ------------------------------------------------------------------------------------------------------------

BODIES: list[tuple[str, Any, dict[str, Any]]] = [
    (CHAT, ChatBody, {"messages": HELLO, "max_tokens": 2}),
    (TEXT, CompletionBody, {"prompt": "a", "max_tokens": 2}),
    ("/v1/responses", ResponseBody, {"input": "a", "max_output_tokens": 2}),
    ("/v1/messages", MessagesBody, {"messages": HELLO, "max_tokens": 2}),
    ("/api/chat", OllamaChatBody, {"messages": HELLO, "options": {"num_predict": 2}}),
    ("/api/generate", OllamaGenerateBody, {"prompt": "a", "options": {"num_predict": 2}}),
    ("/completion", LlamaCompletionBody, {"prompt": "a", "n_predict": 2}),
]


@pytest.mark.parametrize(("path", "struct", "body"), BODIES, ids=lambda value: value if isinstance(value, str) else "")
def test_null_is_absent_and_the_unknown_is_ignored(live: Live, path: str, struct: Any, body: dict[str, Any]) -> None:
    """For every field that the route reads, all at once and with fields of nobody."""
    nulls = dict.fromkeys(struct.__struct_fields__)
    unknown = {"surprise": {"a": [1]}, "store_it": True, "web_search_options": {}, "X": None}
    for more in (nulls, unknown):
        answer = post(live, path, **{**more, **body, "stream": False})
        assert answer.status_code == 200, answer.text


def test_null_is_absent_for_embeddings(live: Live) -> None:
    """Of a model that has none: what is refused is that, not a null."""
    answer = post(live, "/v1/embeddings", **{**dict.fromkeys(EmbeddingsBody.__struct_fields__), "input": "x"})
    assert answer.status_code == 400 and "generates text" in error_of(answer)["message"]


EXTRAS: dict[str, Any] = {
    "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "repeat_penalty": 1.1, "typical_p": 0.9, "top_n_sigma": 2.0,
    "dry_multiplier": 0.5, "dry_base": 1.75, "dry_allowed_length": 3, "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n"], "xtc_probability": 0.1, "xtc_threshold": 0.2, "mirostat": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "ignore_eos": True, "min_tokens": 1, "stop_token_ids": [2], "include_stop_str_in_output": True,
    "skip_special_tokens": False, "prompt_logprobs": 1, "allowed_token_ids": [*range(100, 400)], "bad_words": ["zebra"],
    "echo": True, "priority": 0, "request_id": "mine", "cache_salt": "s", "guided_regex": "[ab]{3}",
    "guided_choice": ["a", "b"], "guided_json": CITY, "guided_grammar": 'root ::= "a"', "grammar": 'root ::= "a"',
    "structured_outputs": {"choice": ["a"]}, "json_schema": CITY, "response_format": {"type": "json_object"},
    "return_progress": False, "timings_per_token": True, "cache_prompt": True, "n_predict": 2, "id_slot": 3,
    "samplers": ["top_k", "temperature"], "user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto",
    "prompt_cache_key": "k", "prediction": {"type": "content", "content": "x"}, "seed": -1, "logit_bias": {"5": 1},
    "frequency_penalty": 0.5, "presence_penalty": 0.5, "n": 2,
}  # fmt: skip
CHAT_EXTRAS: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": True, "continue_final_message": False,
    "thinking_token_budget": 10, "reasoning_effort": "none", "reasoning": {"effort": "high", "exclude": True},
    "parallel_tool_calls": True, "verbosity": "low", "web_search_options": {}, "max_completion_tokens": 2,
    "include_reasoning": True, "tools": [], "logprobs": True, "modalities": ["text"], "safety_identifier": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", [*EXTRAS, *CHAT_EXTRAS])
def test_extras_of_a_chat(live: Live, name: str) -> None:
    answer = post(live, CHAT, messages=HELLO, **{"max_tokens": 2, name: {**EXTRAS, **CHAT_EXTRAS}[name]})
    assert answer.status_code == 200, answer.text


def test_extras_of_a_completion(live: Live) -> None:
    for name, value in EXTRAS.items():
        answer = post(live, TEXT, prompt="a", **{"max_tokens": 2, name: value})
        assert answer.status_code == 200, (name, answer.text)


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_efforts(live: Live, effort: str) -> None:
    assert post(live, CHAT, messages=HELLO, max_tokens=1, reasoning_effort=effort).status_code == 200


def test_aliases_mean_the_same(live: Live) -> None:
    asked = {"messages": HELLO, "seed": 4, "temperature": 1.0, "max_tokens": 8}
    for one, other in (
        ({"repetition_penalty": 1.4}, {"repeat_penalty": 1.4}),
        ({"max_tokens": 3}, {"max_tokens": None, "n_predict": 3}),
        ({"max_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": 3}),
        ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
    ):
        said = [post(live, CHAT, **{**asked, **each}).json()["choices"][0]["message"] for each in (one, other)]
        assert said[0] == said[1], other


# -- conversations -----------------------------------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "developer": [{"role": "developer", "content": "Be brief."}, *HELLO],
    "system in parts": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *HELLO],
    "late and several": [{"role": "system", "content": "A."}, *HELLO, {"role": "developer", "content": "B."}, *HELLO],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
    "a call": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]},
               {"role": "tool", "tool_call_id": "call_1", "content": "rain"}],
    "a call without content": [*HELLO, {"role": "assistant", "tool_calls": [CALL]},
                               {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "x"}]}],
    "function": [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                 {"role": "function", "name": "f", "content": "rain"}],
    "reasoning": [*HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}, *HELLO],
    "reasoning, renamed": [*HELLO, {"role": "assistant", "content": "Hi", "reasoning": "Hm."}, *HELLO],
    "thinking": [*HELLO, {"role": "assistant", "content": "Hi", "thinking": "Hm."}, *HELLO],
    "nulls": [*HELLO, {"role": "assistant", "content": "Hi", "refusal": None, "audio": None, "tool_calls": []}, *HELLO],
    "names": [{"role": "user", "name": "ada", "content": "Hi"}],
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(live: Live, name: str) -> None:
    answer = post(live, CHAT, messages=CONVERSATIONS[name], max_tokens=2)
    assert answer.status_code == 200, answer.text


def test_a_last_message_of_the_assistant_is_continued(live: Live) -> None:
    """Of itself and by vLLM's switch; the prompt ends in its words."""
    begun = [*HELLO, {"role": "assistant", "content": "Hello, dear"}]
    asked: dict[str, Any] = {"messages": begun, "temperature": 0, "max_tokens": 6}
    plain = post(live, CHAT, **asked).json()
    switched = post(live, CHAT, **asked, continue_final_message=True, add_generation_prompt=False).json()
    assert plain["choices"][0]["message"] == switched["choices"][0]["message"]
    assert plain["usage"]["prompt_tokens"] == switched["usage"]["prompt_tokens"]


# -- limits and names --------------------------------------------------------------------------------------------------

LONG = "a b c d e f g h " * (CONTEXT // 8 - 12)  # nearly the whole context
FULL = [{"role": "user", "content": LONG}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": FULL, "max_tokens": 64_000, "ignore_eos": True}),
        (CHAT, {"messages": FULL, "max_completion_tokens": 32_000, "ignore_eos": True}),
        (TEXT, {"prompt": LONG, "max_tokens": 64_000, "ignore_eos": True}),
        ("/v1/responses", {"input": LONG, "max_output_tokens": 64_000, "ignore_eos": True}),
        ("/v1/messages", {"messages": FULL, "max_tokens": 64_000}),
        ("/api/chat", {"messages": FULL, "options": {"num_predict": 64_000, "num_ctx": 131_072}, "stream": False}),
        ("/api/generate", {"prompt": LONG, "options": {"num_predict": -1}, "stream": False}),
        ("/completion", {"prompt": LONG, "n_predict": 64_000}),
    ],
)
def test_a_limit_beyond_the_context_is_clamped(live: Live, path: str, body: dict[str, Any]) -> None:
    answer = post(live, path, **body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG * 2}]}),
        (TEXT, {"prompt": LONG * 2}),
        ("/v1/responses", {"input": LONG * 2}),
        ("/v1/messages", {"messages": [{"role": "user", "content": LONG * 2}], "max_tokens": 1}),
        ("/api/chat", {"messages": [{"role": "user", "content": LONG * 2}]}),
        ("/completion", {"prompt": LONG * 2}),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_in_known_words(live: Live, path: str, body: dict[str, Any]) -> None:
    """Never cut silently."""
    told = error_of(answer := post(live, path, **body))
    assert answer.status_code == 400 and f"maximum context length is {CONTEXT} tokens" in told["message"]
    if told["type"] and path != "/v1/messages":
        assert told["code"] == "context_length_exceeded"


def test_any_name_where_it_is_asked_for(tmp_path: Path) -> None:
    """For programs that know one model's name and no other."""
    live = Live(tmp_path, "--any-model-name")
    try:
        for path, body in ((CHAT, {"messages": HELLO}), ("/v1/messages", {"messages": HELLO}), (TEXT, {"prompt": "a"})):
            answer = post(live, path, model="gpt-4o", max_tokens=1, **body)
            assert answer.status_code == 200 and answer.json()["model"] == "SmolLM2-135M-Instruct.Q4_1"
    finally:
        assert live.stop() == 0
