"""Structural tags -> Lark: text in which certain parts are constrained, as models write calls of tools.

Read are vLLM's older form (structures with begin, schema and end behind triggers) and a part of the newer one,
`format`: const_string, json_schema, regex, grammar, any_text, sequence, or, tag, triggered_tags, tags_with_separator.
Names of special tokens inside texts stand for these tokens. It knows no model and no parser of calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.grammar.gbnf import GrammarError

MAX_PARTS = 512
MAX_NESTING = 32
TEXT = r"/(.|\n)*/"
Json = Mapping[str, Any]


class TagWriter:
    """Writes one grammar. schema: a JSON schema -> the same with options for the library. regex, grammar: texts of such
    kinds -> what stands for them in Lark (a regular expression between slashes; a grammar of its own)."""

    def __init__(
        self,
        special: Mapping[str, int],
        schema: Callable[[Json], Json],
        regex: Callable[[str], str],
        grammar: Callable[[str], str],
    ) -> None:
        self.grammars: list[dict[str, str]] = []  # of their own, named in the first
        self._schema, self._regex, self._grammar = schema, regex, grammar
        names = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names))) if names else None
        self._ids = special
        self._lines: list[str] = []
        self._kinds: dict[str, Callable[[Json, int], str]] = {
            "const_string": lambda part, _: self.literal(_text(part, "value")),
            "json_schema": lambda part, _: self._json(_object(part, "json_schema")),
            "regex": lambda part, _: self._rule(f"/{self._regex(_text(part, 'pattern'))}/"),
            "grammar": lambda part, _: self._own(_text(part, "grammar")),
            "any_text": lambda part, _: self._rule(TEXT),
            "sequence": self._sequence,
            "or": lambda part, depth: self._or(self._parts(part, "elements", depth)),
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }

    def write(self, tag: Json) -> list[dict[str, str]]:
        """The grammars, the first of which is the whole. GrammarError for what is not understood."""
        start = self._part(_object(tag, "format") if "format" in tag else _newer(tag), 0)
        return [{"name": "tags", "lark_grammar": "\n".join([f"start: {start}", *self._lines]) + "\n"}, *self.grammars]

    def literal(self, text: str) -> str:
        """A text in Lark; special tokens in it by their numbers."""
        made, at = [], 0
        for match in self._special.finditer(text) if self._special else ():
            made += [json.dumps(text[at : match.start()], ensure_ascii=False)] if match.start() > at else []
            made.append(f"<[{self._ids[match.group()]}]>")
            at = match.end()
        made += [json.dumps(text[at:], ensure_ascii=False)] if at < len(text) else []
        return " ".join(made) or '""'

    def _rule(self, body: str, attributes: str = "") -> str:
        if len(self._lines) >= MAX_PARTS:
            raise GrammarError(f"it has more than {MAX_PARTS} parts")
        name = f"part_{len(self._lines)}"
        self._lines.append(f"{name}{attributes}: {body}")
        return name

    def _part(self, part: Json, depth: int) -> str:
        """The name of a rule, or a text, for a part."""
        if depth > MAX_NESTING:
            raise GrammarError(f"its parts are nested deeper than {MAX_NESTING}")
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in self._kinds:
            raise GrammarError(f"the part {str(kind)[:40]!r} is not supported; there are {', '.join(self._kinds)}")
        return self._kinds[kind](part, depth + 1)

    def _parts(self, part: Json, name: str, depth: int) -> list[str]:
        return [self._part(each, depth) for each in _objects(part, name)]

    def _json(self, schema: Json) -> str:
        return self._rule(f"%json {json.dumps(self._schema(schema), ensure_ascii=False)}")

    def _own(self, text: str) -> str:
        """A grammar of its own: its names are not ours."""
        name = f"grammar_{len(self.grammars)}"
        self.grammars.append({"name": name, "lark_grammar": self._grammar(text)})
        return self._rule(f"@{name}")

    def _or(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self._rule(" | ".join(parts))

    def _text_until(self, end: str) -> str:
        """Any text up to `end`, which it includes."""
        if not end:
            return self._rule(TEXT)
        match = self._special.match(end) if self._special else None
        if match is not None:  # a special token is never part of a text
            return self._rule(f"{self._rule(TEXT)} {self.literal(end)}")
        first = self._special.search(end) if self._special else None
        if first is not None:
            return self._rule(f"{self._text_until(end[: first.start()])} {self.literal(end[first.start() :])}")
        return self._rule(f"{TEXT} {json.dumps(end, ensure_ascii=False)}", "[lazy]")

    def _sequence(self, part: Json, depth: int) -> str:
        elements = _objects(part, "elements")
        made = []
        at = 0
        while at < len(elements):
            this, following = elements[at], elements[at + 1] if at + 1 < len(elements) else None
            if this.get("type") != "any_text" or following is None:
                made.append(self._part(this, depth))
                at += 1
            elif following.get("type") == "const_string":
                made.append(self._text_until(_text(following, "value")))
                at += 2
            else:
                raise GrammarError("any_text in a sequence must be its last element or stand before a const_string")
        return self._rule(" ".join(made) or '""')

    def _tag(self, part: Json, depth: int, trigger: str = "") -> str:
        """begin, content, end; without the trigger that has been written already."""
        begin, content, ends = _text(part, "begin", True), _object(part, "content"), part.get("end", "")
        ends = [ends] if isinstance(ends, str) else ends
        if not isinstance(ends, list) or not ends or not all(isinstance(each, str) for each in ends):
            raise GrammarError("end of a tag must be a text or a list of texts")
        head = self.literal(begin[len(trigger) :])
        if content.get("type") == "any_text":
            return self._or([self._rule(f"{head} {self._text_until(each)}") for each in ends])
        return self._rule(f"{head} {self._part(content, depth)} {self._or([self.literal(each) for each in ends])}")

    def _triggered(self, part: Json, depth: int) -> str:
        """Text, until a trigger is written; then one of the tags that begin with it."""
        triggers = part.get("triggers")
        if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
            raise GrammarError("triggers must be a list of texts, none of them empty")
        tags = _objects(part, "tags")
        taken: dict[str, list[Json]] = {trigger: [] for trigger in triggers}
        for tag in tags:
            begin = _text(tag, "begin", True)
            trigger = next((t for t in sorted(triggers, key=len, reverse=True) if begin.startswith(t)), None)
            if trigger is None:
                raise GrammarError(f"no trigger begins the tag {begin[:40]!r}")
            taken[trigger].append(tag)
        parts = [
            self._rule(f"{self._text_until(trigger)} {self._or([self._tag(tag, depth, trigger) for tag in each])}")
            for trigger, each in taken.items()
            if each
        ]
        least = 1 if part.get("at_least_one") else 0
        if part.get("stop_after_first"):
            return self._rule(f"{self._or(parts)}" if least else f"{self._or(parts)} | {self._rule(TEXT)}")
        return self._rule(f"({' | '.join(parts)}){'+' if least else '*'} {self._rule(TEXT)}")

    def _separated(self, part: Json, depth: int) -> str:
        """Tags and nothing else, with a text between them. at_most, which is ours, is how many of them."""
        one = self._or([self._tag(tag, depth) for tag in _objects(part, "tags")])
        most = 1 if part.get("stop_after_first") else part.get("at_most")
        if most is not None and (type(most) is not int or not 1 <= most <= MAX_PARTS):
            raise GrammarError(f"at_most must be a whole number from 1 to {MAX_PARTS}")
        times = "*" if most is None else f"{{0,{most - 1}}}"
        more = f"{one} ({self.literal(_text(part, 'separator', True))} {one}){times}"
        made = one if most == 1 else more
        return self._rule(made if part.get("at_least_one") else f'"" | {made}')


def _newer(tag: Json) -> Json:
    """The older form as the newer one."""
    tags = [
        {"begin": each.get("begin"), "content": {"type": "json_schema", "json_schema": each.get("schema")},
         "end": each.get("end", "")}
        for each in _objects(tag, "structures")
    ]  # fmt: skip
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


def _text(part: Json, name: str, may_be_empty: bool = False) -> str:
    value = part.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise GrammarError(f"{name} must be a text{'' if may_be_empty else ', and not empty'}")
    return value


def _object(part: Json, name: str) -> Json:
    value = part.get(name)
    if value is True and name == "json_schema":
        return {}
    if not isinstance(value, Mapping):
        raise GrammarError(f"{name} must be an object")
    return value


def _objects(part: Json, name: str) -> list[Json]:
    value = part.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, Mapping) for each in value):
        raise GrammarError(f"{name} must be a list of objects, and not empty")
    return value
