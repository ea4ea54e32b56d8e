"""What may be asked of an answer's shape: what is kept, and every refusal before any work, by field."""

import json
from typing import Any

import msgspec
import pytest

from octavo.errors import InvalidRequest
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import MAX_BYTES, MAX_DEPTH, MAX_REGEX, StructuredOutputsParams


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


KEPT: list[tuple[dict[str, Any], str, str]] = [
    ({"json": {"type": "integer"}}, "json", '{"type":"integer"}'),
    ({"json": '{ "type": "integer" }'}, "json", '{ "type": "integer" }'),
    ({"json_object": True, "regex": None}, "json_object", '{"type":"object"}'),
    ({"json_object": False, "regex": "a+"}, "regex", "a+"),
    ({"choice": ["b", "a", "b", "ü"]}, "choice", '["b", "a", "ü"]'),
    ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
    ({"structural_tag": {"structures": [], "triggers": []}}, "structural_tag", '{"structures":[],"triggers":[]}'),
    ({"json": {"properties": {"multipleOf": {"multipleOf": 10_000}, "$ref": {"$ref": "#"}}}}, "json", ""),
    ({"json": {"const": {"multipleOf": 1e9, "$ref": "http://x"}}}, "json", ""),
    ({"json": nested(MAX_DEPTH - 1)}, "json", ""),
]


@pytest.mark.parametrize(("given", "kind", "text"), KEPT)
def test_what_is_kept(given: dict[str, Any], kind: str, text: str) -> None:
    made = StructuredOutputsParams(**given)
    assert made.kind == kind and (made.text == text or not text)
    params = SamplingParams(structured_outputs=made)
    assert params.structured_outputs is made
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    body = {"structured_outputs": json.loads(json.dumps(given))}  # as HTTP has it
    assert SamplingParams(**body).structured_outputs == made


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "exactly one"),
    ({"regex": "a", "json_object": True}, "", "regex"),
    ({"json": {"a": "x" * MAX_BYTES}}, "json", "bytes"),
    ({"json": "{" * 50_000}, "json", "JSON"),
    ({"json": '{"a":' * 5_000 + "1" + "}" * 5_000}, "json", "nested"),
    ({"json": nested(MAX_DEPTH)}, "json", "nested"),
    ({"json": nested(20_000)}, "json", "nested"),
    ({"json": "[1]"}, "json", "object"),
    ({"json": ""}, "json", "empty"),
    ({"json": 5}, "json", "text"),
    ({"json": {"type": float("nan")}}, "json", "JSON"),
    ({"json": {"a": "\ud800"}}, "json", "Unicode"),
    ({"json": {"items": [{"multipleOf": 1_000_003}]}}, "json", "multipleOf"),
    ({"json": {"pattern": "a" * (MAX_REGEX + 1)}}, "json", "pattern"),
    ({"json": {"anyOf": [{"$ref": "https://example.com/a.json"}]}}, "json", "https://example.com/a.json"),
    ({"json": {"$ref": "file:///etc/passwd"}}, "json", "leaves the schema"),
    ({"json": {"enum": [f"option {i}" for i in range(100_000)]}}, "json", "bytes"),
    ({"regex": ""}, "regex", "empty"),
    ({"regex": "a" * (MAX_REGEX + 1)}, "regex", "bytes"),
    ({"choice": []}, "choice", "1 to"),
    ({"choice": "abc"}, "choice", "list"),
    ({"choice": ["a", ""]}, "choice", "empty"),
    ({"choice": ["a", 1]}, "choice", "texts"),
    ({"choice": ["x"] * 4097}, "choice", "4096"),
    ({"grammar": "(" * (MAX_BYTES + 1)}, "grammar", "bytes"),
    ({"json_object": 1}, "json_object", "true or false"),
    ({"structural_tag": "tag"}, "structural_tag", "JSON"),
    ({"regex": "a", "whitespace_pattern": ""}, "whitespace_pattern", "empty"),
    ({"regex": "a", "disable_any_whitespace": 1}, "disable_any_whitespace", "true or false"),
    ({"regex": "a", "backend": "xgrammar"}, "backend", "no such field"),
]


@pytest.mark.parametrize(("given", "name", "why"), REFUSED)
def test_refusals_come_before_work_and_name_the_field(given: dict[str, Any], name: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(structured_outputs=given)  # type: ignore[arg-type]
    assert caught.value.param == ("structured_outputs" + (f".{name}" if name else ""))
    assert why in caught.value.message and len(caught.value.message) < 300
