"""The functions that a request offers to the model: checked, and told in words to a model whose template has no place
for them.

The fallback is Hermes's form: functions and calls as JSON between tags. Most small models have seen it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.errors import InvalidRequest
from octavo.request import TOOL_CHOICES
from octavo.text.messages import Message, text_of

MOST = 256  # functions in a request
LONGEST = 1 << 18  # bytes of one function as JSON; agents send a few kilobytes
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NOTHING = {"type": "object", "properties": {}}

# `%s`: a line of JSON for each function.
FALLBACK = """You can call functions. Each line between <tools> and </tools> describes one as JSON:
<tools>
%s
</tools>
To call a function, write its name and its arguments in exactly this form, once for every call:
<tool_call>
{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}
</tool_call>
The results come back between <tool_response> and </tool_response>. Where no function helps, answer in plain words."""


def checked(tools: Sequence[Mapping[str, Any]], choice: str) -> list[dict[str, Any]]:
    """The functions as templates expect them, none if the choice is `none`. Raises InvalidRequest that names the one at
    fault."""
    if len(tools) > MOST:
        raise InvalidRequest(f"tools has {len(tools)} functions; at most {MOST} are accepted.", param="tools")
    made: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        function = _function(tool, f"tools[{index}]")
        if function["name"] in made:
            raise InvalidRequest(
                f"tools has two functions named {function['name']!r}.", param=f"tools[{index}].function.name"
            )
        made[function["name"]] = {"type": "function", "function": function}
    if choice not in TOOL_CHOICES and choice not in made:
        raise InvalidRequest(f"tool_choice names {choice[:64]!r}, which is not among tools.", param="tool_choice")
    if choice not in ("auto", "none") and not made:
        raise InvalidRequest(f"tool_choice is {choice!r}, but there are no tools.", param="tool_choice")
    return [] if choice == "none" else list(made.values())


def _function(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        raise InvalidRequest(f'{where}.type must be "function".', param=f"{where}.type")
    where += ".function"
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where} is missing or no object.", param=where)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.name must be 1 to 128 letters, digits, or one of _ . : / -.", param=f"{where}.name"
        )
    if not isinstance(function.get("description", ""), str | None):
        raise InvalidRequest(f"{where}.description is no text.", param=f"{where}.description")
    if parameters is None:
        parameters = _NOTHING
    elif not isinstance(parameters, Mapping):
        raise InvalidRequest(f"{where}.parameters is no JSON Schema: an object.", param=f"{where}.parameters")
    elif parameters and parameters.get("type", "object") != "object":
        raise InvalidRequest(f'{where}.parameters must be of type "object".', param=f"{where}.parameters.type")
    if len(msgspec.json.encode(function)) > LONGEST:
        raise InvalidRequest(f"{where} is larger than {LONGEST >> 10} KiB.", param=where)
    return {**function, "description": function.get("description") or "", "parameters": parameters or _NOTHING}


def told_in_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation for a template without functions: they stand in the system message, calls and results in the
    turns of assistant and user. messages: plain ones."""
    made: list[Message] = []
    if tools:
        words = FALLBACK % "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        made.append({"role": "system", "content": words})
    for index, message in enumerate(messages):
        role, content = message["role"], text_of(message.get("content"))
        if role == "system" and tools and not index:
            made[0] = {"role": "system", "content": f"{content}\n\n{made[0]['content']}"}
        elif role == "assistant" and "tool_calls" in message:
            calls = [content, *(_call(call) for call in message["tool_calls"])]
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            made.append({**kept, "content": "\n".join(part for part in calls if part)})
        elif role == "tool":
            result = f"<tool_response>\n{content}\n</tool_response>"
            if made and made[-1].get("results"):
                made[-1]["content"] += "\n" + result
            else:
                made.append({"role": "user", "content": result, "results": True})
        else:
            made.append(message)
    return [{key: value for key, value in message.items() if key != "results"} for message in made]


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments") or "{}"
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(str(function.get("name", "")), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'
