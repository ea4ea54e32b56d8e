"""Hostile constraints by every way in: each compiles or is refused, within the time and memory that a request may take,
and none needs a file or the network. Those refused before any work are in tests/test_structured_outputs.py."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.grammar.matcher import UNSUPPORTED
from octavo.grammar.process import STACK
from octavo.structured_outputs import StructuredOutputsParams as Asked
from tests.grammar.small_vocabulary import compiler

SECONDS = 5.0  # of the processor; the engine's deadline for one constraint
PATTERNS = [
    "(a+)+b", "(a|a)*c", "(a|aa)+$", ".{1,10000}x{1,10000}", "(?=a)b", "(?<!a)b", r"(a)\1", "(" * 4000, "a{1000000}",
    "(((a{30}){30}){30}){30}", "[", "(?P<x>a)(?P=x)", "\\", "a**", r"\p{Greek}{1,500}", "(.*a){25}", "((a?){30}a{30})+",
]  # fmt: skip


def ways(pattern: str) -> Iterator[tuple[str, Asked]]:
    """A regular expression by every way in."""
    tag = {"format": {"type": "tag", "begin": "<f>", "content": {"type": "regex", "pattern": pattern}, "end": "</f>"}}
    yield "regex", Asked(regex=pattern)
    yield "json", Asked(json={"type": "string", "pattern": pattern})
    yield "json", Asked(json={"type": "object", "patternProperties": {pattern: {}}})
    yield "grammar", Asked(grammar="start: /" + pattern.replace("/", r"\/") + "/")
    yield "choice", Asked(choice=[pattern, "b"])
    yield "structural_tag", Asked(structural_tag=tag)


def compiles(asked: Asked) -> bool:
    """Whether it does; refusals name the field, and are short."""
    begin = time.process_time()
    try:
        compiler().compile(asked)
    except InvalidRequest as error:
        assert error.param == asked.name and error.message.startswith(asked.name)
        assert len(error.message) < 500 and "0x" not in error.message and "/src/" not in error.message
        return False
    finally:
        assert time.process_time() - begin < SECONDS
    return True


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_by_every_way_in(pattern: str) -> None:
    for name, asked in ways(pattern):
        compiles(asked)
        assert asked.name == f"structured_outputs.{name}"


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?<!a)b", r"(a)\1"])
def test_what_regular_expressions_cannot_say(pattern: str) -> None:
    assert not compiles(Asked(regex=pattern)) and not compiles(Asked(json={"type": "string", "pattern": pattern}))


def nested(count: int, inner: dict[str, Any] | None = None) -> dict[str, Any]:
    schema = inner or {"type": "null"}
    for _ in range(count):
        schema = {"type": "array", "items": schema}
    return schema


def overlapping(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


SCHEMAS: dict[str, dict[str, Any]] = {
    "nested arrays": nested(120),
    "a loop": {"$ref": "#"},
    "a loop of two": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1500)}},
    "many required": {"type": "object", "required": [f"p{i}" for i in range(2000)]},
    "a long enum": {"enum": [f"option {i}" for i in range(3000)]},
    "allOf": {"allOf": [{"minLength": i} for i in range(2000)]},
    "anyOf": {"anyOf": [{"type": "object", "properties": {f"p{i}": {}}, "required": [f"p{i}"]} for i in range(600)]},
    "overlapping": overlapping(9),
    "lengths": {"type": "string", "maxLength": 10_000_000},
    "items": {"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}},
    "multiples": {"type": "integer", "multipleOf": 9_973},
    "small multiples": {"type": "number", "multipleOf": 0.0000001},
    "bounds": {"type": "number", "minimum": 5, "maximum": 3},
    "wide bounds": {"type": "number", "minimum": -1e300, "maximum": 1e300},
    "a bad type": {"type": "strin"},
    "a bad keyword": {"type": "object", "properties": [1, 2]},
    "an empty enum": {"enum": []},
    "never": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "a missing reference": {"$ref": "#/$defs/nowhere"},
    "a reference of a reference": {"$ref": "#/%24ref"},
    "a format that is not built": {"type": "string", "format": "uri-template"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(name: str) -> None:
    compiles(Asked(json=SCHEMAS[name]))
    call = {"begin": "<f>", "schema": SCHEMAS[name], "end": "</f>"}
    compiles(Asked(structural_tag={"structures": [call], "triggers": ["<f"]}))


@pytest.mark.parametrize("name", ["a bad type", "bounds", "never", "a missing reference"])
def test_schemas_that_are_refused(name: str) -> None:
    assert not compiles(Asked(json=SCHEMAS[name]))


@pytest.mark.parametrize(
    ("schema", "keywords"),
    [
        ({"not": {"type": "string"}}, ["not"]),
        ({"type": "array", "uniqueItems": True}, ["uniqueItems"]),
        ({"properties": {"a": {"if": {"type": "string"}, "then": {"minLength": 2}}}}, ["if", "then"]),
        ({"dependencies": {"a": ["b"]}}, ["dependencies"]),
    ],
)
def test_unsupported_keywords_are_named(schema: dict[str, Any], keywords: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler().compile(Asked(json=schema, asked_as="response_format.json_schema.schema"))
    assert caught.value.code == UNSUPPORTED and caught.value.param == "response_format.json_schema.schema"
    assert set(keywords) <= set(caught.value.message.rpartition(": ")[2].rstrip(".").split(", "))


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "^(?!a)b$"}}}, "pattern"),
        ({"type": "string", "format": "uri-template"}, "format"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "minProperties"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a", "type": "object"}}}, "$ref"),
    ],
)
def test_keywords_whose_values_are_unsupported_are_named(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler().compile(Asked(json=schema))
    assert caught.value.code == UNSUPPORTED and keyword in caught.value.message.partition("is not supported")[0]


def test_formats_that_are_nobodys_are_no_constraint() -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "path"}, "a": {"const": {"format": "b"}}},
    }
    assert compiles(Asked(json=schema))
    assert json.loads(compiler().source(Asked(json=schema)))["grammars"][0]["json_schema"]["properties"] == {
        "format": {"type": "string"}, "a": {"const": {"format": "b"}},
    }  # fmt: skip


def test_a_client_cannot_set_the_librarys_options() -> None:
    schema = {"not": {"type": "string"}, "x-guidance": {"lenient": True}}
    assert not compiles(Asked(json=schema))
    assert not compiles(Asked(json=json.dumps(schema)))


LARK = [
    "start: " + "(" * 5000 + '"x"' + ")" * 5000,
    "start: " + "(" * 30_000,
    "start: start",
    'start: start "a"',
    'start: "a',
    "start: x",
    'start: "x"' + '|"y"' * 9_000,
    "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(3000)), 'r3000: "a"']),
    "\n".join(["start: r0", *(f"r{i}:r{i + 1}" for i in range(4600)), 'r4600: "a"']),
    "\n".join(["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)), 'T60: "a"']),
    'start: %json {"type": "object", "properties": {"a": {"not": {}}}}',
    "start: @other",
    "%import common.WORD\nstart: WORD",
    "start: <|no-such-token|>",
    "start: <[99999999]>",
    'start: "a"{1,99999999}',
    "%llguidance {\nstart: X",
]


@pytest.mark.parametrize("number", range(len(LARK)))
def test_lark(number: int) -> None:
    """With the stack of the grammar process: the library goes as deep as rules name each other."""
    before = threading.stack_size(STACK)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(compiles, Asked(grammar=LARK[number])).result()
    threading.stack_size(before)


TAGS: list[dict[str, Any]] = [
    {},
    {"structures": [], "triggers": []},
    {"structures": [{"begin": "<f>", "schema": {}, "end": ""}], "triggers": ["<g"]},
    {"structures": [{"begin": "", "schema": {}, "end": ""}], "triggers": [""]},
    {"structures": [{"begin": "<f>", "schema": 5, "end": ""}], "triggers": ["<f"]},
    {"format": {"type": "magic"}},
    {"format": {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "any_text"}]}},
    {"format": {"type": "tag", "begin": "a", "content": {"type": "grammar", "grammar": "root ::= x"}, "end": "b"}},
    {"format": {"type": "or", "elements": [{"type": "const_string", "value": "a"}] * 1000}},
]


def test_tags_that_are_refused() -> None:
    deep: dict[str, Any] = {"type": "const_string", "value": "a"}
    for _ in range(40):
        deep = {"type": "sequence", "elements": [deep]}
    assert [tag for tag in [*TAGS[:-1], {"format": deep}] if compiles(Asked(structural_tag=tag))] == []
    compiles(Asked(structural_tag=TAGS[-1]))
