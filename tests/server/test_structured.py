"""Structured output over HTTP: the fields of every API, streams, refusals by name, hostile ones, dying engines."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.server.live import Live, error_of, events

HELLO: Any = [{"role": "user", "content": "Describe a person as JSON."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GBNF = 'root ::= "<" [a-z]{3} ">"'
LEGACY_TAG = {
    "structures": [{"begin": "<call>", "schema": PERSON, "end": "</call>"}],
    "triggers": ["<call>"],
}
ONE_CALL = {
    "type": "triggered_tags", "triggers": ["<call>"], "at_least_one": True, "stop_after_first": True,
    "tags": [{"begin": "<call>", "content": {"type": "json_schema", "json_schema": PERSON}, "end": "</call>"}],
}  # fmt: skip


class Person(pydantic.BaseModel):
    name: str
    age: int


def chat(live: Live, **body: Any) -> httpx.Response:
    body = {"messages": HELLO, "max_tokens": 80, "temperature": 0, **body}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop"
    found: str = choice["message"]["content"]
    return found


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


JSON_FIELDS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}},
    {"response_format": {"type": "json_object", "schema": PERSON}},
    {"structured_outputs": {"json": PERSON}},
    {"structured_outputs": {"json": json.dumps(PERSON), "disable_any_whitespace": True, "regex": None}},
    {"guided_json": PERSON},
    {"json_schema": PERSON},
]


@pytest.mark.parametrize("body", JSON_FIELDS)
def test_schemas_by_every_field(live: Live, body: dict[str, Any]) -> None:
    assert is_person(text_of(chat(live, **body)))
    sampled = chat(live, **body, temperature=1.5, seed=3, logprobs=True, top_logprobs=2, presence_penalty=1)
    assert is_person(text_of(sampled))
    assert all(len(each["top_logprobs"]) == 2 for each in sampled.json()["choices"][0]["logprobs"]["content"])


OTHER_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"choice": ["blue", "green"]}}, "blue|green"),
    ({"guided_choice": ["blue", "green"]}, "blue|green"),
    ({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}, r"\d{3}-\d{4}"),
    ({"guided_regex": r"^[a-f]{4}$"}, "[a-f]{4}"),
    ({"grammar": GBNF}, "<[a-z]{3}>"),
    ({"guided_grammar": GBNF}, "<[a-z]{3}>"),
    ({"structured_outputs": {"grammar": 'start: "<" /[a-z]{3}/ ">"'}}, "<[a-z]{3}>"),
    ({"response_format": {"type": "structural_tag", "format": ONE_CALL}}, r"(?s).*<call>\{.*\}</call>"),
    ({"structured_outputs": {"structural_tag": json.dumps({"format": ONE_CALL})}}, r"(?s).*<call>\{.*\}</call>"),
]


@pytest.mark.parametrize(("body", "pattern"), OTHER_FIELDS)
def test_other_constraints_by_every_field(live: Live, body: dict[str, Any], pattern: str) -> None:
    messages = [{"role": "user", "content": "Write <call> and the colour of the sky."}]
    answer = chat(live, messages=messages, **body, max_tokens=200)
    if "structural" in json.dumps(body):  # text before the tag may go on until the tokens are used up
        (choice,) = answer.json()["choices"]
        assert choice["finish_reason"] == "length" or re.fullmatch(pattern, choice["message"]["content"])
    else:
        assert re.fullmatch(pattern, text_of(answer))


def test_any_object_and_any_text(live: Live) -> None:
    answer = chat(live, response_format={"type": "json_object"}, max_tokens=150).json()["choices"][0]
    assert answer["message"]["content"].startswith("{")
    assert answer["finish_reason"] == "length" or isinstance(json.loads(answer["message"]["content"]), dict)
    plain = {"response_format": {"type": "text"}, "structured_outputs": None, "grammar": "", "guided_json": None}
    assert chat(live, **plain, max_tokens=3).status_code == 200


def test_answers_that_run_out_are_led_to_their_end(live: Live) -> None:
    """With grammar_close they are valid, and end by themselves, however few tokens there are."""
    trips = {"type": "array", "items": PERSON, "minItems": 1}
    for at, most in enumerate((24, 30, 45, 60, 100)):
        body = {"structured_outputs": {"json": trips}, "max_tokens": most, "temperature": at % 3, "seed": at}
        answer = chat(live, **body, grammar_close=True)
        found = json.loads(text_of(answer))
        jsonschema.validate(found, trips)
        assert answer.json()["usage"]["completion_tokens"] <= most
        streamed = chat(live, **body, grammar_close=True, stream=True).text
        pieces = [each["choices"][0]["delta"].get("content", "") for each in events(streamed)[:-1]]
        assert json.loads("".join(pieces)) == found
    cut = chat(live, structured_outputs={"json": {"type": "string", "minLength": 90}}, max_tokens=9, grammar_close=True)
    assert cut.json()["choices"][0]["finish_reason"] == "length"  # not even the least answer has room


def test_completions_streams_and_choices(live: Live) -> None:
    body = {
        "prompt": "A person:",
        "max_tokens": 80,
        "structured_outputs": {"json": PERSON},
        "n": 3,
        "temperature": 1,
        "seed": 1,
    }
    whole = httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).json()["choices"]
    assert [each["finish_reason"] for each in whole] == ["stop"] * 3 and all(is_person(each["text"]) for each in whole)
    streamed = ["", "", ""]
    for event in events(httpx.post(f"{live.url}/v1/completions", json={**body, "stream": True}, timeout=60).text)[:-1]:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == [each["text"] for each in whole]


def test_the_openai_client_parses_models(live: Live) -> None:
    client = openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.parse(model="smol", messages=HELLO, response_format=Person, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_ollama(live: Live) -> None:
    body = {"model": "smol", "messages": HELLO, "format": PERSON, "stream": False, "options": {"num_predict": 80}}
    assert is_person(httpx.post(f"{live.url}/api/chat", json=body, timeout=60).json()["message"]["content"])


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
     "response_format.json_schema.schema", "unsupported_schema_keyword"),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "unsupported_schema_keyword"),
    ({"structured_outputs": {"json": {"$ref": "http://127.0.0.1:9/x"}}}, "structured_outputs.json", None),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex", None),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", None),
    ({"structured_outputs": {"magic": 1}}, "structured_outputs.magic", None),
    ({"structured_outputs": "json"}, "structured_outputs", None),
    ({"grammar": "root ::= ("}, "grammar", None),
    ({"grammar": "root ::= " + "(" * 30_000}, "grammar", None),
    ({"guided_choice": []}, "guided_choice", None),
    ({"json_schema": {"enum": [f"option {i}" for i in range(100_000)]}}, "json_schema", None),
    ({"response_format": {"type": "structural_tag", "structures": [], "triggers": []}}, "response_format", None),
    ({"response_format": {"type": "json_object"}, "grammar": GBNF}, "response_format", None),
    ({"use_beam_search": True, "n": 2, "grammar": GBNF}, "use_beam_search", None),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "param", "code"), REFUSED)
def test_refusals_name_the_field(live: Live, body: dict[str, Any], param: str, code: str | None, stream: bool) -> None:
    """Before the first byte of a stream as well."""
    answer = chat(live, **body, stream=stream)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["code"] == code and param.split(".")[0] in error["message"]


def test_a_constraint_that_leaves_nothing_ends_alone(live: Live) -> None:
    bias = {"grammar": 'root ::= "ab"', "bad_words": ["ab", "a", "b"]}
    answer = chat(live, **bias)
    assert answer.status_code == 400 and error_of(answer)["code"] == "grammar_failed"
    assert is_person(text_of(chat(live, guided_json=PERSON)))


def test_hostile_constraints_beside_a_stream(live: Live) -> None:
    """They are refused or answered; a stream that runs meanwhile gives what it gives alone."""
    body = {"prompt": "Once upon a time", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
    alone = httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    found: list[str] = []
    beside = threading.Thread(
        target=lambda: found.append(
            httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        )
    )
    beside.start()
    hostile = ["(a+)+b", "(a|a)*c", ".{1,10000}x{1,10000}", "((((a{30}){30}){30}){30}", "(" * 4000]
    for pattern in hostile:
        for constraint in ({"guided_regex": pattern}, {"guided_json": {"type": "string", "pattern": pattern}}):
            assert chat(live, **constraint, max_tokens=5).status_code in (200, 400)
    beside.join()
    assert found == [alone]


def test_streams_outlive_the_engine_and_the_grammar_process(tmp_path: Path) -> None:
    """Killed in their midst, both; the answers are those of an undisturbed run."""
    server = Live(tmp_path)
    schema = {"type": "array", "items": {"enum": ["red", 12, True]}, "minItems": 25, "maxItems": 25}
    bodies = [
        {
            "prompt": f"List {at}:",
            "max_tokens": 200,
            "temperature": at % 2,
            "seed": at,
            "structured_outputs": {"json": schema},
        }
        for at in range(6)
    ]

    def run(stream: bool, found: list[str], at: int) -> None:
        answer = httpx.post(f"{server.url}/v1/completions", json={**bodies[at], "stream": stream}, timeout=120)
        if stream:
            found[at] = "".join(c["text"] for e in events(answer.text)[:-1] for c in e["choices"])
        else:
            found[at] = answer.json()["choices"][0]["text"]

    def run_all(stream: bool) -> tuple[list[threading.Thread], list[str]]:
        found = [""] * len(bodies)
        threads = [threading.Thread(target=run, args=(stream, found, at)) for at in range(len(bodies))]
        for thread in threads:
            thread.start()
        return threads, found

    threads, right = run_all(False)
    for thread in threads:
        thread.join()
    assert all(len(json.loads(each)) == 25 for each in right)
    for victim in ("grammar", "engine"):
        threads, found = run_all(True)
        before = server.metric("generation_tokens_total")
        while server.metric("generation_tokens_total") < before + 60:
            pass
        engine = server.engine()
        os.kill(engine.children()[0].pid if victim == "grammar" else engine.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        wrong = [at for at, text in enumerate(found) if text != right[at]]
        assert len(wrong) <= (victim == "grammar"), (victim, wrong)  # one at most, whose mask was just being made
    assert server.stop() == 0
