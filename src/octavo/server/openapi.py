"""The table of routes and the bodies' structs -> /openapi.json. Sampling fields are told by sampling_params, answers by
openapi_answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo import __version__
from octavo.sampling_params import PARAMETERS
from octavo.server.dialect import ANTHROPIC, OLLAMA, OPENAI, dialect_of
from octavo.server.openai import schema
from octavo.server.openai.files import PURPOSES
from octavo.server.openapi_answers import ANSWERS, answer_of

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
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}
OLLAMA_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
# What may stand behind the `?` of a route's path.
QUERIES: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "after": {"type": "string"},
    "order": {"enum": ["asc", "desc"]},
    "purpose": {"enum": list(PURPOSES)},
    "from": {"type": "integer", "minimum": 0},
    "fail_on_no_slot": {"type": "string"},
}
UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": list(PURPOSES)}},
}
_ERRORS = {OPENAI: "Error", ANTHROPIC: "AnthropicError", OLLAMA: "OllamaError"}


@dataclass(frozen=True)
class Operation:
    """What the document needs of a line of the table of routes. path: with `{name}` for its parameters. body: the
    struct that a request's body is read as. upload: it is multipart, with a file. queries: names of QUERIES."""

    path: str
    methods: tuple[str, ...]
    public: bool
    summary: str
    body: type | None = None
    queries: tuple[str, ...] = ()
    upload: bool = False


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths[each.path] = {method.lower(): _operation(each, method) for method in each.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {
                **ANSWERS,
                **_bodies([each.body for each in operations if each.body is not None]),
                "Error": ERROR,
                "AnthropicError": ANTHROPIC_ERROR,
                "OllamaError": OLLAMA_ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(each: Operation, method: str) -> dict[str, Any]:
    error = f"#/components/schemas/{_ERRORS[dialect_of(each.path)]}"
    made: dict[str, Any] = {
        "summary": each.summary,
        "responses": {
            "200": answer_of(method, each.path),
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": error}}},
            },
        },
    }
    if not each.public:
        made["security"] = [{"key": []}]
    parameters: list[dict[str, Any]]
    parameters = [{"name": name, "in": "query", "schema": QUERIES[name]} for name in each.queries if method == "GET"]
    if "{" in each.path:
        name = each.path[each.path.index("{") + 1 : each.path.index("}")]
        parameters.append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        made["parameters"] = parameters
    if each.upload and method == "POST":
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD}}}
    elif each.body is not None and method in ("POST", "DELETE"):
        reference = {"$ref": f"#/components/schemas/{each.body.__name__}"}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    return made


def _bodies(bodies: Sequence[type]) -> dict[str, Any]:
    """Schemas of the bodies; fields of features that are not built are left out."""
    _, found = msgspec.json.schema_components(dict.fromkeys(bodies), ref_template="#/components/schemas/{name}")
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
