"""POST /pooling and /classify, in vLLM's shape: the vectors of texts, and the probabilities of labels."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.server.openai.embeddings import EmbeddingsBody, is_base64, texts_of, vector_of
from octavo.server.submit import Front
from octavo.vectors import Text

_BODY = msgspec.json.Decoder(EmbeddingsBody)


async def pooling(request: Request) -> Response:
    """The vector of each input, as the model gives it."""
    front: Front = request.app.state.front
    body, texts = await _asked(request, front)
    as_base64 = is_base64(body.encoding_format)
    found = await front.vectors.embed(
        texts, dimensions=body.dimensions, normalize=body.normalize, truncate=body.truncate_prompt_tokens
    )
    data = [
        {"index": index, "object": "pooling", "data": vector_of(each, as_base64)} for index, each in enumerate(found)
    ]
    return _answer(front, "pool", data, sum(each.tokens for each in found))


async def classify(request: Request) -> Response:
    """The labels of each input, by a model that has a classification head."""
    front: Front = request.app.state.front
    body, texts = await _asked(request, front)
    found = await front.vectors.classify(texts, truncate=body.truncate_prompt_tokens)
    names = (await front.shelf.description()).metadata.get("id2label")
    data: list[dict[str, Any]] = []
    for index, each in enumerate(found):
        best = max(range(len(each.probabilities)), key=lambda label: each.probabilities[label])
        label = names.get(str(best)) if isinstance(names, dict) else None
        data.append(
            {
                "index": index,
                "label": label or f"LABEL_{best}",
                "probs": each.probabilities,
                "num_classes": len(each.probabilities),
            }
        )
    return _answer(front, "classify", data, sum(each.tokens for each in found))


async def _asked(request: Request, front: Front) -> tuple[EmbeddingsBody, list[Text]]:
    body: EmbeddingsBody = await front.body(request, _BODY)
    front.check_model(body.model)
    texts = texts_of(body)
    if body.truncate_prompt_tokens is None:
        for text in texts:
            if isinstance(text, str):
                front.check_length(text, "input")
    if front.llm.client.info.vector == 0:
        raise InvalidRequest("this model generates text; it gives no vectors and no labels.", param="model")
    return body, texts


def _answer(front: Front, kind: str, data: list[dict[str, Any]], tokens: int) -> Response:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    made = {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "object": "list",
        "created": front.created,
        "model": front.model,
        "data": data,
        "usage": usage,
    }
    return Response(msgspec.json.encode(made), media_type="application/json")
