"""The `openai` client against a live server of the real model: bodies, streams, logprobs, stops, seeds, crowds."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.tokenizer.tokenizer import Tokenizer
from tests import real
from tests.server.live import CONTEXT, Live, error_of, events

HELLO: Any = [{"role": "user", "content": "Say hello to my cat."}]
STORY = "Once upon a time there was a small fox who"


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_checkpoint(open_checkpoint(real.smollm2()))


def post(live: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


# -- models ------------------------------------------------------------------------------------------------------------


def test_models(live: Live, client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["smol", "a/b:c"]
    assert all(model.object == "model" and model.created > 1_700_000_000 for model in listed)
    assert client.models.retrieve("a/b:c").id == "a/b:c"
    assert httpx.get(f"{live.url}/v1/models/smol").json()["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("name", ["smol", "a/b:c", "smol:latest", "SmolLM2-135M-Instruct.Q4_1", "default", "", None])
def test_names_of_the_model(live: Live, name: str | None) -> None:
    answer = post(live, "/v1/completions", model=name, prompt="a", max_tokens=1)
    assert answer.status_code == 200 and answer.json()["model"] == "smol"


def test_another_name_is_told_what_is_served(live: Live) -> None:
    answer = post(live, "/v1/chat/completions", model="gpt-4o", messages=HELLO)
    error = error_of(answer)
    assert answer.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
    assert "smol" in error["message"] and "a/b:c" in error["message"]


# -- chat --------------------------------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=HELLO, temperature=0, max_tokens=24)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("octavo-n")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and "hello" in (choice.message.content or "").lower()
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens == 0
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None
    timings: Any = answer.model_extra and answer.model_extra["timings"]
    assert timings["predicted_n"] == usage.completion_tokens
    assert timings["cache_n"] + timings["prompt_n"] == usage.prompt_tokens


def test_stream_gives_the_same_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smol", "messages": HELLO, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].system_fingerprint == whole.system_fingerprint
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == whole.choices[0].finish_reason and not any(finishes[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_stream_on_the_wire(live: Live) -> None:
    """Rules that clients were measured to need: role first, no empty deltas, a finish for every choice, [DONE]."""
    answer = post(live, "/v1/chat/completions", messages=HELLO, max_tokens=6, n=3, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    *chunks, done = events(answer.text)
    assert done == "[DONE]" and all(len(chunk["choices"]) == 1 for chunk in chunks)
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] and not any(each["finish_reason"] for each in own[:-1])
        assert all(each["delta"]["content"] for each in own[1:-1])
        assert "usage" not in own[0]
    assert "timings" in chunks[-1] and isinstance(chunks[-1]["seed"], int)


def test_usage_in_every_chunk(live: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = post(live, "/v1/chat/completions", messages=HELLO, max_tokens=6, stream=True, stream_options=options)
    *chunks, _ = events(answer.text)
    made = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert made == sorted(made) and made[-1] == 6 and chunks[-1]["choices"] == []


def test_an_assistant_message_at_the_end_is_continued(client: openai.OpenAI) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "Hello, dear"}]
    asked: Any = {"model": "smol", "messages": begun, "temperature": 0, "max_tokens": 8}
    plain = client.chat.completions.create(**asked).choices[0].message.content
    echoed = client.chat.completions.create(**asked, extra_body={"echo": True}).choices[0].message.content
    assert echoed == f"Hello, dear{plain}"


# -- completions -------------------------------------------------------------------------------------------------------


def test_prompts_as_text_and_as_ids(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    other = "The capital of France is"
    asked: Any = {"model": "smol", "temperature": 0, "max_tokens": 8}
    alone = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in (STORY, other)]
    together = client.completions.create(prompt=[STORY, other], **asked)
    assert [choice.index for choice in together.choices] == [0, 1]
    assert [choice.text for choice in together.choices] == alone
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in (STORY, other)]
    assert [choice.text for choice in client.completions.create(prompt=ids, **asked).choices] == alone
    assert client.completions.create(prompt=ids[1], **asked).choices[0].text == alone[1]
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(prompt=[STORY, other], stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert list(streamed.values()) == alone
    assert together.usage and together.usage.prompt_tokens == sum(map(len, ids))


def test_four_answers_differ_and_repeat(client: openai.OpenAI) -> None:
    def four(seed: int) -> list[str]:
        made = client.completions.create(model="smol", prompt=STORY, n=4, temperature=1, seed=seed, max_tokens=16)
        return [choice.text for choice in made.choices]

    first = four(7)
    assert len(set(first)) == 4 and four(7) == first and four(8) != first


def test_the_receipt_repeats_an_unseeded_answer(live: Live) -> None:
    first = post(live, "/v1/completions", prompt=STORY, max_tokens=16)
    seed = first.json()["seed"]
    assert first.headers["x-octavo-seed"] == str(seed) and seed < 2**53
    again = post(live, "/v1/completions", prompt=STORY, max_tokens=16, seed=seed)
    assert again.json()["choices"][0]["text"] == first.json()["choices"][0]["text"]
    assert post(live, "/v1/completions", prompt=STORY, max_tokens=16).json()["seed"] != seed


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(live: Live, stream: bool) -> None:
    whole = post(live, "/v1/completions", prompt=STORY, max_tokens=24, temperature=0, logprobs=0).json()["choices"][0]
    tokens, text = whole["logprobs"]["tokens"], whole["text"]
    for first in range(3, 12, 4):  # from within a token to within another
        stop = (tokens[first][-2:] + "".join(tokens[first + 1 : first + 3]))[:-1]
        expected = text[: text.index(stop)]
        for include in (False, True):
            asked: Any = {"prompt": STORY, "max_tokens": 24, "temperature": 0, "stop": [stop], "stream": stream}
            answer = post(live, "/v1/completions", **asked, include_stop_str_in_output=include)
            if stream:
                choices = [each["choices"][0] for each in events(answer.text) if each != "[DONE]"]
                got = "".join(choice["text"] for choice in choices)
            else:
                choices = answer.json()["choices"]
                got = choices[0]["text"]
            assert got == expected + (stop if include else "")
            assert choices[-1]["finish_reason"] == "stop" and choices[-1]["stop_reason"] == stop


# -- logprobs ----------------------------------------------------------------------------------------------------------


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smol", "messages": HELLO, "temperature": 0, "max_tokens": 10, "logprobs": True}
    answer = client.chat.completions.create(**asked, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs and choice.logprobs.content and answer.usage
    entries = choice.logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    shown = b"".join(bytes(entry.bytes or []) for entry in entries).decode()
    assert shown.startswith(choice.message.content or "?")
    for entry in entries:
        assert [entry.token, entry.logprob] == [entry.top_logprobs[0].token, entry.top_logprobs[0].logprob]  # greedy
        likely = [each.logprob for each in entry.top_logprobs]
        assert len(likely) == 3 and likely == sorted(likely, reverse=True) and entry.logprob <= 0
    streamed = []
    for chunk in client.chat.completions.create(**asked, top_logprobs=3, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in entries]
    none = client.chat.completions.create(**asked).choices[0].logprobs
    assert none and none.content and none.content[0].top_logprobs == []


def test_logprobs_with_echo_are_those_of_generation(live: Live) -> None:
    """What a token cost when it was made, it costs when it is read, bit for bit."""
    made = post(live, "/v1/completions", prompt=STORY, max_tokens=8, temperature=0, logprobs=1).json()["choices"][0]
    ids = post(live, "/tokenize", prompt=STORY + made["text"]).json()["tokens"]
    prompt = post(live, "/tokenize", prompt=STORY).json()["tokens"]
    assert len(ids) == len(prompt) + 8, "the text reads as the tokens that made it"
    asked: Any = {"prompt": [ids, prompt], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = post(live, "/v1/completions", **asked).json()["choices"]
    read = answer[0]["logprobs"]
    assert read["token_logprobs"][0] is None and read["top_logprobs"][0] is None
    assert read["token_logprobs"][len(prompt) : len(ids)] == made["logprobs"]["token_logprobs"]
    assert read["tokens"][len(prompt) : len(ids)] == made["logprobs"]["tokens"]
    assert answer[0]["text"].startswith(STORY + made["text"])
    for offset, token in zip(read["text_offset"], read["tokens"], strict=True):
        assert answer[0]["text"][offset : offset + len(token)] == token
    assert all(token in top for token, top in zip(read["tokens"][1:], read["top_logprobs"][1:], strict=True))
    assert len(answer[1]["logprobs"]["tokens"]) == len(prompt) + 1
    streamed = events(post(live, "/v1/completions", **{**asked, "prompt": ids}, stream=True).text)[:-1]
    costs = [cost for chunk in streamed for cost in (chunk["choices"][0]["logprobs"] or {}).get("token_logprobs", [])]
    assert costs == read["token_logprobs"]


def test_echo_alone(live: Live) -> None:
    answer = post(live, "/v1/completions", prompt=STORY, max_tokens=0, echo=True, logprobs=1).json()["choices"][0]
    assert answer["text"] == STORY and answer["finish_reason"] == "length"
    assert len(answer["logprobs"]["tokens"]) == len(post(live, "/tokenize", prompt=STORY).json()["tokens"])


# -- limits of the context ---------------------------------------------------------------------------------------------


def test_max_tokens_is_clamped(live: Live) -> None:
    ids = [504] * (CONTEXT - 5)
    answer = post(live, "/v1/completions", prompt=ids, max_tokens=64000, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["finish_reason"] == "length"


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smol", messages=[{"role": "user", "content": "cat " * CONTEXT}])
    assert caught.value.code == "context_length_exceeded"
    assert f"maximum context length is {CONTEXT} tokens" in str(caught.value)


# -- what is refused, by name ------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"messages": IMAGE}, "messages[0].content[0].type"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
        ({"best_of": 3, "n": 4}, "best_of"),
        ({"mirostat_mode": 3}, "mirostat"),
        ({"samplers": "top_k;magic"}, "samplers"),
        ({"use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"use_beam_search": True, "n": 11}, "n"),
        ({"use_beam_search": True, "n": 2, "length_penalty": 99}, "length_penalty"),
        ({"use_beam_search": True, "stop": "x"}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 2**31}, "n"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1e308}, "max_tokens"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 2**31}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 2000}, "cache_salt"),
        ({"priority": 2**40}, "priority"),
        ({"request_id": "x" * 500}, "request_id"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ],
)
def test_refused_by_name(live: Live, body: dict[str, Any], param: str) -> None:
    answer = post(live, "/v1/chat/completions", **{"messages": HELLO, **body})
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], None, 5, {}, [1, "a"], [[1], [2.5]], [-1], [2**40], [49152]])
def test_refused_prompts(live: Live, prompt: Any) -> None:
    answer = post(live, "/v1/completions", prompt=prompt, max_tokens=2)
    assert answer.status_code == 400 and error_of(answer)["param"].startswith("prompt")


def test_what_clients_send_beside(live: Live) -> None:
    """Fields that are unknown, null, or ask for nothing."""
    nulls = dict.fromkeys(["stop", "n", "seed", "logprobs", "tools", "response_format", "stream_options", "model"])
    asks_nothing = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "best_of": 1, "lora": []}
    extras = {"user": "u", "store": False, "metadata": {}, "reasoning_effort": "none", "dry_multiplier": 0}
    aliases = {"n_predict": 3, "repeat_penalty": 1.1, "priority": 1, "cache_salt": "s", "request_id": "my-id"}
    for body in (nulls, asks_nothing, {**extras, "tools": [TOOL], "tool_choice": "none"}, aliases):
        answer = post(live, "/v1/chat/completions", **{"messages": HELLO, "max_tokens": None, "n_predict": 2, **body})
        assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "chatcmpl-my-id" and answer.json()["usage"]["completion_tokens"] <= 3


def test_salts_keep_prefixes_apart(live: Live) -> None:
    prompt = [(7 * i) % 1000 + 100 for i in range(70)]

    def cached(salt: str | None) -> int:
        body = post(live, "/v1/completions", prompt=prompt, max_tokens=1, cache_salt=salt).json()
        return int(body["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached("a"), cached("a"), cached("b"), cached(None), cached("b")] == [0, 64, 0, 0, 64]


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_32_streams_at_once(live: Live) -> None:
    """Each gets what it gets alone."""
    async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model="smol", prompt=f"Story number {number}: there was", max_tokens=16, seed=number, temperature=0.8,
                stream=True,
            )  # fmt: skip
            return "".join([chunk.choices[0].text async for chunk in stream])

        together = await asyncio.gather(*(ask(number) for number in range(32)))
        assert [await ask(number) for number in range(0, 32, 5)] == together[::5]
        assert len(set(together)) == 32


async def test_a_stream_that_is_left_is_aborted(live: Live) -> None:
    async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model="smol", prompt=STORY, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        assert live.metric("num_requests_running") == 1
        await stream.close()
    live.wait_idle(1.0)
