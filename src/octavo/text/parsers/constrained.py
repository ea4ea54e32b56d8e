"""What a grammar has to hold an answer to so that its calls parse: structural tags around the functions' schemas.

`required`, a named function and `strict` ones are such. A family whose form has no JSON in it writes Hermes's then.
It writes tags and knows no grammar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.parsers.formats import ThinkFormat, ToolFormat
from octavo.text.parsers.hermes import HERMES

Part = dict[str, Any]
Function = Mapping[str, Any]  # name, parameters, perhaps strict
_ANY_OBJECT = {"type": "object"}
_TEXT: Part = {"type": "any_text"}
MOST_CALLS = 8  # of an answer that must call; more where more functions are offered. Small models do not find an end


def must_call(
    tools: ToolFormat, think: ThinkFormat | None, opened: bool, functions: Sequence[Function], single: bool
) -> tuple[StructuredOutputsParams, ToolFormat]:
    """For an answer of calls of these functions and nothing else but reasoning: the constraint, and how it is written.

    opened: the prompt has begun the reasoning; else the model may."""
    used = tools if tools.written is not None else HERMES
    written = used.written
    assert written is not None
    calls: Part = {
        "type": "tags_with_separator",
        "tags": [_tag(used, function, function["parameters"]) for function in functions],
        "separator": written.separator,
        "at_least_one": True,
        "at_most": 1 if single else max(MOST_CALLS, len(functions)),
    }
    calls = _sequence(_constant(written.before), calls, _constant(written.after))
    if think is not None and not think.channels:
        thought = _sequence(_TEXT, _constant(f"{think.end}\n\n"), calls)
        calls = thought if opened else _either(calls, _sequence(_constant(think.begin), *thought["elements"]))
    return _params(calls, "tools"), used


def strict_calls(tools: ToolFormat, functions: Sequence[Function], single: bool) -> StructuredOutputsParams | None:
    """For an answer of text and calls, in which those of strict functions have arguments as their schema says; None
    where nothing is strict, or the family's form cannot be held to it."""
    written = tools.written
    trigger = tools.begins[0] if tools.begins else ""
    if written is None or written.before or not written.begin.startswith(trigger or "\0"):
        return None
    if not any(function.get("strict") for function in functions):
        return None
    tags = [_tag(tools, each, each["parameters"] if each.get("strict") else _ANY_OBJECT) for each in functions]
    return _params({"type": "triggered_tags", "triggers": [trigger], "tags": tags, "stop_after_first": single}, "tools")


def behind_reasoning(asked: StructuredOutputsParams, think: ThinkFormat) -> StructuredOutputsParams:
    """The same for what follows reasoning that the prompt has begun."""
    return _params(_sequence(_TEXT, _constant(f"{think.end}\n\n"), _part(asked)), asked.name)


def _part(asked: StructuredOutputsParams) -> Part:
    if asked.kind in ("json", "json_object"):
        return {"type": "json_schema", "json_schema": json.loads(asked.text)}
    if asked.kind == "regex":
        return {"type": "regex", "pattern": asked.text}
    if asked.kind == "grammar":
        return {"type": "grammar", "grammar": asked.text}
    if asked.kind == "choice":
        return _either(*(_constant(each) for each in asked.choice or ()))
    tag = json.loads(asked.text)
    if "format" in tag:
        return dict(tag["format"])
    tags = [
        {"type": "tag", "begin": each.get("begin"), "end": each.get("end", ""),
         "content": {"type": "json_schema", "json_schema": each.get("schema")}}
        for each in tag.get("structures", ())
    ]  # fmt: skip
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


def _tag(tools: ToolFormat, function: Function, schema: Mapping[str, Any]) -> Part:
    written = tools.written
    assert written is not None
    content = {"type": "json_schema", "json_schema": dict(schema)}
    return {"type": "tag", "begin": written.begin % function["name"], "content": content, "end": written.end}


def _constant(text: str) -> Part:
    return {"type": "const_string", "value": text}


def _sequence(*parts: Part) -> Part:
    """Without empty texts, and without sequences in it."""
    made: list[Part] = []
    for part in parts:
        if part["type"] == "sequence":
            made += part["elements"]
        elif part.get("value") != "":
            made.append(part)
    return {"type": "sequence", "elements": made}


def _either(*parts: Part) -> Part:
    return {"type": "or", "elements": list(parts)}


def _params(part: Part, name: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": part}, asked_as=name)
