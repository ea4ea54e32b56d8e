"""The table of routes: every path that is answered, whatever its dialect, and the path that a client means.

It knows no body. What every request passes before its route stands in app.py.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo import __version__
from octavo.server import metrics as measured
from octavo.server.anthropic.messages import count_tokens, messages
from octavo.server.anthropic.schema import CountBody, MessagesBody
from octavo.server.llamacpp import properties
from octavo.server.llamacpp.completion import completion, infill
from octavo.server.llamacpp.schema import LlamaCompletionBody, LlamaInfillBody, LlamaTemplateBody
from octavo.server.ollama import manage
from octavo.server.ollama.chat import (
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    embed,
    old_embeddings,
    ollama_chat,
    ollama_generate,
)
from octavo.server.ollama.manage import OllamaCopyBody, OllamaModelBody
from octavo.server.ollama.schema import OllamaChatBody, OllamaGenerateBody
from octavo.server.openai.batches import BatchBody, batch, batches, cancel_batch
from octavo.server.openai.chat import chat
from octavo.server.openai.completions import completions
from octavo.server.openai.embeddings import EmbeddingsBody, embeddings
from octavo.server.openai.files import file, file_content, files
from octavo.server.openai.models import model, models
from octavo.server.openai.response_body import ResponseBody
from octavo.server.openai.responses import cancel_response, input_items, input_tokens, response, responses
from octavo.server.openai.schema import ChatBody, CompletionBody
from octavo.server.openai.wire import take_up
from octavo.server.openapi import Operation, document
from octavo.server.openapi_page import page
from octavo.server.submit import Front
from octavo.server.usage import usage
from octavo.server.vllm import admin
from octavo.server.vllm.pool import classify, pooling
from octavo.server.vllm.score import RerankBody, ScoreBody, rerank, score
from octavo.server.vllm.tokenize import DetokenizeBody, TokenizeBody, detokenize, tokenize

Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Entry:
    """A line of the table. public: served without a key. admin: with an administrator's alone. body, queries, upload:
    for the OpenAPI document, see Operation. label: of metrics, never the client's own path."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    public: bool = False
    body: type | None = None
    admin: bool = False
    queries: tuple[str, ...] = ()
    upload: bool = False

    @property
    def label(self) -> str:
        return self.path.replace(":path", "")

    def parameters(self, path: str) -> dict[str, str]:
        """{"id": …} of a path that `takes` says yes to; {} where the line has none."""
        before, _, after = self._around
        return {"id": path[len(before) : len(path) - len(after)]} if "{" in self.path else {}

    def takes(self, path: str) -> bool:
        """Whether a path is of this line: `{id}` stands for a part without slashes, `{id:path}` for any."""
        before, parameter, after = self._around
        if not parameter:
            return path == self.path
        if not (path.startswith(before) and path.endswith(after)):
            return False
        id_ = path[len(before) : len(path) - len(after)]
        return bool(id_) and (parameter == "id:path" or "/" not in id_)

    @property
    def _around(self) -> tuple[str, str, str]:
        before, _, rest = self.path.partition("{")
        parameter, _, after = rest.partition("}")
        return before, parameter, after

    @property
    def operation(self) -> Operation:
        """For the OpenAPI document."""
        summary = (self.handler.__doc__ or self.label).partition("\n")[0]
        return Operation(self.label, self.methods, self.public, summary, self.body, self.queries, self.upload)


async def root(request: Request) -> Response:
    """A word that the server runs."""
    return Response("Octavo is running\n", media_type="text/plain")


async def health(request: Request) -> Response:
    """200 only if a request would be served now."""
    request.app.state.front.health.check()
    return _json({"status": "ok"})


async def live(request: Request) -> Response:
    """200 whenever the process answers."""
    return _json({"status": "ok"})


async def version(request: Request) -> Response:
    """Octavo's version."""
    return _json({"version": __version__, "server": "octavo"})


async def openapi(request: Request) -> Response:
    """The OpenAPI document of these routes."""
    return _json(document([entry.operation for entry in ROUTES]))


async def docs(request: Request) -> Response:
    """That document as a page."""
    return Response(page(document([entry.operation for entry in ROUTES])), media_type="text/html")


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    front: Front = request.app.state.front
    await front.metrics.refresh(front.llm, not front.health.draining and front.health.healthy())
    return Response(front.metrics.text(), headers={"content-type": measured.CONTENT_TYPE})


ROUTES = (
    Entry("/", ("GET",), root, public=True),
    Entry("/health", ("GET",), health, public=True),
    Entry("/ready", ("GET",), health, public=True),
    Entry("/readyz", ("GET",), health, public=True),
    Entry("/ping", ("GET", "POST"), health, public=True),
    Entry("/live", ("GET",), live, public=True),
    Entry("/version", ("GET",), version, public=True),
    Entry("/metrics", ("GET",), metrics),
    Entry("/openapi.json", ("GET",), openapi),
    Entry("/docs", ("GET",), docs),
    Entry("/v1/models", ("GET",), models),
    Entry("/v1/models/{id:path}", ("GET",), model),
    Entry("/v1/chat/completions", ("POST",), chat, body=ChatBody),
    Entry("/v1/completions", ("POST",), completions, body=CompletionBody),
    Entry("/v1/stream/{id:path}", ("GET",), take_up, queries=("from",)),
    Entry("/v1/responses", ("POST",), responses, body=ResponseBody),
    Entry("/v1/responses/input_tokens", ("POST",), input_tokens, body=ResponseBody),
    Entry("/v1/responses/{id}", ("GET", "DELETE"), response),
    Entry("/v1/responses/{id}/cancel", ("POST",), cancel_response),
    Entry("/v1/responses/{id}/input_items", ("GET",), input_items, queries=("limit", "order", "after")),
    Entry("/v1/files", ("GET", "POST"), files, queries=("purpose", "limit", "order", "after"), upload=True),
    Entry("/v1/files/{id}", ("GET", "DELETE"), file),
    Entry("/v1/files/{id}/content", ("GET",), file_content),
    Entry("/v1/batches", ("GET", "POST"), batches, body=BatchBody, queries=("after", "limit")),
    Entry("/v1/batches/{id}", ("GET",), batch),
    Entry("/v1/batches/{id}/cancel", ("POST",), cancel_batch),
    Entry("/v1/usage", ("GET",), usage),
    Entry("/v1/embeddings", ("POST",), embeddings, body=EmbeddingsBody),
    Entry("/v1/rerank", ("POST",), rerank, body=RerankBody),
    Entry("/v2/rerank", ("POST",), rerank, body=RerankBody),
    Entry("/v1/reranking", ("POST",), rerank, body=RerankBody),
    Entry("/v1/score", ("POST",), score, body=ScoreBody),
    Entry("/v1/messages", ("POST",), messages, body=MessagesBody),
    Entry("/v1/messages/count_tokens", ("POST",), count_tokens, body=CountBody),
    Entry("/api/chat", ("POST",), ollama_chat, body=OllamaChatBody),
    Entry("/api/generate", ("POST",), ollama_generate, body=OllamaGenerateBody),
    Entry("/api/embed", ("POST",), embed, body=OllamaEmbedBody),
    Entry("/api/embeddings", ("POST",), old_embeddings, body=OllamaEmbeddingsBody),
    Entry("/api/tags", ("GET",), manage.tags),
    Entry("/api/ps", ("GET",), manage.ps),
    Entry("/api/version", ("GET",), manage.version, public=True),
    Entry("/api/show", ("POST",), manage.show, body=OllamaModelBody),
    Entry("/api/pull", ("POST",), manage.pull, body=OllamaModelBody, admin=True),
    Entry("/api/copy", ("POST",), manage.copy, body=OllamaCopyBody, admin=True),
    Entry("/api/delete", ("DELETE",), manage.delete, body=OllamaModelBody, admin=True),
    Entry("/completion", ("POST",), completion, body=LlamaCompletionBody),
    Entry("/infill", ("POST",), infill, body=LlamaInfillBody),
    Entry("/apply-template", ("POST",), properties.apply_template, body=LlamaTemplateBody),
    Entry("/props", ("GET",), properties.props),
    Entry("/slots", ("GET",), properties.slots, admin=True, queries=("fail_on_no_slot",)),
    Entry("/lora-adapters", ("GET",), properties.lora_adapters),
    Entry("/pooling", ("POST",), pooling, body=EmbeddingsBody),
    Entry("/classify", ("POST",), classify, body=EmbeddingsBody),
    Entry("/load", ("GET",), admin.load),
    Entry("/reset_prefix_cache", ("POST",), admin.reset_prefix_cache, admin=True),
    Entry("/tokenizer_info", ("GET",), admin.tokenizer_info),
    Entry("/api/v0/models", ("GET",), admin.studio_models),
    Entry("/api/v0/models/{id:path}", ("GET",), admin.studio_model),
    Entry("/tokenize", ("POST",), tokenize, body=TokenizeBody),
    Entry("/detokenize", ("POST",), detokenize, body=DetokenizeBody),
)
_FIXED = {entry.path: entry for entry in ROUTES if "{" not in entry.path}
_OPEN = tuple(entry for entry in ROUTES if "{" in entry.path)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def canonical(path: str) -> str:
    """The path of the table that a client means: a trailing slash, a doubled `/v1` or a missing one are no error."""
    if path in _FIXED:
        return path
    path = re.sub(r"/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    while path.startswith("/v1/v1/") or path == "/v1/v1":
        path = path[3:]
    bare = path.removeprefix("/v1") or "/"
    return next((each for each in (path, "/v1" + path, bare) if each != "/" and entry_of(each)), path)


def entry_of(path: str) -> Entry | None:
    """The line of the table for a canonical path."""
    return _FIXED.get(path) or next((entry for entry in _OPEN if entry.takes(path)), None)
