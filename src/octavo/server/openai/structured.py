"""What a body says of the answer's shape, under the names of every API: OpenAI's response_format, vLLM's
structured_outputs and its older guided_ fields, llama.cpp's grammar and json_schema.

All become one StructuredOutputsParams, whose errors name the field that was sent. It knows no grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidRequest
from octavo.structured_outputs import StructuredOutputsParams

# Field -> what it is.
FIELDS: Mapping[str, str] = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "json_schema": "json", "grammar": "grammar",
}  # fmt: skip
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")


def constraint(body: Any) -> StructuredOutputsParams | None:
    """What the body asks for; None: any text. InvalidRequest if it asks twice."""
    asked = {name: StructuredOutputsParams(**{kind: value}, asked_as=name) for name, kind in FIELDS.items()
             if (value := getattr(body, name)) not in (None, "")}  # fmt: skip
    if body.structured_outputs:
        asked["structured_outputs"] = _own(body.structured_outputs)
    if body.response_format is not None:
        made = _response_format(body.response_format)
        if made is not None:
            asked["response_format"] = made
    if len(asked) > 1:
        first, second = list(asked)[:2]
        raise InvalidRequest(f"{first} and {second} both say what the answer must look like; send one.", param=second)
    return next(iter(asked.values()), None)


def _own(value: Any) -> StructuredOutputsParams:
    if not isinstance(value, Mapping):
        raise InvalidRequest("structured_outputs must be an object.", param="structured_outputs")
    return StructuredOutputsParams.read(value)


def _response_format(given: Any) -> StructuredOutputsParams | None:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in _FORMATS:
        raise InvalidRequest(f"response_format.type must be one of {', '.join(_FORMATS)}.", param="response_format")
    if kind == "text":
        return None
    if kind == "json_object":  # llama.cpp takes a schema with it
        schema = given.get("schema")
        if schema:
            return StructuredOutputsParams(json=schema, asked_as="response_format.schema")
        return StructuredOutputsParams(json_object=True, asked_as="response_format")
    if kind == "structural_tag":
        return StructuredOutputsParams(structural_tag=given, asked_as="response_format")
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    name = "response_format.json_schema.schema"
    if schema is None:
        raise InvalidRequest(f"{name} is missing.", param=name)
    return StructuredOutputsParams(json=schema, asked_as=name)
