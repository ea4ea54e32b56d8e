"""POST /api/chat, /api/generate, /api/embed and /api/embeddings."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.conversation import answer_headers, converse
from octavo.server.dialect import OLLAMA
from octavo.server.limits import MAX_PROMPTS, check_count
from octavo.server.ollama import schema
from octavo.server.ollama.lines import Lines, line, loaded
from octavo.server.ollama.schema import Asked, OllamaChatBody, OllamaGenerateBody
from octavo.server.openai.completions import filled_in
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front, gather
from octavo.server.translated import Translated
from octavo.vectors import LIMIT


class OllamaEmbedBody(msgspec.Struct):
    model: str | None = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class OllamaEmbeddingsBody(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


_EMBED = msgspec.json.Decoder(OllamaEmbedBody)
_EMBEDDINGS = msgspec.json.Decoder(OllamaEmbeddingsBody)


def as_json(value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json; charset=utf-8")


async def ollama_chat(request: Request) -> Response | EventStream:
    """Answer a conversation."""
    front: Front = request.app.state.front
    body: OllamaChatBody = await front.body(request, schema.CHAT)
    front.check_model(body.model)
    schema.check(body)
    if not body.messages:
        return _loaded(front, body)
    return await _answered(request, front, body)


async def ollama_generate(request: Request) -> Response | EventStream:
    """Answer or continue a prompt."""
    front: Front = request.app.state.front
    body: OllamaGenerateBody = await front.body(request, schema.GENERATE)
    front.check_model(body.model)
    schema.check(body)
    if not body.prompt and not body.suffix:
        return _loaded(front, body)
    return await _answered(request, front, body)


def _name(front: Front, body: Asked) -> str:
    return body.model or front.model


def _loaded(front: Front, body: Asked) -> Response:
    """The model is there already, and it stays: a server of one model has nothing to unload it for."""
    told = loaded(_name(front, body), isinstance(body, OllamaChatBody), "unload" if schema.unloads(body) else "load")
    if body.stream is False:
        return as_json(told)
    return Response(line(told), media_type=OLLAMA.content_type)


async def _answered(request: Request, front: Front, body: Asked) -> Response | EventStream:
    is_chat, top = isinstance(body, OllamaChatBody), (body.top_logprobs or 0) if body.logprobs else None
    if body.stream is not False:  # looks itself whether the client is there
        answering = await _answer(front, body)
        lines = Lines(front, answering, _name(front, body), is_chat, top)
        source, headers = Translated(answering, lines.pieces, lines.last), answer_headers(front, answering)
        return EventStream(source, headers, front.config.sse_ping_interval, lines.idle, OLLAMA)
    async with while_connected(request.receive):
        answering = await _answer(front, body)
        (choice,) = await gather(answering)
        lines = Lines(front, answering, _name(front, body), is_chat, top)
        return as_json(lines.whole(choice), answer_headers(front, answering))


async def _answer(front: Front, body: Asked) -> Answering:
    if isinstance(body, OllamaChatBody):
        return await converse(front, schema.chat_request(front.llm, body))
    if body.suffix:
        params = schema.sampling(front.llm, body)
        given, params = await filled_in(front, [body.prompt or ""], body.suffix, params)
        return await front.answer(given, params, True, None, None)
    if body.raw:
        schema.no_images(body.images, "images")
        return await front.answer([body.prompt or ""], schema.sampling(front.llm, body), True, None, None)
    chat = schema.prompt_request(front.llm, body)
    if not body.context:
        return await converse(front, chat)
    text = await front.llm.render(chat)
    front.check_length(text, "prompt")
    ids = [*body.context, *await front.llm.encode(text, False)]
    return await front.answer([ids], chat.params, False, None, None)


async def embed(request: Request) -> Response:
    """Vectors of texts, of length 1."""
    front: Front = request.app.state.front
    body: OllamaEmbedBody = await front.body(request, _EMBED)
    front.check_model(body.model)
    begin = time.perf_counter()
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    check_count(len(texts), MAX_PROMPTS, "input", "inputs")
    truncate = None if body.truncate is False else LIMIT
    if truncate is None:
        for text in texts:
            front.check_length(text, "input")
    found = await front.vectors.embed(texts, dimensions=body.dimensions, normalize=True, truncate=truncate)
    return as_json(
        {
            "model": body.model or front.model,
            "embeddings": [each.vector.tolist() for each in found],
            "total_duration": int((time.perf_counter() - begin) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(each.tokens for each in found),
        }
    )


async def old_embeddings(request: Request) -> Response:
    """The vector of one text, as older clients ask for it."""
    front: Front = request.app.state.front
    body: OllamaEmbeddingsBody = await front.body(request, _EMBEDDINGS)
    front.check_model(body.model)
    found = await front.vectors.embed([body.prompt], truncate=LIMIT) if body.prompt else []
    return as_json({"embedding": found[0].vector.tolist() if found else []})
