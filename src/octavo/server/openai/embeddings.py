"""POST /v1/embeddings: texts or ids -> vectors, as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.server.limits import MAX_PROMPTS, check_count
from octavo.server.submit import Front
from octavo.vectors import Embedding, Text


class EmbeddingsBody(msgspec.Struct):
    input: str | list[str | int | list[int]] | None = None
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    normalize: bool | None = None  # vLLM's and llama.cpp's further fields; the model's own way where left out
    user: str | None = None
    content: str | list[str | int | list[int]] | None = None  # llama.cpp's name of input


_BODY = msgspec.json.Decoder(EmbeddingsBody)


async def embeddings(request: Request) -> Response:
    """The embedding of each input."""
    front: Front = request.app.state.front
    body: EmbeddingsBody = await front.body(request, _BODY)
    front.check_model(body.model)
    as_base64 = is_base64(body.encoding_format)
    texts = texts_of(body)
    if body.truncate_prompt_tokens is None:
        for text in texts:
            if isinstance(text, str):
                front.check_length(text, "input")
    found = await front.vectors.embed(
        texts, dimensions=body.dimensions, normalize=body.normalize, truncate=body.truncate_prompt_tokens
    )
    tokens = sum(each.tokens for each in found)
    made = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector_of(each, as_base64)}
            for index, each in enumerate(found)
        ],
        "model": front.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(msgspec.json.encode(made), media_type="application/json")


def is_base64(name: str | None) -> bool:
    """Whether vectors go out as base64."""
    if name not in (None, "float", "base64"):
        raise InvalidRequest(f"encoding_format is {name[:40]!r}; it must be float or base64.", param="encoding_format")
    return name == "base64"


def texts_of(body: EmbeddingsBody) -> list[Text]:
    """A list of texts, or of lists of ids."""
    given: Any = body.content if body.input is None else body.input
    if given is None or given == []:
        raise InvalidRequest("input is missing or empty: give a text, texts, ids, or lists of ids.", param="input")
    listed = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    check_count(len(listed), MAX_PROMPTS, "input", "inputs")
    ids = given if listed == [given] and not isinstance(given, str) else []
    if any(isinstance(each, int) for each in listed) or any(not isinstance(each, int) for each in ids):
        raise InvalidRequest("input mixes ids with texts or with lists of ids.", param="input")
    return list(listed)


def vector_of(found: Embedding, as_base64: bool) -> Any:
    """The numbers, or base64 of them."""
    raw = found.vector.astype("<f4")
    return base64.b64encode(raw.tobytes()).decode() if as_base64 else raw.tolist()
