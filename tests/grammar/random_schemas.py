"""Schemas and other constraints made at random, whose answers are short, and what says whether an answer is valid."""

import json
import random
import re
from typing import Any

import jsonschema

from octavo.structured_outputs import StructuredOutputsParams

NAMES = ("name", "a", "id", "Größe", "the key", 'q"', "$ref", "x/y")


def schema(source: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema without keywords that are refused; `oneOf` has branches of which at most one can hold."""
    kinds = [_text, _whole, _number, _fixed, _plain]
    if depth > 0:
        kinds += [_object, _object, _array, _any_of, _one_of, _reference]
    return source.choice(kinds)(source, depth - 1)


def _text(source: random.Random, _: int) -> dict[str, Any]:
    more: list[dict[str, Any]] = [
        {"maxLength": source.randrange(8)}, {"minLength": 1, "maxLength": 5}, {"pattern": "^[a-f]{1,4}$"},
        {"format": "date"}, {"enum": source.sample(["red", "green", "blue", "", "é\n"], 3)},
        {"pattern": "^(x|yz){1,3}$", "maxLength": 4},
    ]  # fmt: skip
    return {"type": "string", **source.choice(more)}


def _whole(source: random.Random, _: int) -> dict[str, Any]:
    low = source.randrange(-200, 200)
    return {"type": "integer", "minimum": low, "maximum": low + source.randrange(300)}


def _number(source: random.Random, _: int) -> dict[str, Any]:
    return {"type": "number", "exclusiveMinimum": source.randrange(-5, 5), "maximum": source.randrange(6, 99)}


def _fixed(source: random.Random, _: int) -> dict[str, Any]:
    values = [1, -2.5, "text", None, True, [1, {"b": []}], {"c": "d"}]
    return source.choice([{"const": source.choice(values)}, {"enum": source.sample(values, 3)}])


def _plain(source: random.Random, _: int) -> dict[str, Any]:
    return {"type": source.choice(["boolean", "null", ["boolean", "null"]])}


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(NAMES, source.randrange(1, 4))
    made: dict[str, Any] = {"type": "object", "properties": {name: schema(source, depth) for name in names}}
    made["required"] = source.sample(names, source.randrange(len(names) + 1))
    made["additionalProperties"] = source.choice([False, False, False, _whole(source, 0)])
    return made


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    low = source.randrange(2)
    bounds = {"minItems": low, "maxItems": low + source.randrange(3)}
    if source.random() < 0.3:
        return {"type": "array", "prefixItems": [schema(source, depth)], "items": False, "minItems": 1}
    return {"type": "array", "items": schema(source, depth), **bounds}


def _any_of(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema(source, depth), schema(source, depth)]}


def _one_of(source: random.Random, depth: int) -> dict[str, Any]:
    return {"oneOf": [_text(source, depth), _whole(source, depth), {"type": "null"}]}


def _reference(source: random.Random, depth: int) -> dict[str, Any]:
    """A definition of its own inside, so that it may stand anywhere."""
    return {"type": "array", "items": schema(source, 0), "maxItems": 2, "$comment": "inline"}


def other(source: random.Random) -> StructuredOutputsParams:
    """A constraint that is no schema."""
    choices: list[dict[str, Any]] = [
        {"choice": source.sample(["yes", "no", "perhaps", "maybe not", "日本"], 3)},
        {"regex": source.choice([r"[a-f]{2,5}-\d{2}", "(ab|cd){1,4}", r"\w{3}\.?"])},
        {
            "grammar": source.choice(
                ['root ::= ("a" | "(" root ")"){1,2}', 'start: WORD ("," WORD)~0..2\nWORD: /[a-z]{1,4}/']
            )
        },
    ]
    return StructuredOutputsParams(**source.choice(choices))


def is_valid(asked: StructuredOutputsParams, text: str) -> bool:
    """By a validator that has nothing to do with the library."""
    if asked.kind in ("json", "json_object"):
        try:
            jsonschema.Draft202012Validator(json.loads(asked.text)).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError):
            return False
        return True
    if asked.kind == "choice":
        return text in (asked.choice or ())
    if asked.kind == "regex":
        return re.fullmatch(asked.text, text) is not None
    pattern = r"[a-z]{1,4}(,[a-z]{1,4}){0,2}" if "WORD" in asked.text else r"[a()]+"
    return re.fullmatch(pattern, text) is not None and text.count("(") == text.count(")")
