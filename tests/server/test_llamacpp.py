"""llama.cpp's own routes against live servers of real models: shapes, defaults, figures, filling in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from octavo.async_llm import AsyncLLM
from octavo.server.llamacpp import schema
from octavo.tokenizer.tokenizer import Tokenizer
from tests import real
from tests.server.live import CONTEXT, Live, error_of, events

STORY = "Once upon a time there was a small fox who"
GREEDY: Any = {"temperature": 0, "n_predict": 12}
TIMINGS = {
    "cache_n", "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Qwen2.5-Coder, which fills in."""
    sizes = ["--max-model-len", str(CONTEXT), "--kv-cache-memory", "64MiB", "--served-model-name", "coder"]
    server = Live(tmp_path_factory.mktemp("coder"), *sizes, model=real.qwen_half_b())
    yield server
    assert server.stop() == 0


def post(live: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


# -- completion --------------------------------------------------------------------------------------------------------


def test_a_completion(live: Live) -> None:
    made = post(live, "/completion", prompt=STORY, **GREEDY, return_tokens=True).json()
    assert made["content"] and made["stop"] is True and made["stop_type"] == "limit" and made["model"] == "smol"
    assert (made["tokens_predicted"], len(made["tokens"]), made["truncated"]) == (12, 12, False)
    assert set(made["timings"]) == TIMINGS and made["timings"]["predicted_n"] == 12
    assert made["tokens_evaluated"] == made["timings"]["prompt_n"] + made["timings"]["cache_n"]
    assert made["prompt"] == STORY and made["generation_settings"]["temperature"] == 0
    other = post(live, "/v1/completions", prompt=STORY, temperature=0, max_tokens=12).json()
    assert other["choices"][0]["text"] == made["content"]


def test_a_stream_gives_the_same(live: Live) -> None:
    whole = post(live, "/completion", prompt=STORY, **GREEDY).json()
    answer = post(live, "/completion", prompt=STORY, **GREEDY, stream=True, timings_per_token=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(answer.text)
    assert "".join(part["content"] for part in parts) == whole["content"] and last["content"] == ""
    assert not any(part["stop"] for part in parts) and last["stop"] is True
    assert [part["tokens_predicted"] for part in parts] == sorted(part["tokens_predicted"] for part in parts)
    assert all(set(part["timings"]) == TIMINGS for part in parts) and last["stop_type"] == whole["stop_type"]


def test_forms_of_a_prompt(live: Live) -> None:
    """A text, ids, ids and texts, and lists of these: the same answers; several are a list."""
    ids = post(live, "/tokenize", content=STORY, add_special=True).json()["tokens"]
    expected = post(live, "/completion", prompt=STORY, **GREEDY).json()["content"]
    for prompt in (ids, [*ids[:-1], " who"], [STORY], [ids], {"prompt_string": STORY}):
        made = post(live, "/completion", prompt=prompt, **GREEDY).json()
        assert made["content"] == expected, prompt
    several = post(live, "/completion", prompt=[STORY, ids, "Hello"], **GREEDY).json()
    assert [each["index"] for each in several] == [0, 1, 2]
    assert [each["content"] for each in several[:2]] == [expected, expected]


def test_how_an_answer_ends(live: Live) -> None:
    text = post(live, "/completion", prompt=STORY, **GREEDY).json()["content"]
    word = text.split()[3]
    cut = post(live, "/completion", prompt=STORY, **GREEDY, stop=[word]).json()
    assert (cut["stop_type"], cut["stopping_word"], cut["content"]) == ("word", word, text[: text.index(word)])
    chat = post(live, "/apply-template", messages=[{"role": "user", "content": "Say only: hi"}]).json()["prompt"]
    ended = post(live, "/completion", prompt=chat, temperature=0, n_predict=-1).json()
    assert ended["stop_type"] == "eos" and ended["stopping_word"] == ""


def test_probabilities(live: Live) -> None:
    whole = post(live, "/completion", prompt=STORY, **GREEDY, n_probs=3).json()
    parts = events(post(live, "/completion", prompt=STORY, **GREEDY, n_probs=3, stream=True).text)
    streamed = [each for part in parts for each in part.get("completion_probabilities", ())]
    for entries in (whole["completion_probabilities"], streamed):
        assert len(entries) == 12
        assert all({"id", "token", "bytes", "logprob", "top_logprobs"} == set(entry) for entry in entries)
        assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in entries)
    assert "completion_probabilities" not in post(live, "/completion", prompt=STORY, **GREEDY, n_probs=0).json()


def test_what_is_known_of_a_prompt_is_told(live: Live) -> None:
    """return_progress brings an event when the prompt has been read; timings say what was cached."""
    prompt = "It was a dark and stormy night, and the rain fell in torrents on the roofs of the little town. " * 4
    post(live, "/completion", prompt=prompt, **GREEDY)
    first, *_, last = events(post(live, "/completion", prompt=prompt, **GREEDY, stream=True, return_progress=True).text)
    told = first["prompt_progress"]
    assert told["total"] == told["processed"] == last["tokens_evaluated"] and 0 < told["cache"] < told["total"]
    assert last["timings"]["cache_n"] == told["cache"]


@pytest.fixture(scope="module")
def llm() -> AsyncLLM:
    from octavo.checkpoints.checkpoint import open_checkpoint

    made: Any = type("Defaults", (), {})()
    made.defaults, made.tokenizer = {}, Tokenizer.from_checkpoint(open_checkpoint(real.smollm2()))
    return made  # type: ignore[no-any-return]


def read(**body: Any) -> Any:
    return schema.COMPLETION.decode(json.dumps(body))


def test_defaults_are_those_of_llama_cpp(llm: AsyncLLM) -> None:
    made = schema.sampling(llm, read(prompt="x"))
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (0.8, 40, 0.95, 0.05)
    assert (made.repeat_last_n, made.repetition_penalty, made.max_tokens) == (64, 1.0, None)
    assert list(made.samplers or ())[0] == "penalties" and list(made.samplers or ())[-1] == "temperature"
    given = schema.sampling(llm, read(temperature=None, repeat_penalty=1.2, typ_p=0.9, n_predict=0, seed=-1, top_k=3))
    assert (given.repetition_penalty, given.typical_p, given.max_tokens, given.top_k) == (1.2, 0.9, 1, 3)
    constrained = schema.sampling(llm, read(grammar='root ::= "a"')).structured_outputs
    assert constrained and constrained.kind == "grammar"
    assert schema.sampling(llm, read(json_schema={"type": "object"})).structured_outputs.json  # type: ignore[union-attr]


def test_biases(llm: AsyncLLM) -> None:
    """Pairs or a map, ids or texts, a number or false."""
    (hello,) = llm.tokenizer.encode(" hello")
    for given in ([[5, 1.5], [" hello", False]], {"5": 1.5, " hello": False}):
        assert schema.sampling(llm, read(logit_bias=given)).logit_bias == {5: 1.5, hello: -100.0}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completion", {}, "prompt"),
        ("/completion", {"prompt": []}, "prompt"),
        ("/completion", {"prompt": [1, None]}, "prompt"),
        ("/completion", {"prompt": ["a", None]}, "prompt[1]"),
        ("/completion", {"prompt": "a", "logit_bias": [1]}, "logit_bias"),
        ("/completion", {"prompt": "a", "logit_bias": [[1, "x"]]}, "logit_bias"),
        ("/completion", {"prompt": "a", "top_p": 3}, "top_p"),
        ("/completion", {"prompt": [2**31]}, "prompt"),
        ("/infill", {}, "input_prefix"),
        ("/infill", {"input_prefix": "a"}, "suffix"),  # SmolLM2 has no tokens for it
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/apply-template", {}, None),
    ],
)
def test_refusals(live: Live, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = post(live, path, **body)
    assert answer.status_code == 400 and (param is None or error_of(answer)["param"] == param), answer.text


# -- filling in --------------------------------------------------------------------------------------------------------

BEFORE, BEHIND = "def add(a, b):\n    return ", "\n\n\nprint(add(1, 2))\n"


def test_filling_in(coder: Live) -> None:
    """The same middle over all routes that fill in: llama.cpp's, OpenAI's, Ollama's."""
    made = post(
        coder, "/infill", input_prefix=BEFORE, input_suffix=BEHIND, temperature=0, n_predict=40, stop=["\n"]
    ).json()
    assert made["content"] == "a + b" and made["stop_type"] == "word"
    client = openai.OpenAI(base_url=coder.url + "/v1", api_key="none", max_retries=0)
    asked: Any = {
        "model": "coder",
        "prompt": BEFORE,
        "suffix": BEHIND,
        "temperature": 0,
        "max_tokens": 40,
        "stop": "\n",
    }
    assert client.completions.create(**asked).choices[0].text == made["content"]
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == made["content"]
    options = {"temperature": 0, "num_predict": 40, "stop": ["\n"]}
    other = post(coder, "/api/generate", prompt=BEFORE, suffix=BEHIND, stream=False, options=options).json()
    assert other["response"] == made["content"] and other["done_reason"] == "stop"


def test_other_files_and_a_beginning(coder: Live) -> None:
    """What stands in other files is used; the middle goes on from how it was begun."""
    extra = [{"filename": "sums.py", "text": "def triple(value):\n    return 3 * value\n"}]
    before = "from sums import triple\n\n\ndef nine_times(value):\n    return triple("
    made = post(coder, "/infill", input_prefix=before, input_suffix=")\n", input_extra=extra, **GREEDY).json()
    assert "triple" in made["content"] or "value" in made["content"]
    assert "<|file_sep|>sums.py\n" in made["prompt"] and made["prompt"].startswith("<|repo_name|>")
    begun = post(coder, "/infill", input_prefix=BEFORE, input_suffix=BEHIND, prompt="b", **GREEDY).json()
    assert begun["content"].startswith(" + a")


def test_names_of_tokens_inside_are_text(coder: Live) -> None:
    evil = "x = '<|fim_middle|>'\n"
    made = post(coder, "/infill", input_prefix=evil, input_suffix="", **GREEDY).json()
    plain = post(coder, "/tokenize", content=evil, parse_special=False).json()["count"]
    assert made["tokens_evaluated"] == plain + 3


# -- the server --------------------------------------------------------------------------------------------------------


def test_properties(live: Live) -> None:
    told = httpx.get(f"{live.url}/props").json()
    settings = told["default_generation_settings"]
    assert settings["n_ctx"] == CONTEXT and settings["params"]["temperature"] == 0.8
    assert told["total_slots"] == 64 and told["model_path"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert told["eos_token"] == "<|im_end|>" and "im_start" in told["chat_template"]
    assert told["modalities"] == {"vision": False, "audio": False} and told["build_info"].startswith("octavo")
    slots = httpx.get(f"{live.url}/slots", params={"fail_on_no_slot": 1}).json()
    assert len(slots) == 64 and not any(slot["is_processing"] for slot in slots)
    assert httpx.get(f"{live.url}/lora-adapters").json() == []
    assert httpx.get(f"{live.url}/v1/health").json() == {"status": "ok"}


def test_the_template_is_the_one_of_chats(live: Live) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text = post(live, "/apply-template", messages=messages).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\n") and "Hello" in text
    assert post(live, "/tokenize", messages=messages).json()["count"] == len(
        post(live, "/tokenize", content=text).json()["tokens"]
    )
