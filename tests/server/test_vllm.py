"""vLLM's further routes, TGI's tokenize and LM Studio's list, against live servers of real models and a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests import real
from tests.models.test_encoders import folder
from tests.server.live import CONTEXT, Live, error_of

LABELS = ["anger", "joy", "fear"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("vectors"), "--served-model-name", "minilm", model=real.minilm())
    yield server
    assert server.stop() == 0


def post(server: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def test_what_clients_read_of_a_model(live: Live) -> None:
    """vLLM's max_model_len, llama.cpp's meta, LM Studio's loaded_context_length."""
    told = httpx.get(f"{live.url}/v1/models/smol").json()
    assert told["max_model_len"] == told["meta"]["n_ctx"] == CONTEXT
    assert told["meta"]["n_ctx_train"] == 8192 and told["meta"]["n_embd"] == 576
    assert 130e6 < told["meta"]["n_params"] < 170e6 < told["meta"]["size"] * 3
    first, second = httpx.get(f"{live.url}/api/v0/models").json()["data"]
    assert (first["id"], first["type"], first["state"], first["arch"]) == ("smol", "llm", "loaded", "llama")
    assert (first["loaded_context_length"], first["max_context_length"]) == (CONTEXT, 8192)
    assert httpx.get(f"{live.url}/api/v0/models/a/b:c").json() == second
    missing = httpx.get(f"{live.url}/api/v0/models/gpt-4")
    assert missing.status_code == 404 and error_of(missing)["code"] == "model_not_found"


def test_a_remote_tokenizer(live: Live) -> None:
    """What lm-eval asks: special tokens, the template, ids and back."""
    told = httpx.get(f"{live.url}/tokenizer_info").json()
    assert told["eos_token"] == "<|im_end|>" and told["bos_token"] and "im_start" in told["chat_template"]
    assert post(live, "/tokenize", prompt=told["eos_token"]).json()["tokens"] == [told["eos_token_id"]]
    text = "Grüße, 世界! 🦊"
    ids = post(live, "/tokenize", prompt=text).json()["tokens"]
    assert post(live, "/detokenize", tokens=ids).json()["prompt"] == text
    places = post(live, "/tokenize", inputs=text).json()
    assert [each["id"] for each in places] == ids and places[-1]["stop"] == len(text)
    assert all(a["stop"] == b["start"] for a, b in zip(places, places[1:], strict=False))


def test_the_cache_can_be_emptied(live: Live) -> None:
    prompt = "The cache knows this long beginning of a text that says nothing at all, again and again. " * 3
    for _ in range(2):
        usage = post(live, "/v1/completions", prompt=prompt, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 16
    assert post(live, "/reset_prefix_cache").status_code == 200
    usage = post(live, "/v1/completions", prompt=prompt, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert httpx.get(f"{live.url}/load").json() == {"server_load": 0}


def test_pooling(vectors: Live) -> None:
    texts = ["A fox jumps.", "Grain prices fell."]
    wanted = [each["embedding"] for each in post(vectors, "/v1/embeddings", input=texts).json()["data"]]
    made = post(vectors, "/pooling", model="minilm", input=texts).json()
    assert [each["data"] for each in made["data"]] == wanted and made["object"] == "list"
    assert made["id"].startswith("pool-") and made["usage"]["prompt_tokens"] > 8
    refused = post(vectors, "/classify", input=texts)
    assert refused.status_code == 400 and "no labels" in error_of(refused)["message"]


def test_no_vectors_of_a_model_that_writes(live: Live) -> None:
    for path in ("/pooling", "/classify"):
        refused = post(live, path, input="a")
        assert refused.status_code == 400 and error_of(refused)["param"] == "model"


def test_classify(tmp_path: Path) -> None:
    """The probabilities that transformers gives, under the labels' own names."""
    names = dict(enumerate(LABELS))
    path = folder(tmp_path / "model", "bert", AutoModelForSequenceClassification, id2label=names)
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    server = Live(tmp_path, model=path)
    try:
        texts = ["what a day", "x"]
        made = post(server, "/classify", input=texts).json()["data"]
        for text, each in zip(texts, made, strict=True):
            ids = post(server, "/tokenize", prompt=text).json()["tokens"]
            with torch.no_grad():
                wanted = theirs(torch.tensor([ids])).logits[0].softmax(0).tolist()
            assert each["probs"] == pytest.approx(wanted, abs=1e-2) and each["num_classes"] == 3
            assert each["label"] == LABELS[wanted.index(max(wanted))]
    finally:
        assert server.stop() == 0
