"""What the answers of each route look like, for /openapi.json: fields that every answer of that kind has, and of which
type. An answer may have more.
"""

from __future__ import annotations

from typing import Any

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
PLAIN, HTML, BYTES = "text/plain", "text/html", "application/octet-stream"
Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}


def _object(**fields: Schema) -> Schema:
    return {"type": "object", "required": list(fields), "properties": fields}


def _all(each: Schema) -> Schema:
    return {"type": "array", "items": each}


def _or_null(each: Schema) -> Schema:
    return {"anyOf": [each, {"type": "null"}]}


def _const(value: str) -> Schema:
    return {"const": value}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(each: Schema, **more: Schema) -> Schema:
    return _object(object=_const("list"), data=_all(each), **more)


_PAGE = {"first_id": _or_null(TEXT), "last_id": _or_null(TEXT), "has_more": FLAG}
_USAGE = _object(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
_VECTOR_USAGE = _object(prompt_tokens=COUNT, total_tokens=COUNT)
_CHAT_CHOICE = _object(
    index=COUNT, finish_reason=TEXT, logprobs=_or_null(ANY_OBJECT),
    message=_object(role=_const("assistant"), content=_or_null(TEXT), refusal=_or_null(TEXT)),
)  # fmt: skip
_CHOICE = _object(index=COUNT, text=TEXT, finish_reason=TEXT, logprobs=_or_null(ANY_OBJECT))
_OLLAMA_END = {"model": TEXT, "created_at": TEXT, "done": FLAG, "done_reason": TEXT}
_OLLAMA_MODEL = _object(name=TEXT, model=TEXT, size=COUNT, digest=TEXT, details=ANY_OBJECT)
_LLAMA = _object(
    index=COUNT, content=TEXT, stop=FLAG, tokens_predicted=COUNT, tokens_evaluated=COUNT, timings=ANY_OBJECT
)
_COUNTS = _object(requests=COUNT, prompt_tokens=COUNT, generated_tokens=COUNT)
_STUDIO = _object(id=TEXT, object=_const("model"), type=TEXT, state=TEXT, loaded_context_length=COUNT)

# Names of answers -> their schemas.
ANSWERS: dict[str, Schema] = {
    "Status": _object(status=_const("ok")),
    "Version": _object(version=TEXT),
    "Model": _object(id=TEXT, object=_const("model"), created=COUNT, owned_by=TEXT, max_model_len=COUNT),
    "ModelList": _list(_ref("Model"), **_PAGE),
    "ChatCompletion": _object(
        id=TEXT, object=_const("chat.completion"), created=COUNT, model=TEXT, choices=_all(_CHAT_CHOICE), usage=_USAGE,
    ),
    "Completion": _object(
        id=TEXT, object=_const("text_completion"), created=COUNT, model=TEXT, choices=_all(_CHOICE), usage=_USAGE,
    ),
    "Response": _object(
        id=TEXT, object=_const("response"), created_at=NUMBER, status=TEXT, model=TEXT, output=_all(ANY_OBJECT),
        usage=_or_null(_object(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT)),
    ),
    "InputTokens": _object(object=_const("response.input_tokens"), input_tokens=COUNT),
    "ItemList": _list(_object(id=TEXT, type=TEXT), **_PAGE),
    "Deleted": _object(id=TEXT, object=TEXT, deleted=FLAG),
    "File": _object(id=TEXT, object=_const("file"), bytes=COUNT, created_at=COUNT, filename=TEXT, purpose=TEXT),
    "FileList": _list(_ref("File"), **_PAGE),
    "Batch": _object(
        id=TEXT, object=_const("batch"), endpoint=TEXT, input_file_id=TEXT, status=TEXT, created_at=COUNT,
        request_counts=_object(total=COUNT, completed=COUNT, failed=COUNT),
    ),
    "BatchList": _list(_ref("Batch"), **_PAGE),
    "UsageList": _list(_object(key=_or_null(TEXT), today=ANY_OBJECT, total=_COUNTS, open_requests=COUNT)),
    "EmbeddingList": _list(
        _object(object=_const("embedding"), index=COUNT, embedding={"type": ["array", "string"]}),
        model=TEXT, usage=_VECTOR_USAGE,
    ),
    "PoolingList": _list(_object(object=_const("pooling"), index=COUNT, data={"type": ["array", "string"]})),
    "LabelList": _list(_object(index=COUNT, label=TEXT, probs=_all(NUMBER), num_classes=COUNT)),
    "ScoreList": _list(_object(object=_const("score"), index=COUNT, score=NUMBER), usage=_VECTOR_USAGE),
    "Ranking": {
        "anyOf": [
            _object(id=TEXT, model=TEXT, results=_all(_object(index=COUNT, relevance_score=NUMBER))),
            _all(_object(index=COUNT, score=NUMBER)),
        ]
    },
    "Message": _object(
        id=TEXT, type=_const("message"), role=_const("assistant"), model=TEXT, content=_all(_object(type=TEXT)),
        stop_reason=_or_null(TEXT), usage=_object(input_tokens=COUNT, output_tokens=COUNT),
    ),
    "TokenCount": _object(input_tokens=COUNT),
    "OllamaChat": _object(**_OLLAMA_END, message=_object(role=_const("assistant"), content=TEXT)),
    "OllamaGenerate": _object(**_OLLAMA_END, response=TEXT),
    "OllamaEmbed": _object(model=TEXT, embeddings=_all(_all(NUMBER))),
    "OllamaEmbedding": _object(embedding=_all(NUMBER)),
    "OllamaModels": _object(models=_all(_OLLAMA_MODEL)),
    "OllamaModel": _object(details=ANY_OBJECT, model_info=ANY_OBJECT, capabilities=_all(TEXT), template=TEXT),
    "OllamaStatus": _object(status=TEXT),
    "LlamaCompletion": {"anyOf": [_LLAMA, _all(_LLAMA)]},
    "LlamaPrompt": _object(prompt=TEXT),
    "LlamaProps": _object(default_generation_settings=ANY_OBJECT, total_slots=COUNT, model_path=TEXT, build_info=TEXT),
    "LlamaSlots": _all(_object(id=COUNT, n_ctx=COUNT, is_processing=FLAG)),
    "Adapters": _all(ANY_OBJECT),
    "Load": _object(server_load=COUNT),
    "Tokenizer": _object(tokenizer_class=TEXT, vocab_size=COUNT, model_max_length=COUNT),
    "StudioModel": _STUDIO,
    "StudioModels": _list(_STUDIO),
    "Tokens": {"anyOf": [_object(count=COUNT, tokens=_all({"type": ["integer", "object"]})), _all(_object(id=COUNT))]},
    "Text": _object(prompt=TEXT, content=TEXT),
    "OpenApi": _object(openapi=TEXT, info=ANY_OBJECT, paths=ANY_OBJECT),
}  # fmt: skip

# Path of a route -> a name above, or a content type; "POST /x" where methods differ.
_OF: dict[str, str] = {
    "/": PLAIN, "/health": "Status", "/ready": "Status", "/readyz": "Status", "/ping": "Status", "/live": "Status",
    "/version": "Version", "/metrics": PLAIN, "/openapi.json": "OpenApi", "/docs": HTML,
    "/v1/models": "ModelList", "/v1/models/{id}": "Model", "/v1/chat/completions": "ChatCompletion",
    "/v1/completions": "Completion", "/v1/stream/{id}": EVENTS, "/v1/responses": "Response",
    "/v1/responses/input_tokens": "InputTokens", "/v1/responses/{id}": "Response",
    "DELETE /v1/responses/{id}": "Deleted", "/v1/responses/{id}/cancel": "Response",
    "/v1/responses/{id}/input_items": "ItemList",
    "/v1/files": "FileList", "POST /v1/files": "File", "/v1/files/{id}": "File", "DELETE /v1/files/{id}": "Deleted",
    "/v1/files/{id}/content": BYTES, "/v1/batches": "BatchList", "POST /v1/batches": "Batch",
    "/v1/batches/{id}": "Batch", "/v1/batches/{id}/cancel": "Batch", "/v1/usage": "UsageList",
    "/v1/embeddings": "EmbeddingList", "/v1/rerank": "Ranking", "/v2/rerank": "Ranking", "/v1/reranking": "Ranking",
    "/v1/score": "ScoreList", "/v1/messages": "Message", "/v1/messages/count_tokens": "TokenCount",
    "/api/chat": "OllamaChat", "/api/generate": "OllamaGenerate", "/api/embed": "OllamaEmbed",
    "/api/embeddings": "OllamaEmbedding", "/api/tags": "OllamaModels", "/api/ps": "OllamaModels",
    "/api/version": "Version", "/api/show": "OllamaModel", "/api/pull": "OllamaStatus",
    "/api/copy": "", "/api/delete": "",
    "/completion": "LlamaCompletion", "/infill": "LlamaCompletion", "/apply-template": "LlamaPrompt",
    "/props": "LlamaProps", "/slots": "LlamaSlots", "/lora-adapters": "Adapters", "/pooling": "PoolingList",
    "/classify": "LabelList", "/load": "Load", "/reset_prefix_cache": "", "/tokenizer_info": "Tokenizer",
    "/api/v0/models": "StudioModels", "/api/v0/models/{id}": "StudioModel",
    "/tokenize": "Tokens", "/detokenize": "Text",
}  # fmt: skip
_STREAMED = {
    "/v1/chat/completions": EVENTS, "/v1/completions": EVENTS, "/v1/responses": EVENTS, "/v1/messages": EVENTS,
    "/completion": EVENTS, "/infill": EVENTS, "/api/chat": LINES, "/api/generate": LINES, "/api/pull": LINES,
}  # fmt: skip


def answer_of(method: str, path: str) -> Schema:
    """The 200 of an operation."""
    told = _OF.get(f"{method} {path}", _OF[path])
    content: Schema = {}
    if told in ANSWERS:
        content[JSON] = {"schema": _ref(told)}
    elif told:
        content[told] = {"schema": TEXT}
    if path in _STREAMED:
        content[_STREAMED[path]] = {"schema": TEXT}
    return {"description": "the answer", **({"content": content} if content else {})}
