"""Messages of a conversation as chat templates expect them: known roles, texts or lists of text parts, no nulls.

The shapes that come in are those of the OpenAI API. It knows what a template can read (Shapes); it renders nothing.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequest

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
REASONING = ("reasoning_content", "thinking", "reasoning")  # one text under the names of several servers
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class NoContent(enum.Enum):
    """How a message that only calls tools says that it has no content."""

    ABSENT = "no such key"
    NULL = "null"
    EMPTY = "empty string"


@dataclass(frozen=True)
class Shapes:
    """What a template reads.

    strings: content as a string. parts: content as a list of text parts. argument_objects: the arguments of a tool call
    as an object, not as JSON in a string. no_content: what stands beside the calls where there is no content.
    """

    strings: bool = True
    parts: bool = False
    argument_objects: bool = True
    no_content: NoContent = NoContent.ABSENT


def plain_message(message: Mapping[str, Any], index: int) -> Message:
    """A checked message: role known, content a string or a list of {"type": "text", "text"}, arguments of calls as they
    came. Raises InvalidRequest naming the field."""
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{where}.role is {str(role)[:60]!r}; known roles: {', '.join(ROLES)}.", param=f"{where}.role"
        )
    plain = {key: value for key, value in message.items() if value is not None}
    plain["role"] = ROLES[role]
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], f"{where}.content")
    elif role != "assistant":
        raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
    elif "tool_calls" not in plain:
        plain["content"] = ""
    if "tool_calls" in plain:
        calls = plain["tool_calls"]
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise InvalidRequest(f"{where}.tool_calls is not a list of objects.", param=f"{where}.tool_calls")
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    if reasoning is not None:
        plain.setdefault("thinking", reasoning)
        plain["reasoning_content"] = reasoning
    return plain


def shaped(message: Message, shapes: Shapes) -> Message:
    """The message in the shapes that the template reads; several parts become lines where it reads strings only."""
    made = dict(message)
    content = message.get("content")
    if isinstance(content, list) and not shapes.parts:
        made["content"] = text_of(content)
    elif isinstance(content, str) and not shapes.strings:
        made["content"] = [{"type": "text", "text": content}]
    if "tool_calls" in message:
        made["tool_calls"] = [_shaped_call(call, shapes.argument_objects) for call in message["tool_calls"]]
        if not content and shapes.no_content is not NoContent.ABSENT:
            made["content"] = None if shapes.no_content is NoContent.NULL else ""
    return made


def text_of(content: Any) -> str:
    """The text of a content, a line for each part."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())


def one_system_message(messages: Sequence[Message]) -> list[Message]:
    """Every system message as one in front, for templates that want it there."""
    system = [text_of(message["content"]) for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *rest] if system else list(messages)


def folded_system_message(messages: Sequence[Message]) -> list[Message]:
    """Every system message at the beginning of the first user turn, for templates that know no system role."""
    system, *rest = one_system_message(messages)
    if system["role"] != "system":
        return list(messages)
    first = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return [{**system, "role": "user"}, *rest]
    text = "\n\n".join((system["content"], text_of(rest[first]["content"])))
    return [*rest[:first], {**rest[first], "content": text}, *rest[first + 1 :]]


def ended_with(message: Message, mark: str) -> Message | None:
    """The message with `mark` behind its last text; None if it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + mark}
    if not content:
        return None
    *parts, last = content
    return {**message, "content": [*parts, {**last, "text": last["text"] + mark}]}


def _plain_content(content: Any, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} is neither a string nor a list of parts.", param=where)
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part if isinstance(part, str) else None
        if kind in _TEXT_PARTS:
            text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{where}[{index}] is of type {str(kind)[:40]!r}; this model reads text parts only.",
                param=f"{where}[{index}].type",
            )
        parts.append({"type": "text", "text": text})
    return parts


def _shaped_call(call: Mapping[str, Any], objects: bool) -> dict[str, Any]:
    """Arguments, a JSON string on the wire, as the object that most templates print; a string that is none stays."""
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    arguments = function["arguments"]
    if objects and isinstance(arguments, str):
        arguments = _parsed(arguments)
    elif not objects and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # what a model once wrote badly must not end its conversation
    return value if isinstance(value, dict) else arguments
