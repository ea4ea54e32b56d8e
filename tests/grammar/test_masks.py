"""Masks against an oracle: of a finite language every id is tried, after every prefix that some walk comes to."""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.structured_outputs import StructuredOutputsParams as Asked
from tests.grammar.small_vocabulary import EOS, SPECIAL, TOKENS, Walk


def expected(words: Iterable[bytes], prefix: bytes) -> set[int]:
    """Ids that may follow the prefix."""
    rests = [word[len(prefix) :] for word in words if word.startswith(prefix)]
    found = {EOS} if b"" in rests else set()
    for token, text in enumerate(TOKENS):
        if token not in (EOS, SPECIAL) and any(rest.startswith(text) for rest in rests):
            found.add(token)
    return found


def walk(asked: Asked, words: set[bytes], steer: Iterable[int]) -> bytes:
    """Go where `steer` says, and compare every mask on the way; the bytes that were chosen."""
    here, prefix = Walk(asked), b""
    for turn in itertools.chain(steer, itertools.repeat(0, 200)):
        allowed, right = here.allowed(), expected(words, prefix)
        assert allowed and allowed <= right, (prefix, [TOKENS[each] for each in allowed - right])
        firsts = {TOKENS[each][0] for each in right if each != EOS}
        if EOS in right or len(firsts) > 1:  # where one byte must follow, the tokenizer's own token is enough
            assert allowed == right, (prefix, [TOKENS[each] for each in right - allowed])
        token = sorted(allowed)[turn % len(allowed)]
        if token == EOS:
            return prefix
        here.take(token)
        prefix += TOKENS[token]
    raise AssertionError("no end")


@settings(max_examples=200)
@given(st.sets(st.text('abcré日{"\n', min_size=1, max_size=6), min_size=1, max_size=8), st.lists(st.integers(0, 99)))
def test_choices(words: set[str], steer: list[int]) -> None:
    right = {word.encode() for word in words}
    assert walk(Asked(choice=sorted(words)), right, steer) in right


@pytest.mark.parametrize("most", [1, 2, 3])
def test_so_many_tags_at_most(most: int) -> None:
    tags = [{"type": "tag", "begin": f"<{name}", "content": {"type": "regex", "pattern": "[12]"}} for name in "ab"]
    part = {"type": "tags_with_separator", "tags": tags, "separator": ",", "at_least_one": True, "at_most": most}
    one = [f"<{name}{digit}" for name in "ab" for digit in "12"]
    words = {",".join(each).encode() for count in range(1, most + 1) for each in itertools.product(one, repeat=count)}
    for seed in range(20):
        asked = Asked(structural_tag={"type": "structural_tag", "format": part})
        assert walk(asked, words, [seed * 7 + turn for turn in range(12)]) in words


REGEX = ["[ab]{1,3}c?", "(ab|a|bc)*?c{0,2}", "a(bc)?|(re|red|green)b", "[^a-z]?ab", "^a?b$", "(?i)red", r"\d\.1?"]
ALPHABET = "abcrednRED01. "


@pytest.mark.parametrize("pattern", REGEX)
def test_regular_expressions(pattern: str) -> None:
    """Of what they match, the texts of up to five characters of an alphabet."""
    words = {
        text.encode()
        for length in range(6)
        for text in map("".join, itertools.product(ALPHABET, repeat=length))
        if re.fullmatch(pattern, text)
    }
    for seed in range(40):
        here, prefix = Walk(Asked(regex=pattern)), b""
        for turn in range(5):
            allowed, right = here.allowed(), expected(words, prefix)
            known = {each for each in allowed if each == EOS or set(TOKENS[each]) <= set(ALPHABET.encode())}
            if len(prefix) < 3:  # then words of up to five characters tell all ids of up to two
                short = {each for each in known if each == EOS or len(TOKENS[each]) <= 2}
                firsts = {TOKENS[each][0] for each in right if each != EOS}
                if EOS in right or len(firsts) > 1:
                    assert short == {each for each in right if each == EOS or len(TOKENS[each]) <= 2}, prefix
            token = sorted(known)[(seed * 7 + turn * 3) % len(known)]
            if token == EOS:
                assert re.fullmatch(pattern, prefix.decode())
                break
            here.take(token)
            prefix += TOKENS[token]


SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["a", "ab", "red", 1, 12, -1, None, True, {"a": []}, [1, "a"]]},
    {"const": {"ab": "é日\n\"", "c": None}},
    {"type": "integer", "minimum": -12, "maximum": 120},
    {"type": "object", "properties": {"ab": {"type": "boolean"}, "c": {"enum": [1, 2]}}, "required": ["ab"],
     "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    {"oneOf": [{"const": "a"}, {"const": "b"}, {"type": "null"}]},
    {"$defs": {"a": {"const": "a"}}, "type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1, "maxItems": 2},
    {"type": "string", "pattern": "^[ab]{0,3}$"},
]  # fmt: skip
WORDS: list[list[Any]] = [
    SCHEMAS[0]["enum"],
    [SCHEMAS[1]["const"]],
    list(range(-12, 121)),
    [{"ab": x, **({} if c is None else {"c": c})} for x in (True, False) for c in (None, 1, 2)],
    [list(each) for length in range(4) for each in itertools.product([True, False], repeat=length)],
    ["a", "b", None],
    [["a"], ["a", "a"]],
    ["".join(each) for length in range(4) for each in itertools.product("ab", repeat=length)],
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_schemas_of_finite_languages(number: int) -> None:
    """Without blanks each value has one text, but for escapes and the like, which are not looked at here."""
    asked = Asked(json=SCHEMAS[number], disable_any_whitespace=True)
    words = {json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode() for each in WORDS[number]}
    for seed in range(30):
        here, prefix = Walk(asked), b""
        for turn in range(60):
            allowed, right = here.allowed(), expected(words, prefix)
            assert right <= allowed or len({TOKENS[each][0] for each in right if each != EOS}) <= 1
            assert (EOS in allowed) == (EOS in right)
            ours = sorted(allowed & right)
            assert ours, (prefix, [TOKENS[each] for each in right])
            token = ours[(seed * 5 + turn * 3) % len(ours)]
            if token == EOS:
                break
            here.take(token)
            prefix += TOKENS[token]
        assert prefix in words


def test_the_mask_is_a_function_of_the_ids() -> None:
    """A matcher that starts anew with the ids gives the masks of the one that made them, whatever came between."""
    asked = Asked(json_object=True)
    for seed in range(20):
        here, taken, masks = Walk(asked), [], []
        for turn in range(30):
            allowed = here.allowed()
            masks.append(allowed)
            token = sorted(allowed)[(seed * 31 + turn * 17) % len(allowed)]
            if token == EOS:
                break
            here.take(token)
            taken.append(token)
        for length in range(0, len(taken), 3):
            again = Walk(asked)
            assert again.matcher.consume_tokens(taken[:length])
            assert again.allowed() == masks[length]
