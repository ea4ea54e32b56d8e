"""The `openai` client and plain HTTP against a live server of MiniLM: embeddings, scores, ranks, refusals."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests import real
from tests.server.live import Live, error_of

TEXTS = ["A fox jumps.", "Grain prices fell again in March.", "Der Fuchs springt."]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("vectors"), "--served-model-name", "minilm", model=real.minilm())
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(vectors: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=vectors.url + "/v1", api_key="none", max_retries=0)


def post(server: Live, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def test_the_client_gets_what_sentence_transformers_gives(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself."""
    answer = client.embeddings.create(model="minilm", input=TEXTS)
    model, tokenizer = AutoModel.from_pretrained(real.minilm()).eval(), AutoTokenizer.from_pretrained(real.minilm())
    count = 0
    for index, (text, item) in enumerate(zip(TEXTS, answer.data, strict=True)):
        given = tokenizer(text, return_tensors="pt")
        count += given["input_ids"].shape[1]
        with torch.no_grad():
            mean = model(**given).last_hidden_state[0].mean(0)
        assert item.index == index and item.object == "embedding"
        np.testing.assert_allclose(item.embedding, (mean / mean.norm()).numpy(), atol=1e-4)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)
    assert (answer.model, answer.object) == ("minilm", "list")


def test_forms_of_the_input(vectors: Live) -> None:
    """A text, ids, a list of either, the path without /v1: the same vector. base64 is little-endian float32."""
    ids = AutoTokenizer.from_pretrained(real.minilm())(TEXTS[0])["input_ids"]
    wanted = post(vectors, "/v1/embeddings", input=TEXTS[0]).json()["data"][0]["embedding"]
    for given in ([TEXTS[0]], ids, [ids], [TEXTS[1], ids]):
        assert post(vectors, "/embeddings", input=given).json()["data"][-1]["embedding"] == wanted
    packed = post(vectors, "/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(wanted, np.float32))


def test_dimensions_and_truncation(client: openai.OpenAI, vectors: Live) -> None:
    whole = np.array(client.embeddings.create(model="minilm", input=TEXTS[0]).data[0].embedding)
    short = client.embeddings.create(model="minilm", input=TEXTS[0], dimensions=32).data[0].embedding
    np.testing.assert_allclose(short, whole[:32] / np.linalg.norm(whole[:32]), atol=1e-6)
    long = "word " * 3000
    refused = post(vectors, "/v1/embeddings", input=long)
    assert refused.status_code == 400 and error_of(refused)["code"] == "context_length_exceeded"
    cut = post(vectors, "/v1/embeddings", input=long, truncate_prompt_tokens=-1).json()
    fits = post(vectors, "/v1/embeddings", input="word " * 254).json()
    assert cut["usage"]["prompt_tokens"] == 256 and cut["data"] == fits["data"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [3, "a"]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [30522]}, "input"),
        ({"input": "a", "dimensions": 385}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens"),
        ({"input": {"text": "a"}}, "input"),
    ],
)
def test_what_is_refused(vectors: Live, body: dict[str, Any], param: str) -> None:
    answer = post(vectors, "/v1/embeddings", **body)
    assert answer.status_code == 400 and error_of(answer)["param"] == param


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"])
def test_rerank(vectors: Live, path: str) -> None:
    """Cohere's, Jina's and vLLM's shape, and that of TEI."""
    documents: list[Any] = [TEXTS[1], {"text": TEXTS[0]}, TEXTS[2]]
    answer = post(vectors, path, model="minilm", query="an animal leaps", documents=documents).json()
    results = answer["results"]
    assert [each["index"] for each in results][-1] == 0 and results[0]["document"] == {"text": TEXTS[0]}
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True) and answer["usage"]["total_tokens"] > 10
    few = post(vectors, path, query="an animal leaps", documents=documents, top_n=1, return_documents=False).json()
    assert few["results"] == [{"index": 1, "relevance_score": scores[0]}]
    bare = post(vectors, path, query="an animal leaps", texts=[TEXTS[1], TEXTS[0], TEXTS[2]]).json()
    assert bare == [{"index": each["index"], "score": each["relevance_score"]} for each in results]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score(vectors: Live, path: str) -> None:
    """One with several, and pairs; of an embedding model the cosine."""
    one = post(vectors, path, text_1=TEXTS[0], text_2=TEXTS).json()
    assert [each["index"] for each in one["data"]] == [0, 1, 2] and one["data"][0]["score"] == pytest.approx(
        1, abs=1e-6
    )
    pairs = post(vectors, path, text_1=TEXTS, text_2=TEXTS).json()
    assert [each["score"] for each in pairs["data"]] == pytest.approx([1, 1, 1], abs=1e-6)
    wrong = post(vectors, path, text_1=TEXTS[:2], text_2=TEXTS)
    assert wrong.status_code == 400 and error_of(wrong)["param"] == "text_1"
    assert post(vectors, path, text_1="a").status_code == 400
    assert post(vectors, path.replace("score", "rerank"), query="a", documents=[]).status_code == 400


def test_each_kind_of_model_refuses_what_the_other_gives(vectors: Live, live: Live) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", chat)):
        answer = post(vectors, path, **body)
        assert answer.status_code == 400 and "/v1/embeddings" in error_of(answer)["message"], path
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/score", {"text_1": "a", "text_2": "b"}),
                       ("/rerank", {"query": "a", "documents": ["b"]})):  # fmt: skip
        answer = post(live, path, **body)
        assert answer.status_code == 400 and "--task embed" in error_of(answer)["message"], path
    vectors.wait_idle()
    assert any("embeddings of 384 numbers, mean pooling, normalized" in line for line in vectors.lines)


def test_a_crowd_gets_the_bits_of_one(vectors: Live) -> None:
    texts = [f"{'word ' * (i % 90)}number {i}" for i in range(200)]
    together = post(vectors, "/v1/embeddings", input=texts).json()["data"]
    for i in (0, 7, 89, 199):
        assert (
            post(vectors, "/v1/embeddings", input=texts[i]).json()["data"][0]["embedding"] == together[i]["embedding"]
        )


def test_the_vectors_of_ollama_s_routes(vectors: Live, client: openai.OpenAI) -> None:
    """The same numbers, under the names of that client; too long a text is cut unless told otherwise."""
    expected = [item.embedding for item in client.embeddings.create(model="minilm", input=TEXTS).data]
    long = "word " * 5000
    with ollama.Client(host=vectors.url) as other:
        made = other.embed("minilm", TEXTS)
        np.testing.assert_allclose(made.embeddings, expected, atol=1e-6)
        assert made.prompt_eval_count and made.total_duration
        np.testing.assert_allclose(other.embeddings("minilm", TEXTS[0]).embedding, expected[0], atol=1e-6)
        assert len(other.embed("minilm", "x", dimensions=8).embeddings[0]) == 8
        assert other.embed("minilm", []).embeddings == [] and other.embeddings("minilm", "").embedding == []
        assert len(other.embed("minilm", long).embeddings) == 1
        with pytest.raises(ollama.ResponseError, match="maximum context length"):
            other.embed("minilm", long, truncate=False)
        assert other.show("minilm").capabilities == ["embedding"]
    refused = post(vectors, "/api/chat", messages=[{"role": "user", "content": "x"}])
    assert refused.status_code == 400 and set(refused.json()) == {"error"}
