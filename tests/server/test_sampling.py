"""Sampling over HTTP: every parameter of llama.cpp's and vLLM's users does what it says, under every name it has."""

import math
from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_openai import HELLO, STORY, post

ASKED: dict[str, Any] = {"prompt": STORY, "max_tokens": 24, "seed": 3, "temperature": 1.2, "ignore_eos": True}


def text(live: Live, **body: Any) -> str:
    answer = post(live, "/v1/completions", **{**ASKED, **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


@pytest.mark.parametrize(
    "body",
    [
        {"typical_p": 0.3}, {"top_n_sigma": 0.6}, {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"dynatemp_range": 1.0}, {"mirostat": 1, "mirostat_tau": 1.5}, {"mirostat_mode": 2, "mirostat_tau": 1.5},
        {"samplers": "top_k", "top_k": 2},
        {"repetition_penalty": 3.0, "repeat_last_n": 4}, {"samplers": ["min_p"], "min_p": 0.5},
    ],
    ids=lambda body: next(iter(body)),
)  # fmt: skip
def test_it_changes_the_answer_and_repeats(live: Live, body: dict[str, Any]) -> None:
    plain, changed = text(live), text(live, **body)
    assert changed != plain and text(live, **body) == changed
    off = {
        "typical_p": 1,
        "top_n_sigma": 0,
        "xtc_probability": 0,
        "dynatemp_range": 0,
        "mirostat": 0,
        "dry_multiplier": 0,
    }
    assert text(live, **off) == plain


def test_names_and_forms(live: Live) -> None:
    assert text(live, typ_p=0.3) == text(live, typical_p=0.3)
    assert text(live, mirostat_mode=2) == text(live, mirostat=2)
    both = {"top_k": 9, "typical_p": 0.5}
    assert text(live, samplers="top_k;typ_p;temperature", **both) == text(
        live, samplers=["top_k", "typ_p", "temp"], **both
    )


def test_dry_does_not_repeat(live: Live) -> None:
    """A greedy answer of a small model turns in circles; with DRY no four ids come again."""
    asked: dict[str, Any] = {"prompt": "a b c a b c a b c", "max_tokens": 80, "temperature": 0, "ignore_eos": True}

    def repeats(**more: Any) -> int:
        answer = post(live, "/v1/completions", **asked, **more, logprobs=0).json()["choices"][0]
        tokens = answer["logprobs"]["tokens"]
        runs = [tuple(tokens[i : i + 6]) for i in range(len(tokens) - 5)]
        return len(runs) - len(set(runs))

    assert repeats() > 20 and repeats(dry_multiplier=50.0, dry_sequence_breakers=[]) == 0


def test_best_of(live: Live) -> None:
    """The best of the answers that n gives."""

    def mean(choice: dict[str, Any]) -> float:
        return float(sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["token_logprobs"]))

    every = post(live, "/v1/completions", **ASKED, n=5, logprobs=0).json()
    best = post(live, "/v1/completions", **ASKED, n=2, best_of=5, logprobs=0).json()
    ranked = sorted(every["choices"], key=mean, reverse=True)
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 5 * 24, "what was computed"
    bare = post(live, "/v1/completions", **ASKED, best_of=5).json()["choices"]
    assert [choice["text"] for choice in bare] == [ranked[0]["text"]] and bare[0]["logprobs"] is None


def test_beam_search(live: Live) -> None:
    """vLLM's use_beam_search: n beams, the best first, and none is worse than the greedy answer."""
    asked: dict[str, Any] = {"prompt": STORY, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}

    def total(choice: dict[str, Any]) -> float:
        return math.fsum(choice["logprobs"]["token_logprobs"])

    greedy = post(live, "/v1/completions", **asked).json()["choices"][0]
    body = {**asked, "use_beam_search": True, "n": 4}
    answer = post(live, "/v1/completions", **body).json()
    costs = [total(choice) for choice in answer["choices"]]
    assert costs == sorted(costs, reverse=True) and costs[0] >= total(greedy) - 1e-6
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    assert answer["usage"]["completion_tokens"] == 4 * 12
    again = post(live, "/v1/completions", **body).json()
    assert again["choices"] == answer["choices"], "cold and warm prefixes"
    chat = post(live, "/v1/chat/completions", messages=HELLO, max_tokens=6, use_beam_search=True, n=2, length_penalty=0)
    assert chat.status_code == 200 and len(chat.json()["choices"]) == 2
