"""The table of routes and the bodies' structs -> /openapi.json. Sampling fields are told by sampling_params."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo import __version__
from octavo.sampling_params import PARAMETERS
from octavo.server.openai import embeddings, schema
from octavo.server.vllm import score, tokenize

_BODIES = (
    schema.ChatBody, schema.CompletionBody, embeddings.EmbeddingsBody, score.RerankBody, score.ScoreBody,
    tokenize.TokenizeBody, tokenize.DetokenizeBody,
)  # fmt: skip
_OF_PATH = {
    "/v1/chat/completions": "ChatBody",
    "/v1/completions": "CompletionBody",
    "/v1/embeddings": "EmbeddingsBody",
    "/v1/rerank": "RerankBody",
    "/v2/rerank": "RerankBody",
    "/v1/reranking": "RerankBody",
    "/v1/score": "ScoreBody",
    "/tokenize": "TokenizeBody",
    "/detokenize": "DetokenizeBody",
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


@dataclass(frozen=True)
class Operation:
    """What the document needs of a line of the table of routes. path: with `{name}` for its parameters."""

    path: str
    methods: tuple[str, ...]
    public: bool
    summary: str


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths[each.path] = {method.lower(): _operation(each) for method in each.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**_bodies(), "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(each: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": each.summary,
        "responses": {
            "200": {"description": "the answer"},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if not each.public:
        made["security"] = [{"key": []}]
    if "{" in each.path:
        name = each.path[each.path.index("{") + 1 : each.path.index("}")]
        made["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if each.path in _OF_PATH:
        reference = {"$ref": f"#/components/schemas/{_OF_PATH[each.path]}"}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    return made


def _bodies() -> dict[str, Any]:
    """Schemas of the bodies; fields of features that are not built are left out."""
    _, found = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    told = {each.name: f"{each.meaning}: {each.kind.expects}" for each in PARAMETERS}
    for component in found.values():
        fields = component.get("properties", {})
        for name in [name for name in fields if name in schema.REFUSED]:
            del fields[name]
        for name, value in fields.items():
            if name in told and name in schema.SAMPLING:
                fields[name] = {**value, "description": told[name]}
            elif name in schema.ALIASES:
                fields[name] = {**value, "description": f"the same as {schema.ALIASES[name]}"}
    return dict(found)
