"""Answers that are held to be calls: what the constraint lets through is read as the calls that it names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.request import Reasoning
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.parsers.constrained import MOST_CALLS, must_call, strict_calls
from octavo.text.parsers.detect import names, think_format, tool_format
from octavo.text.parsers.hermes import HERMES
from octavo.text.parsers.splitter import Parsing
from tests.text.test_conversation import TOOL, USER, asked, parsing_of, with_template
from tests.text.test_parsers import FUNCTIONS, read

WEATHER = {"name": "weather", "parameters": FUNCTIONS["weather"]}
TIME = {"name": "time", "parameters": FUNCTIONS["time"]}
ARGUMENTS = {"weather": '{"city": "Łódź } ]"}', "time": "{}"}


def format_of(constraint: StructuredOutputsParams | None) -> Any:
    assert constraint is not None and constraint.kind == "structural_tag"
    return json.loads(constraint.text)["format"]


def written(part: Any) -> str:
    """One text that a part lets through: every tag once, `.` for any text, the first of several."""
    kind = part["type"]
    if kind == "const_string":
        return str(part["value"])
    if kind == "any_text":
        return "."
    if kind == "sequence":
        return "".join(map(written, part["elements"]))
    if kind == "or":
        return written(part["elements"][0])
    tags = [f"{tag['begin']}{ARGUMENTS[name]}{tag['end']}" for name, tag in zip(ARGUMENTS, part["tags"], strict=False)]
    return str(part["separator"]).join(tags[: part["at_most"]])


@pytest.mark.parametrize("name", [name for name in names()[0] if name != "harmony"])
@pytest.mark.parametrize("opened", [False, True])
def test_what_is_let_through_is_read(name: str, opened: bool) -> None:
    """In the family's own form where it is JSON, else in Hermes's; behind reasoning that the prompt has begun."""
    think, own = think_format("think"), tool_format(name)
    assert own is not None
    for single in (False, True):
        constraint, used = must_call(own, think, opened, [WEATHER, TIME], single)
        said = read(Parsing(used, think, opened, FUNCTIONS, single), [written(format_of(constraint))])
        calls = [[name, ARGUMENTS[name]] for name in ("weather", "time")]
        assert said.calls == calls[: 1 if single else 2] and not said.text
        assert said.reasoning == ("." if opened else "")


def test_the_beginning_of_a_demanded_call_is_no_text() -> None:
    """The tokens of an answer may end anywhere in it: clients would show what is cut off as words."""
    parsing = (
        with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked([USER], tools=[TOOL], tool_choice="required")).parsing
    )
    assert parsing is not None
    whole = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS["weather"]}}}\n</tool_call>'
    for end in range(len(whole)):
        said = read(parsing, [f"{whole}\n{whole[:end]}"])
        assert not said.text and said.calls[0] == ["weather", ARGUMENTS["weather"]]
        assert not read(parsing, [whole[:end]]).text


def test_an_answer_that_must_call_comes_to_an_end() -> None:
    """Small models go on calling as long as they may."""
    for functions, most in (([WEATHER, TIME], MOST_CALLS), ([WEATHER] * 12, 12)):
        constraint, _ = must_call(HERMES, None, False, functions, False)
        assert format_of(constraint)["elements"][0]["at_most"] == most


def test_a_choice_of_calls_is_held_to() -> None:
    both = [TOOL, {"type": "function", "function": {"name": "time"}}]
    for choice, count in (("required", 2), ("weather", 1)):
        ready = with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked([USER], tools=both, tool_choice=choice))
        assert [len(part["tags"]) for part in format_of(ready.constraint)["elements"]] == [count]
    auto = with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked([USER], tools=both))
    assert auto.constraint is None
    gpt = with_template("openai-gpt-oss-120b").prepare(asked([USER], tools=both, tool_choice="required"))
    assert gpt.parsing is not None and gpt.parsing.think is None  # Hermes's form, in no channel


def test_strict_functions_are_held_to_their_schema() -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    other = {"type": "function", "function": {"name": "time"}}
    ready = with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked([USER], tools=[strict, other]))
    part = format_of(ready.constraint)
    assert part["triggers"] == ["<tool_call>"] and all(tag["begin"].startswith("<tool_call>") for tag in part["tags"])
    schemas = [tag["content"]["json_schema"] for tag in part["tags"]]
    assert schemas == [strict["function"]["parameters"], {"type": "object"}]  # type: ignore[index]
    glm = tool_format("glm")
    assert glm is not None and strict_calls(glm, [{**WEATHER, "strict": True}], False) is None


def test_a_constraint_waits_for_the_end_of_reasoning() -> None:
    """Else a schema would hold the reasoning, and the answer would be empty."""
    name = "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"
    for given in ({"json": {"type": "object"}}, {"choice": ["a", "b"]}, {"regex": "a+"}, {"json_object": True}):
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**given))  # type: ignore[arg-type]
        chat = asked([USER])
        opened = with_template(name).prepare(type(chat)(chat.messages, params))
        first, second, _ = format_of(opened.constraint)["elements"]
        assert first == {"type": "any_text"} and second["value"] == "</think>\n\n"
        closed = with_template(name).prepare(type(chat)(chat.messages, params, reasoning=Reasoning(False)))
        assert closed.constraint == params.structured_outputs
    assert parsing_of(name, asked([USER])).reasoning


def test_a_schema_and_a_choice_of_calls_exclude_each_other() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json_object=True))
    chat = asked([USER], tools=[TOOL], tool_choice="required")
    with pytest.raises(InvalidRequest, match="exclude"):
        with_template("Qwen-Qwen3-0.6B").prepare(
            type(chat)(chat.messages, params, tools=[TOOL], tool_choice="required")
        )
