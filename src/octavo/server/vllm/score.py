"""POST /score and /rerank: how near texts are to another, by a reranker or by the cosine of embeddings.

/score in vLLM's shape; /rerank in that of Cohere and Jina, or of TEI where `texts` is given in place of `documents`.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.server.limits import MAX_PROMPTS, check_count
from octavo.server.submit import Front
from octavo.vectors import Score


class Document(msgspec.Struct):
    text: str


class ScoreBody(msgspec.Struct):
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None  # the newer names of the same
    documents: str | list[str] | None = None
    model: str | None = None
    truncate_prompt_tokens: int | None = None


class RerankBody(msgspec.Struct):
    query: str
    documents: list[str | Document] | None = None
    texts: list[str] | None = None  # TEI's name; its answer is a bare list
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    return_text: bool | None = None  # TEI's name
    truncate_prompt_tokens: int | None = None


_SCORE = msgspec.json.Decoder(ScoreBody)
_RERANK = msgspec.json.Decoder(RerankBody)


async def score(request: Request) -> Response:
    """Scores of pairs: one text with each of several, or texts one by one."""
    front: Front = request.app.state.front
    body: ScoreBody = await front.body(request, _SCORE)
    front.check_model(body.model)
    first, second = _given(body.text_1, body.queries, "text_1"), _given(body.text_2, body.documents, "text_2")
    if len(first) not in (1, len(second)):
        raise InvalidRequest(f"text_1 has {len(first)} texts and text_2 {len(second)}: give one, or as many.",
                             param="text_1")  # fmt: skip
    _check(front, first, second, body.truncate_prompt_tokens)
    vectors, truncate = front.vectors, body.truncate_prompt_tokens
    if len(first) == 1:
        found = await vectors.score(first[0], second, truncate=truncate)
    else:
        found = [(await vectors.score(a, [b], truncate=truncate))[0] for a, b in zip(first, second, strict=True)]
    data = [{"index": index, "object": "score", "score": each.value} for index, each in enumerate(found)]
    made = {"id": f"score-{secrets.token_hex(12)}", "object": "list", "created": front.created, "model": front.model,
            "data": data, "usage": _usage(found)}  # fmt: skip
    return Response(msgspec.json.encode(made), media_type="application/json")


async def rerank(request: Request) -> Response:
    """Documents in the order of their nearness to a query."""
    front: Front = request.app.state.front
    body: RerankBody = await front.body(request, _RERANK)
    front.check_model(body.model)
    given: list[Any] = list((body.texts if body.documents is None else body.documents) or [])
    texts = [each.text if isinstance(each, Document) else each for each in given]
    if not texts:
        raise InvalidRequest("documents is missing or empty.", param="documents")
    if body.top_n is not None and body.top_n < 0:
        raise InvalidRequest(f"top_n is {body.top_n}; it must not be negative.", param="top_n")
    _check(front, [body.query], texts, body.truncate_prompt_tokens)
    found = await front.vectors.score(body.query, texts, truncate=body.truncate_prompt_tokens)
    order = sorted(range(len(found)), key=lambda index: (-found[index].value, index))[: body.top_n or None]
    if body.documents is None:
        with_text = bool(body.return_text)
        bare = [{"index": i, "score": found[i].value} | ({"text": texts[i]} if with_text else {}) for i in order]
        return Response(msgspec.json.encode(bare), media_type="application/json")
    with_text = body.return_documents is not False
    results = [
        {"index": i, "relevance_score": found[i].value} | ({"document": {"text": texts[i]}} if with_text else {})
        for i in order
    ]
    made = {"id": f"rerank-{secrets.token_hex(12)}", "model": front.model, "usage": _usage(found), "results": results}
    return Response(msgspec.json.encode(made), media_type="application/json")


def _given(old: str | list[str] | None, new: str | list[str] | None, name: str) -> list[str]:
    value = new if old is None else old
    if not value:
        raise InvalidRequest(f"{name} is missing or empty.", param=name)
    return [value] if isinstance(value, str) else value


def _check(front: Front, first: list[str], second: list[str], truncate: int | None) -> None:
    check_count(max(len(first), len(second)), MAX_PROMPTS, "documents", "texts")
    if truncate is None:
        for text in (*first, *second):
            front.check_length(text, "documents")


def _usage(found: list[Score]) -> dict[str, int]:
    tokens = sum(each.tokens for each in found)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
