"""Reads GBNF (llama.cpp) and the EBNF that looks like it: `name ::= "text" [a-z]+ (a | b){2,3} other`.

Rules become trees of tuples, which rules.py turns into a grammar of the library. All that may be wrong with a text ends
in GrammarError, with its place; nesting and counts are limited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_NESTING = 64  # of parentheses
MAX_TIMES = 2000  # of {m,n}, as in llama.cpp
LAST_CHARACTER = 0x10FFFF

# A tree: ("text", str) | ("set", negated, ((low, high), ...)) | ("rule", name) | ("seq", trees) | ("alt", trees) |
# ("rep", tree, least, most or None)
Tree = tuple[Any, ...]
EMPTY: Tree = ("seq", ())

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*|/\*.*?\*/)
    |(?P<rule>[A-Za-z_][\w-]*)(?=\s*::=)
    |(?P<name>[A-Za-z_][\w-]*)
    |(?P<is>::=)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<set>\[(?:[^\]\\]|\\.)*\])
    |(?P<times>\{\s*\d{0,9}\s*(?:,\s*\d{0,9}\s*)?\})
    |(?P<sign>[()|*+?.])""",
    re.X | re.S,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.S)
_PLAIN = {"n": "\n", "r": "\r", "t": "\t"}


class GrammarError(Exception):
    """What is wrong with a grammar, for whoever wrote it."""


@dataclass
class _Token:
    kind: str
    text: str
    at: int


def read_gbnf(text: str) -> Mapping[str, Tree]:
    """Rules by name, in their order. GrammarError says what is wrong and in which line."""
    return _Reader(text).rules()


class _Reader:
    """Descends into a text; as deep as MAX_NESTING."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._next = 0

    def rules(self) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        while self._next < len(self._tokens):
            token = self._take()
            if token.kind != "rule":
                raise self._error(token, "a rule `name ::= ...` is expected")
            if token.text in found:
                raise self._error(token, f"the rule {token.text} is there twice")
            self._next += 1  # ::=
            found[token.text] = self._alternatives(0)
        if not found:
            raise GrammarError("there is no rule in it")
        return found

    def _split(self) -> list[_Token]:
        made, at = [], 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._error(_Token("", self._text[at], at), "this is not understood")
            kind = match.lastgroup or ""
            if kind != "space":
                made.append(_Token(kind, match.group(), at))
            at = match.end()
        return made

    def _error(self, token: _Token, why: str) -> GrammarError:
        line = self._text.count("\n", 0, token.at) + 1
        return GrammarError(f"line {line}, at {token.text[:20]!r}: {why}")

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _alternatives(self, depth: int) -> Tree:
        each = [self._sequence(depth)]
        while (token := self._peek()) is not None and token.text == "|" and token.kind == "sign":
            self._next += 1
            each.append(self._sequence(depth))
        return each[0] if len(each) == 1 else ("alt", tuple(each))

    def _sequence(self, depth: int) -> Tree:
        each: list[Tree] = []
        while (token := self._peek()) is not None:
            if token.kind == "rule" or (token.kind == "sign" and token.text in "|)"):
                break
            self._next += 1
            if token.kind == "times" or (token.kind == "sign" and token.text in "*+?"):
                if not each:
                    raise self._error(token, "there is nothing before it to repeat")
                each[-1] = ("rep", each[-1], *self._times(token))
            else:
                each.append(self._item(token, depth))
        return each[0] if len(each) == 1 else ("seq", tuple(each))

    def _item(self, token: _Token, depth: int) -> Tree:
        if token.kind == "text":
            return ("text", "".join(map(chr, self._characters(token, token.text[1:-1]))))
        if token.kind == "set":
            return self._set(token)
        if token.kind == "name":
            return ("rule", token.text)
        if token.text == ".":
            return ("set", True, ())
        if token.text != "(":
            raise self._error(token, "this is not expected here")
        if depth == MAX_NESTING:
            raise self._error(token, f"parentheses are nested deeper than {MAX_NESTING}")
        inside = self._alternatives(depth + 1)
        closing = self._peek()
        if closing is None or closing.text != ")":
            raise self._error(token, "this parenthesis is not closed")
        self._next += 1
        return inside

    def _times(self, token: _Token) -> tuple[int, int | None]:
        if token.kind == "sign":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token.text]
        low, comma, high = token.text[1:-1].replace(" ", "").partition(",")
        if not low and not high:
            raise self._error(token, "a number is missing")
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if least > MAX_TIMES or (most is not None and (most > MAX_TIMES or most < least)):
            raise self._error(token, f"counts go up to {MAX_TIMES}, the lower one first")
        return least, most

    def _characters(self, token: _Token, text: str) -> list[int]:
        """Code points of a text with escapes."""
        return [self._character(token, match) for match in _ESCAPE.finditer(text)]

    def _character(self, token: _Token, match: re.Match[str]) -> int:
        *coded, escaped, plain = match.groups()
        digits = next((each for each in coded if each), None)
        if digits is None:
            if escaped in ("x", "u", "U"):
                raise self._error(token, f"\\{escaped} needs 2, 4 or 8 hexadecimal digits")
            return ord(plain or _PLAIN.get(escaped, escaped))
        code = int(digits, 16)
        if code > LAST_CHARACTER or 0xD800 <= code < 0xE000:
            raise self._error(token, f"there is no character U+{code:X}")
        return code

    def _set(self, token: _Token) -> Tree:
        inside = token.text[1:-1]
        negated = inside.startswith("^")
        matches = list(_ESCAPE.finditer(inside[negated:]))
        codes = [self._character(token, match) for match in matches]
        ranges, at = [], 0
        while at < len(codes):
            if at + 2 < len(codes) and matches[at + 1].group() == "-":
                if codes[at + 2] < codes[at]:
                    raise self._error(token, "a range of it ends before it begins")
                ranges.append((codes[at], codes[at + 2]))
                at += 3
            else:
                ranges.append((codes[at], codes[at]))
                at += 1
        if not ranges and not negated:
            raise self._error(token, "it has no character")
        return ("set", negated, tuple(ranges))
