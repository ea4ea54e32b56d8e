"""The Responses API with the `openai` client against a live server; the rules that clients were measured to need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from octavo.errors import InvalidRequest, NotFound
from octavo.server.openai.response_body import messages_of
from octavo.server.openai.response_items import Items
from octavo.server.openai.response_store import Kept, ResponseStore
from octavo.server.tenants import ANYONE
from tests.server.live import CONTEXT, Live, error_of
from tests.server.scripted import CALLS

HELLO = "Say hello to my cat."
GREEDY: Any = {"model": "smol", "temperature": 0, "max_output_tokens": 16}


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def post(live: Live, path: str = "/v1/responses", **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


def events(text: str) -> list[dict[str, Any]]:
    """Data of a stream; each event's name stands before it as well."""
    made = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {made[-1]['type']}"
    return made


def test_a_response(client: openai.OpenAI) -> None:
    made = client.responses.create(**GREEDY, input=HELLO)
    assert made.id.startswith("resp_") and made.object == "response" and made.model == "smol"
    assert "hello" in made.output_text.lower() and made.output[0].type == "message"
    assert made.status == "incomplete" and made.incomplete_details
    assert made.incomplete_details.reason == "max_output_tokens"
    usage = made.usage
    assert usage and usage.output_tokens == 16 and usage.total_tokens == usage.input_tokens + 16
    assert usage.input_tokens_details.cached_tokens is not None and usage.output_tokens_details.reasoning_tokens == 0
    chat = client.chat.completions.create(
        model="smol", temperature=0, max_tokens=16, messages=[{"role": "user", "content": HELLO}]
    )
    assert made.output_text == chat.choices[0].message.content
    whole = client.responses.create(model="smol", temperature=0, input="Say only: hi")
    assert whole.status == "completed" and whole.incomplete_details is None


def test_a_stream_and_the_helper(client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY, input=HELLO)
    with client.responses.stream(**GREEDY, input=HELLO) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage and whole.usage and final.usage.output_tokens == whole.usage.output_tokens == 16


def test_the_events_on_the_wire(live: Live) -> None:
    """created first and completed last; item and part are added before deltas; every index is there."""
    made = events(post(live, **GREEDY, input=HELLO, stream=True).text)
    kinds = [event["type"] for event in made]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert deltas and [event["sequence_number"] for event in made] == list(range(len(made)))
    item = made[2]["item"]["id"]
    for event in made[3:-2]:
        assert (event["output_index"], event["item_id"], event["content_index"]) == (0, item, 0)
        assert event["type"] != "response.output_text.delta" or event["logprobs"] == []
    first, last = made[0]["response"], made[-1]["response"]
    assert first["status"] == "in_progress" and first["output"] == [] and first["id"] == last["id"]
    assert last["output"][0]["id"] == item and {"created_at", "model"} <= set(first)


def test_a_stream_is_taken_up_again(live: Live) -> None:
    """The events after those that were seen, as of a chat's stream."""
    body = {**GREEDY, "input": HELLO, "stream": True}
    whole = events(post(live, **body).text)
    with httpx.stream("POST", f"{live.url}/v1/responses", json=body, timeout=60) as answer:
        seen, text = 0, ""
        for piece in answer.iter_text():
            text += piece
            seen = text.count("\n\n")
            if seen > 5:
                break
    blocks = text.split("\n\n")[:seen]
    id_ = json.loads(blocks[0].split("data: ")[1])["response"]["id"]
    rest = events(httpx.get(f"{live.url}/v1/stream/{id_}", params={"from": seen}, timeout=60).text)
    assert [event["sequence_number"] for event in rest] == list(range(seen, len(whole)))
    assert rest[-1]["response"]["output"][0]["content"] == whole[-1]["response"]["output"][0]["content"]


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    made: Any = client.responses.create(**GREEDY, input=HELLO, **asked)
    entries = made.output[0].content[0].logprobs
    assert len(entries) == 16 and all(len(entry.top_logprobs) == 2 for entry in entries)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_going_on_from_a_response(client: openai.OpenAI, live: Live) -> None:
    """The conversation before is part of the next prompt; instructions are not."""
    first = client.responses.create(**GREEDY, input=HELLO, instructions="Be a pirate.")
    second = client.responses.create(**GREEDY, input="And my dog.", previous_response_id=first.id)
    told = [
        {"role": "user", "content": HELLO},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And my dog."},
    ]
    by_hand = client.responses.create(**GREEDY, input=told)  # type: ignore[arg-type]
    assert second.output_text == by_hand.output_text and second.previous_response_id == first.id
    assert second.usage and by_hand.usage and second.usage.input_tokens == by_hand.usage.input_tokens
    counted = client.responses.input_tokens.count(model="smol", input="And my dog.", previous_response_id=first.id)
    assert counted.input_tokens == second.usage.input_tokens
    unknown = post(live, input="x", previous_response_id="resp_unknown")
    assert unknown.status_code == 400 and error_of(unknown)["code"] == "previous_response_not_found"


def test_retrieve_list_and_delete(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": "One."}, {"role": "developer", "content": "Two."}]
    made = client.responses.create(**GREEDY, input=items, metadata={"a": "b"})
    assert client.responses.retrieve(made.id).output == made.output
    listed = client.responses.input_items.list(made.id, order="asc").data
    assert [getattr(item, "role", None) for item in listed] == ["user", "developer"]
    assert [item.id for item in client.responses.input_items.list(made.id).data] == [item.id for item in listed][::-1]
    page = client.responses.input_items.list(made.id, limit=1)
    assert page.has_more and len(list(page)) == 2, "the client asks for the next page itself"
    client.responses.delete(made.id)
    for path in ("", "/input_items"):
        with pytest.raises(openai.NotFoundError):
            client.get(f"/responses/{made.id}{path}", cast_to=object)
    forgotten = client.responses.create(**GREEDY, input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(forgotten.id)


def test_in_the_background(client: openai.OpenAI) -> None:
    made = client.responses.create(**GREEDY, input=HELLO, background=True)
    assert made.status == "in_progress" and made.output == []
    end = time.monotonic() + 30
    while made.status == "in_progress":
        assert time.monotonic() < end
        time.sleep(0.02)
        made = client.responses.retrieve(made.id)
    assert made.output_text == client.responses.create(**GREEDY, input=HELLO).output_text
    extra = {"ignore_eos": True}
    endless = client.responses.create(model="smol", input=HELLO, background=True, extra_body=extra)
    assert client.responses.cancel(endless.id).status == "cancelled"
    assert client.responses.retrieve(endless.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(client.responses.create(**GREEDY, input="x").id)


def test_the_store_is_bounded() -> None:
    store = ResponseStore(most=3, nbytes=10_000)
    for number in range(5):
        store.keep(Kept({"id": f"resp_{number}"}, [], []))
    assert len(store) == 3 and not store.has("resp_1") and store.has("resp_4")
    store.keep(Kept({"id": "resp_large", "text": "x" * 9_990}, [], []))
    assert len(store) == 1 and store.nbytes > 9_000
    store.keep(Kept({"id": "resp_large"}, [], []))
    assert store.nbytes < 100
    store.delete("resp_large", ANYONE)
    assert store.nbytes == 0
    with pytest.raises(NotFound):
        store.get("resp_large", ANYONE)
    with pytest.raises(InvalidRequest):
        store.before("resp_large", ANYONE)


# -- items -------------------------------------------------------------------------------------------------------------


def test_thinking_and_calls_are_items() -> None:
    made = Items(None, lambda _: b"")
    told = [*made.take(CALLS[:6]), *made.take(CALLS[6:])]
    reasoning, message, first, second = made.items
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me look."}] and reasoning["summary"] == []
    assert message["content"][0]["text"] == "I ask."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"city": "Ulm"}')
    assert (second["call_id"], second["arguments"]) == ("call_b", "{}")
    assert len({item["id"] for item in made.items}) == 4 and first["id"].startswith("fc_")
    assert all(item["status"] == "completed" for item in made.items)
    for index, item in enumerate(made.items):
        own = [kind for kind, fields in told if fields["output_index"] == index]
        assert own[0] == "response.output_item.added" and own[-1] == "response.output_item.done"
        places = {fields["item_id"] for _, fields in told if fields["output_index"] == index and "item_id" in fields}
        assert places == {item["id"]}


def test_items_become_messages() -> None:
    """What the assistant thinks, says and calls in a row is one message; kinds that are unknown are passed over."""
    messages = messages_of(
        [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "web_search_call", "id": "ws_1"},
            {"role": "assistant", "content": "Rain."},
            {"role": "assistant", "content": "Take care."},
        ]
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert messages[1]["reasoning_content"] == "Hm." and len(messages[1]["tool_calls"]) == 2
    assert messages[2] == {"role": "tool", "tool_call_id": "c1", "content": "rain"}


def test_what_such_clients_send_is_taken(live: Live) -> None:
    """Tools of other kinds, encrypted reasoning, verbosity, cache keys."""
    body = {
        **GREEDY, "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "tools": [{"type": "web_search"}, {"type": "namespace", "name": "x"}], "store": False, "stream": True,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"a": 1},
        "text": {"verbosity": "low"}, "reasoning": {"effort": None, "summary": "auto"}, "tool_choice": "auto",
        "max_output_tokens": 64_000, "stop": ["."], "service_tier": "auto",
    }  # fmt: skip
    made = events(post(live, **body).text)
    assert made[0]["type"] == "response.created" and made[-1]["response"]["tools"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call"}]}, "input[0].name"),
        ({"input": "x", "tool_choice": "maybe"}, "tool_choice"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"input": "x", "top_logprobs": 99}, "top_logprobs"),
        ({"input": "x", "temperature": -1}, "temperature"),
        ({"input": "x", "background": True, "stream": True}, "background"),
        ({"input": "word " * CONTEXT}, "messages"),
    ],
)
def test_refusals(live: Live, body: dict[str, Any], param: str) -> None:
    answer = post(live, **body)
    assert answer.status_code == 400 and error_of(answer)["param"] == param, answer.text
