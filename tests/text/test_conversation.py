"""A conversation with functions and reasoning -> the prompt, and how its answer is read, on published templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.request import ChatRequest, Reasoning
from octavo.sampling_params import SamplingParams
from octavo.text.conversation import Conversations, Ways
from octavo.text.parsers.splitter import Parsing
from octavo.text.prompt import PromptTemplate
from tests.text.test_parsers import read
from tests.tokenizer import carriers

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "And Ulm?"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "rain"},
    {"role": "assistant", "content": "Rain."},
    USER,
]


def with_template(name: str, ways: Ways | None = None, variables: dict[str, Any] | None = None) -> Conversations:
    source = Path(carriers.files("llama.cpp")[f"{name}.jinja"]).read_text(encoding="utf-8")
    return Conversations(PromptTemplate({"default": source}, SPECIAL), ways, variables)


def asked(messages: list[dict[str, Any]] = HISTORY, **more: Any) -> ChatRequest:
    return ChatRequest(messages, SamplingParams(), **more)


def parsing_of(name: str, chat: ChatRequest, ways: Ways | None = None) -> Parsing:
    parsing = with_template(name, ways).prepare(chat).parsing
    assert parsing is not None
    return parsing


def test_a_template_without_functions_is_told_in_words() -> None:
    ready = with_template("google-gemma-2-2b-it").prepare(asked(tools=[TOOL]))
    assert ready.told == {"x-octavo-tools": "fallback"} and ready.parsing is not None
    assert '{"type": "function", "function": {"name": "weather"' in ready.text and "Be brief." in ready.text
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    assert call in ready.text and "<tool_response>\nrain\n</tool_response>" in ready.text
    assert read(ready.parsing, [call]).calls == [["weather", '{"city": "Köln"}']]
    plain = with_template("google-gemma-2-2b-it").prepare(asked([USER]))
    assert plain.parsing is None and plain.told == {}
    after = with_template("google-gemma-2-2b-it").prepare(asked())  # calls of earlier turns, none to be made
    assert after.parsing is None and call in after.text and "<tools>" not in after.text


def test_a_template_with_functions_is_given_them() -> None:
    ready = with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked(tools=[TOOL]))
    assert ready.told == {} and ready.parsing is not None and ready.parsing.tools is not None
    assert "<tools>" in ready.text and "rain" in ready.text
    none = with_template("Qwen-Qwen2.5-7B-Instruct").prepare(asked(tools=[TOOL], tool_choice="none"))
    assert "<tools>" not in none.text and none.parsing is None


def test_ids_are_made_as_the_family_has_them() -> None:
    """Mistral's templates refuse other ids than their own; Kimi's carry the function's name and place."""
    text = with_template("mistralai-Mistral-Nemo-Instruct-2407").prepare(asked(HISTORY[1:], tools=[TOOL])).text
    call, result = text.split('"id": "')[1][:9], text.split('"call_id": "')[1][:9]
    assert call == result and call.isalnum()
    text = with_template("moonshotai-Kimi-K2").prepare(asked(tools=[TOOL])).text
    assert "functions.weather:0" in text and "call_abc" not in text


@pytest.mark.parametrize(
    ("name", "on", "off"),
    [
        ("Qwen-Qwen3-0.6B", None, "<think>\n\n</think>\n\n"),
        ("deepseek-ai-DeepSeek-V3.1", "<think>", "</think>"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "<think>\n", "<think></think>"),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "<think>\n", "<think>\n\n</think>\n\n"),
    ],
)
def test_reasoning_is_turned_on_and_off(name: str, on: str | None, off: str) -> None:
    """By the variable that the template reads; where it reads none, by closing what it has opened."""
    for reasoning, end in ((Reasoning(True), on), (Reasoning(False), off)):
        ready = with_template(name).prepare(asked([USER], reasoning=reasoning))
        assert end is None or ready.text.endswith(end)
        assert ready.parsing is not None and ready.parsing.reasoning is (end == on and on is not None)
    for quiet in (Reasoning(effort="none"), Reasoning(budget=0)):
        assert with_template(name).prepare(asked([USER], reasoning=quiet)).text.endswith(off)
    usual = with_template(name, Ways(reasoning=False))
    assert usual.prepare(asked([USER])).text.endswith(off)
    assert usual.prepare(asked([USER], reasoning=Reasoning(True))).text.endswith(on or "assistant\n")


def test_effort_and_variables_reach_the_template() -> None:
    chat = asked([USER], reasoning=Reasoning(effort="low"))
    assert "Reasoning: low" in with_template("openai-gpt-oss-120b").prepare(chat).text
    given = with_template("Qwen-Qwen3-0.6B", variables={"enable_thinking": False})
    assert given.prepare(asked([USER])).text.endswith("</think>\n\n")
    own = asked([USER], chat_template_kwargs={"enable_thinking": True})
    assert given.prepare(own).text.endswith("assistant\n")


def test_a_continued_answer_goes_on_where_it_was() -> None:
    begun = [USER, {"role": "assistant", "content": "<think>\nLet me"}]
    assert parsing_of("Qwen-Qwen3-0.6B", asked(begun)).reasoning
    over = [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt"}]
    assert not parsing_of("Qwen-Qwen3-0.6B", asked(over)).reasoning


def test_one_call_at_most() -> None:
    assert parsing_of("Qwen-Qwen3-0.6B", asked(tools=[TOOL], parallel_tool_calls=False)).single
    assert parsing_of("Qwen-Qwen3-0.6B", asked(tools=[TOOL], tool_choice="weather")).single
    assert not parsing_of("Qwen-Qwen3-0.6B", asked(tools=[TOOL])).single


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{"type": "function"}], "auto", "tools[0].function"),
        ([{"type": "retrieval"}], "auto", "tools[0].type"),
        (["weather"], "auto", "tools[0].type"),
        ([{"function": {}}], "auto", "tools[0].function.name"),
        ([{"function": {"name": "a b"}}], "auto", "tools[0].function.name"),
        ([{"function": {"name": "x" * 200}}], "auto", "tools[0].function.name"),
        ([{"function": {"name": "x", "parameters": []}}], "auto", "tools[0].function.parameters"),
        ([{"function": {"name": "x", "parameters": {"type": "string"}}}], "auto", "tools[0].function.parameters.type"),
        ([{"function": {"name": "x", "description": 7}}], "auto", "tools[0].function.description"),
        ([{"function": {"name": "x", "description": "y" * (1 << 19)}}], "auto", "tools[0].function"),
        ([TOOL, TOOL], "auto", "tools[1].function.name"),
        ([TOOL] * 300, "auto", "tools"),
        ([TOOL], "time", "tool_choice"),
        ([], "required", "tool_choice"),
    ],
)
def test_bad_functions_are_refused_by_name(tools: list[Any], choice: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        with_template("Qwen-Qwen3-0.6B").prepare(asked([USER], tools=tools, tool_choice=choice))
    assert caught.value.param == param


def test_functions_without_parameters_are_accepted() -> None:
    ready = with_template("Qwen-Qwen3-0.6B").prepare(asked([USER], tools=[{"function": {"name": "now"}}]))
    assert ready.parsing is not None and json.dumps({"type": "object", "properties": {}}) in ready.text
