"""Answers that come near their limit end in time: whatever is sampled, they are valid, and the same from any start."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from octavo.grammar.closing import HORIZON, SPARE, Closing, Ends
from octavo.structured_outputs import StructuredOutputsParams as Asked
from tests.grammar import random_schemas
from tests.grammar.small_vocabulary import EOS, TOKENS, VOCABULARY, compiler

ENDS = Ends(VOCABULARY)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 100}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": PERSON},
    {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "minItems": 2}, "minItems": 1},
    {"type": "object"},
    {"type": "object", "additionalProperties": PERSON},
    {"type": "object", "properties": {"day": {"type": "string", "format": "date"}, "is": {"type": "boolean"},
                                      "kind": {"enum": ["red", "green", None]}}, "required": ["day", "kind"]},
    {"$defs": {"node": {"type": "object", "properties": {"v": {"type": "string"}, "next": {"$ref": "#/$defs/node"}},
                        "required": ["v"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"anyOf": [{"type": "string", "minLength": 3, "maxLength": 60}, {"type": "array", "items": {"type": "string"}}]},
]  # fmt: skip
OTHERS: list[tuple[Asked, str]] = [
    (Asked(regex="(ab|c){3,}-[0-9]{2}"), "(ab|c){3,}-[0-9]{2}"),
    (Asked(grammar='root ::= ("<" [a-z]{2,3} ">")+ "."'), r"(<[a-z]{2,3}>)+\."),
    (Asked(choice=["red", "green and a long tail of words"]), "red|green and a long tail of words"),
]


def least(asked: Asked) -> int:
    way = ENDS.least(asked.text.encode(), compiler().compile(asked, True))
    assert way is not None
    return len(way)


def answer(asked: Asked, room: int, dice: random.Random, begun: list[int] | None = None) -> tuple[list[int], bool]:
    """Ids, each one of those allowed by chance; whether it ended by itself. begun: what it has already."""
    start = compiler().compile(asked, True)
    matcher, closing = start.deep_copy(), Closing(ENDS, ENDS.least(asked.text.encode(), start), room)
    mask = np.zeros((len(TOKENS) + 31) // 32, np.uint32)
    ids: list[int] = []
    while len(ids) < room:
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        assert not matcher.is_error()
        if not matcher.is_stopped():
            closing.narrow(matcher, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        token = int(dice.choice(allowed))
        if begun and len(ids) < len(begun):
            assert begun[len(ids)] in allowed
            token = begun[len(ids)]
        if token == EOS:
            return ids, True
        assert matcher.consume_token(token)
        closing.take(matcher, token)
        ids.append(token)
    return ids, False


def text_of(ids: list[int]) -> str:
    return b"".join(TOKENS[each] for each in ids).decode()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_answers_to_schemas_end_in_time(schema: dict[str, Any]) -> None:
    asked = Asked(json=schema)
    room = least(asked) + 1
    for extra in (0, 1, SPARE, 20, 50, HORIZON + 10):
        for seed in range(3):
            ids, ended = answer(asked, room + extra, random.Random(seed))
            assert ended, text_of(ids)
            jsonschema.validate(json.loads(text_of(ids)), schema)


def test_answers_to_schemas_at_random_end_in_time() -> None:
    source = random.Random(3)
    for _ in range(60):
        made = random_schemas.schema(source)
        asked = Asked(json=made)
        room = least(asked) + 1
        for extra in (0, 2, 12):
            ids, ended = answer(asked, room + extra, source)
            assert ended, (made, text_of(ids))
            jsonschema.validate(json.loads(text_of(ids)), made)


@pytest.mark.parametrize(("asked", "pattern"), OTHERS)
def test_answers_to_others_end_in_time(asked: Asked, pattern: str) -> None:
    room = least(asked) + 1
    for extra in (0, 3, 30, HORIZON):
        for seed in range(3):
            ids, ended = answer(asked, room + extra, random.Random(seed))
            assert ended and re.fullmatch(pattern, text_of(ids)), text_of(ids)


def test_where_not_even_the_least_answer_has_room_nothing_is_tried() -> None:
    asked = Asked(json=PERSON)
    room = least(asked)
    matcher = compiler().compile(asked, True)
    closing = Closing(ENDS, ENDS.least(asked.text.encode(), matcher), room)
    free = np.frombuffer(matcher.compute_bitmask(), np.uint32).copy()
    mask = free.copy()
    assert closing.narrow(matcher, mask) is False and (mask == free).all()


def test_far_from_the_limit_nothing_is_changed() -> None:
    """Until HORIZON ids before it, masks are those of the constraint."""
    asked = Asked(json={"type": "array", "items": {"type": "integer"}})
    start = compiler().compile(asked, True)
    matcher, closing = start.deep_copy(), Closing(ENDS, ENDS.least(b"", start), HORIZON + 20)
    for at in range(20):
        free = np.frombuffer(matcher.compute_bitmask(), np.uint32).copy()
        mask = free.copy()
        assert closing.narrow(matcher, mask) is False and (mask == free).all()
        token = TOKENS.index(b"[" if not at else b"1")
        assert matcher.consume_token(token)
        closing.take(matcher, token)


def test_an_answer_that_begins_again_is_the_same() -> None:
    """Taken up after any of its ids, as after the death of an engine: the masks allow what was there, and the rest is
    the same for the same dice."""
    asked = Asked(json={"type": "array", "items": PERSON})
    whole, ended = answer(asked, 70, random.Random(5))
    assert ended
    for cut in range(0, len(whole), 7):
        dice = random.Random(5)
        assert answer(asked, 70, dice, whole[:cut]) == (whole, True)


def test_places_of_json() -> None:
    """Strings, escapes over the borders of ids."""
    token = lambda text: TOKENS.index(text)  # noqa: E731
    place = 0
    for text, behind in ((b'{"', 1), (b"a", 1), (b"\\", 2), (b'"', 1), (b'"', 0), (b":", 0), (b'"a"', 0), (b'"}', 1)):
        place = ENDS.after(place, token(text))
        assert place == behind, text
