"""A constraint and a vocabulary -> a matcher of llguidance, which says what ids may come next.

Limits of the library are set here, and its words about what is wrong become errors that name the keyword. A mask is a
function of the constraint and of the ids that were consumed. Everything about processes is in process.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequest
from octavo.grammar import gbnf, rules
from octavo.grammar.gbnf import GrammarError
from octavo.grammar.tags import TagWriter
from octavo.structured_outputs import DATA, StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher

# A space, or one or two line ends and an indentation: what JSON has between its tokens, but no more of it, so that a
# model that likes blanks does not write them to the end of its tokens (llama.cpp's rule).
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
# What the library may do: to compile 0.2 s (the public schemas of bench/schemas.py take 16 ms at most), for one mask
# 15 ms, and 50 MB of states for a grammar.
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 200_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_items_in_row": 2_000,
    "max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False,
}  # fmt: skip
# Of a constraint whose answers are to end in time: many masks are made for an id (closing.py), 1.5 ms each at most.
CLOSING_LIMITS: Mapping[str, Any] = {**LIMITS, "step_lexer_fuel": 20_000, "step_max_items": 5_000}
UNSUPPORTED = "unsupported_schema_keyword"  # the code of such an error
# Formats of JSON Schema. Any other says nothing of what is valid, so that it is left out; of these the library knows
# most and refuses the others by name.
FORMATS = frozenset((
    "date-time", "time", "date", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
))  # fmt: skip
# Words of the library about a keyword that it knows but cannot enforce -> the keyword.
_SIGNS = (
    ("regex parse error", "pattern"), ("in regex", "pattern"), ("Unknown format", "format"), ("Resource '", "$ref"),
    ("circular references", "$ref"), ("min/maxProperties", "minProperties or maxProperties"),
    ("integer range", "minimum or maximum"),
)  # fmt: skip
_LARK = re.compile(r"^\s*(%llguidance\b|start\s*(\[[^\]]*\])?\s*:(?!:=))", re.M)
_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*?)\]")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every id, as a text has them; those of special ids are their names. eos_ids end an answer. encode:
    the tokenizer, for bytes that a grammar leaves no choice of: they are to come as the tokens that a model expects."""

    tokens: Sequence[bytes]
    special_ids: Sequence[int]
    eos_ids: Sequence[int]
    encode: Callable[[str], list[int]]

    def special_names(self) -> dict[str, int]:
        """Name of a special token -> its id."""
        named = {self.tokens[each].decode("utf-8", "replace"): each for each in self.special_ids}
        return {name: each for name, each in named.items() if name}

    def tokenize(self, text: bytes) -> list[int]:
        """Ids that are these very bytes: the tokenizer's, or the longest tokens where it would add or change some (a
        space in front, as SentencePiece does)."""
        try:
            ids = self.encode(text.decode())
        except UnicodeDecodeError:
            return self._longest(text)
        return ids if b"".join([self.tokens[each] for each in ids]) == text else self._longest(text)

    def _longest(self, text: bytes) -> list[int]:
        made, at = [], 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest_token), at, -1):
                found = self._by_bytes.get(text[at:end])
                if found is not None:
                    break
            else:
                return []  # bytes that no token has
            made.append(found)
            at = end
        return made

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_ids)
        return {token: each for each, token in enumerate(self.tokens) if token and each not in special}

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._by_bytes), default=0)


class Compiler:
    """Compiles constraints for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance  # 60 ms, and only where an answer is constrained

        self._library = llguidance
        self.vocabulary = vocabulary
        self._special = vocabulary.special_names()
        wrapper = llguidance.TokenizerWrapper(_AsTheLibraryWants(vocabulary))
        eos = [each for each in vocabulary.eos_ids if each < len(vocabulary.tokens)]
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=eos)
        self._limits = {
            closes: llguidance.LLParserLimits(**(CLOSING_LIMITS if closes else LIMITS)) for closes in (False, True)
        }

    def compile(self, asked: StructuredOutputsParams, closes: bool = False) -> LLMatcher:
        """A matcher at its beginning; copies of it are cheap. InvalidRequest says what is wrong with the constraint."""
        try:
            text = self.source(asked)
        except GrammarError as error:
            raise refusal(asked.name, str(error)) from None
        except RecursionError:
            raise refusal(asked.name, "it is nested too deeply") from None
        matcher = self._library.LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits[closes])
        if matcher.is_error():
            raise refusal(asked.name, *_explained(matcher.get_error(), asked.kind in ("json", "json_object")))
        return matcher

    def source(self, asked: StructuredOutputsParams) -> str:
        """The constraint in the library's own language."""
        if asked.kind in ("json", "json_object"):
            return json.dumps({"grammars": [{"json_schema": _with_options(json.loads(asked.text), asked)}]})
        if asked.kind == "regex":
            pattern = self._library.regex_to_lark(asked.text, "d")  # \\d: ASCII digits alone
            return str(self._library.LLMatcher.grammar_from_lark(f"start: ANSWER\nANSWER: /{pattern}/\n"))
        if asked.kind == "choice":
            options = " | ".join(json.dumps(each, ensure_ascii=False) for each in asked.choice or ())
            return str(self._library.LLMatcher.grammar_from_lark(f"start: OPTION\nOPTION: {options}\n"))
        if asked.kind == "grammar":
            return str(self._library.LLMatcher.grammar_from_lark(as_lark(asked.text)))
        writer = TagWriter(
            self._special, lambda schema: _with_options(schema, asked), self._library.regex_to_lark, as_lark
        )
        return json.dumps({"grammars": writer.write(json.loads(asked.text))})


def as_lark(text: str) -> str:
    """Lark as it is; what looks like GBNF or EBNF is translated. GrammarError says what is wrong."""
    return text if _LARK.search(text) else rules.to_lark(gbnf.read_gbnf(text))


def refusal(name: str, why: str, code: str | None = None) -> InvalidRequest:
    """The error for a constraint that cannot be had; `name` is the field that it came in."""
    return InvalidRequest(f"{name}: {why}.", param=name, code=code)


def _with_options(schema: Mapping[str, Any], asked: StructuredOutputsParams) -> dict[str, Any]:
    """The schema with our options, and without those that a client has put there."""
    options: dict[str, Any] = {"coerce_one_of": True, "lenient": False}
    if asked.disable_any_whitespace:
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = asked.whitespace_pattern or WHITESPACE
    return {**_without_unknown_formats(schema), "x-guidance": options}


def _without_unknown_formats(schema: Any) -> Any:
    """As deep as structured_outputs.MAX_DEPTH."""
    if isinstance(schema, list):
        return [_without_unknown_formats(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    named = schema.get("format")
    unknown = isinstance(named, str) and named not in FORMATS
    return {
        key: value if key in DATA else _without_unknown_formats(value)
        for key, value in schema.items()
        if not (unknown and key == "format")
    }


def _explained(error: str, of_schema: bool) -> tuple[str, str | None]:
    """The library's words, short and without its drawings of the place, with the keyword of a schema; and a code."""
    keys = _UNSUPPORTED.search(error)
    if keys is not None:
        names = ", ".join(_QUOTED.findall(keys.group(1)))
        return f"the schema has keywords that are not supported: {names}", UNSUPPORTED
    lines = [line.strip() for line in error.splitlines() if "|" not in line and line.strip(" ^")]
    words = (" ".join(lines)[:200] or "it is not understood").rstrip(".")
    named = next((keyword for sign, keyword in _SIGNS if sign in error), None) if of_schema else None
    return (words, None) if named is None else (f"{named} is not supported as it stands there: {words}", UNSUPPORTED)


@dataclass(frozen=True)
class _AsTheLibraryWants:
    """The names under which the library reads a vocabulary."""

    vocabulary: Vocabulary
    bos_token_id: int | None = None
    tokens: Sequence[bytes] = field(init=False)
    special_token_ids: Sequence[int] = field(init=False)
    eos_token_id: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", self.vocabulary.tokens)
        object.__setattr__(self, "special_token_ids", self.vocabulary.special_ids)
        object.__setattr__(self, "eos_token_id", self.vocabulary.eos_ids[0])

    def __call__(self, text: bytes) -> list[int]:
        return self.vocabulary.tokenize(text)
