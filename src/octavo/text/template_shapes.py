"""Which shapes of messages a chat template reads, found by rendering short conversations and looking for their words.

Templates do not say whether they want a content as a string or as a list of parts, nor arguments of tool calls as an
object or as JSON; with the wrong one they print Python's spelling, print nothing, or fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.text.messages import NoContent, Shapes, shaped
from octavo.text.template import Template, TemplateFailed

_WORD = "Oktavheft"  # in no template
_USER = {"role": "user", "content": _WORD}
_ARGUMENTS = {"oktav": "heft"}
_WRONG = ("'oktav'", '\\"oktav')  # Python's spelling of an object; JSON inside of JSON
_TOOL = {
    "type": "function",
    "function": {"name": "note", "description": "Notes.", "parameters": {"type": "object", "properties": {}}},
}


def shapes_of(template: Template, special_tokens: Mapping[str, str]) -> Shapes:
    """The template's shapes; strings and objects where it shows neither."""

    def rendered(*messages: Mapping[str, Any], tools: list[Any] | None = None) -> str:
        variables = {**special_tokens, "messages": list(messages), "tools": tools, "documents": None}
        try:
            return template.render({**variables, "add_generation_prompt": True})
        except TemplateFailed:
            return ""

    def with_call(arguments: Any, shapes: Shapes) -> str:
        call = {"id": "call_1000", "type": "function", "function": {"name": "note", "arguments": arguments}}
        asked = shaped({"role": "assistant", "tool_calls": [call]}, shapes)
        return rendered({"role": "user", "content": "."}, asked, tools=[_TOOL])

    strings = _WORD in rendered(_USER)
    as_parts = rendered({"role": "user", "content": [{"type": "text", "text": _WORD}]})
    parts = _WORD in as_parts and "'text'" not in as_parts and '"text"' not in as_parts
    found = Shapes(strings or not parts, parts)
    rendering = None  # the first that does not fail, for templates that show no calls
    for no_content in NoContent:
        for objects in (True, False):
            tried = replace(found, argument_objects=objects, no_content=no_content)
            text = with_call(_ARGUMENTS, tried)
            if "oktav" in text and not any(wrong in text for wrong in _WRONG):
                return tried
            rendering = rendering or (tried if text else None)
    return rendering or found
