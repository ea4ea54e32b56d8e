"""Transcripts of every parser: what a model wrote, and what it means, however the text is cut.

transcripts/NAME.txt, a case each: `=== title`, options in brackets behind it; the answer; then `--- reasoning`, `---
text`, `--- call NAME` in the order in which they are told, each with what it says. A transcript's functions are
FUNCTIONS.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.parsers.detect import names, think_format, tool_format
from octavo.text.parsers.splitter import Kind, Parsing, Splitter

FOLDER = Path(__file__).parent / "transcripts"
FUNCTIONS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": ["string", "null"]},
            "spots": {"type": "array"},
            "more": {"type": "object"},
        },
    },
    "run": {"type": "object", "properties": {"code": {"type": "string"}}},
    "time": {"type": "object", "properties": {}},
}


@dataclass
class Meaning:
    reasoning: str = ""
    text: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name, arguments


@dataclass(frozen=True)
class Case:
    title: str
    answer: str
    meaning: Meaning
    parsing: Parsing


def cases(name: str) -> Iterator[Case]:
    for part in re.split(r"^=== ", (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, rest = part.split("\n", 1)
        options = re.search(r" \[((?:\w+=\w+ ?)+)\]$", head)
        title = head[: options.start()] if options else head
        asked = dict(each.split("=") for each in options[1].split()) if options else {}
        answer, *told = re.split(r"^--- ", rest, flags=re.MULTILINE)
        meaning = Meaning()
        for each in told:
            kind, said = each.split("\n", 1)
            said = said.removesuffix("\n")
            if kind.startswith("call "):
                meaning.calls.append([kind.removeprefix("call "), said])
            else:
                setattr(meaning, kind, said)
        parsing = Parsing(
            tool_format(asked.get("tools", name)),
            think_format(asked.get("think", "none")),
            "open" in asked,
            FUNCTIONS,
            "single" in asked,
        )
        yield Case(f"{name}: {title}", answer.removesuffix("\n"), meaning, parsing)


ALL = [case for path in sorted(FOLDER.glob("*.txt")) for case in cases(path.stem)]


def read(parsing: Parsing, pieces: list[str]) -> Meaning:
    """What the splitter makes of an answer that comes in pieces; every rule of the stream is looked at."""
    splitter, made = Splitter(parsing), Meaning()
    reached = 0
    for piece in [*pieces, None]:
        for told in splitter.finish() if piece is None else splitter.push(piece):
            assert told.end >= reached, "characters come in order"
            reached = told.end
            if told.kind is Kind.TEXT:
                assert told.text
                made.text += told.text
            elif told.kind is Kind.REASONING:
                assert told.text
                made.reasoning += told.text
            elif told.name is not None:
                assert told.id is not None and told.id.startswith("call_") and not told.text
                assert told.call == len(made.calls)
                made.calls.append([told.name, ""])
            else:
                assert told.call == len(made.calls) - 1 and told.id is None and told.text
                made.calls[-1][1] += told.text
    assert reached <= sum(map(len, pieces))
    return made


def cut(text: str, every: int) -> list[str]:
    return [text[at : at + every] for at in range(0, len(text), every)]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.title)
def test_a_transcript_means_the_same_however_it_is_cut(case: Case) -> None:
    """Once at every character, and in pieces of 1 to 8, as tokens of a run-ahead come."""
    whole = read(case.parsing, [case.answer])
    assert whole == case.meaning
    for at in range(1, len(case.answer)):
        assert read(case.parsing, [case.answer[:at], case.answer[at:]]) == whole, f"cut at {at}"
    for every in range(1, 9):
        assert read(case.parsing, cut(case.answer, every)) == whole, f"pieces of {every}"
    for _, arguments in whole.calls:
        if "broken" not in case.title:
            assert isinstance(json.loads(arguments), dict)


def test_every_parser_has_a_transcript() -> None:
    tools, think = names()
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*tools, "think"}
    assert {case.parsing.think.name for case in ALL if case.parsing.think} == set(think)


TOOLS = names()[0]


THINK = think_format("think")
MARKS = sorted({mark for name in TOOLS for mark in Parsing(tool_format(name), THINK).shown if mark})
WORDS = st.sampled_from(
    [*MARKS, '{"name": "weather", ', '"arguments": {', '"parameters": ', "}", "]", "[", "{", '"', "\\", ",", ":", "1"]
    + ["(", ")", "=", "'", " ", "\n", "```json", "<think>", "</think>", "é", "🙂", "null", "weather", "call:", "\x00"]
)  # fmt: skip


@pytest.mark.parametrize("name", [*TOOLS, "none"])
@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORDS, max_size=30), every=st.integers(1, 9), data=st.data())
def test_any_text_means_the_same_however_it_is_cut(
    name: str, words: list[str], every: int, data: st.DataObject
) -> None:
    """Arbitrary text of marks, braces and quotes: nothing raises, and cutting changes nothing."""
    think = think_format("harmony" if name == "harmony" else data.draw(st.sampled_from(names()[1])))
    parsing = Parsing(tool_format(name), think, data.draw(st.booleans()), FUNCTIONS, data.draw(st.booleans()))
    text = "".join(words)
    assert read(parsing, cut(text, every)) == read(parsing, [text])


@pytest.mark.parametrize("name", [*TOOLS, "none"])
@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="<[{`f>(", exclude_categories=("Cs",)), max_size=60))
def test_text_without_marks_stays_as_it_is(name: str, text: str) -> None:
    parsing = Parsing(tool_format(name), None if name != "harmony" else think_format("harmony"), False, FUNCTIONS)
    assert read(parsing, cut(text, 3)) == Meaning(text=text)
