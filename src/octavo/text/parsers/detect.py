"""Chat template -> how its model writes calls and reasoning, without a flag.

The template is asked how it writes a call that was made, since models write what they were trained to read; where it
tells nothing, its source is looked at. A flag's name, ours or another server's, overrides both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from octavo.errors import ConfigError
from octavo.text.messages import Shapes, shaped
from octavo.text.parsers.formats import ThinkFormat, ToolFormat
from octavo.text.template import Template, TemplateFailed

# In the order in which fingerprints are compared: what has fewer marks of its own stands further down.
TOOLS = (
    "harmony:TOOLS", "functiongemma:FORMATS", "deepseek:FORMATS", "kimi:TOOLS", "solar:TOOLS", "glm:FORMATS",
    "qwen_coder:FORMATS", "mistral:TOOLS", "pythonic:LIQUID", "hermes:FORMATS", "granite:FORMATS", "hermes:HERMES",
    "pythonic:TOOLS", "llama3:TOOLS",
)  # fmt: skip
THINK = ("harmony:THINK", "think:FORMATS")
# Marks of families whose calls are not read: they look like another's.
UNREAD = ("]<]minimax[>[", "<|open|>call tool=", "<atem:function_calls>", ">>>all")
OFF = "none"

_NAME, _KEY = "oktavheft", "oktav"  # in no template
_CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "."},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": ".",
        "thinking": ".",
        "tool_calls": [
            {"id": "oktav1234", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: "."}}},
        ],
    },
]
TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Notes.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "."}}},
    },
}


@dataclass(frozen=True)
class Detected:
    """What a template tells. offers: it shows the functions of a request to the model. recalls: it writes calls of
    earlier turns."""

    tools: ToolFormat | None
    think: ThinkFormat | None
    offers: bool
    recalls: bool


def detect(source: str, template: Template, shapes: Shapes, special_tokens: Mapping[str, str]) -> Detected:
    """What this template tells."""

    def rendered(messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        variables = {**special_tokens, "messages": [shaped(message, shapes) for message in messages], "documents": None}
        try:
            return template.render({**variables, "tools": tools, "add_generation_prompt": False})
        except TemplateFailed:
            return ""

    before, called = rendered(_CALLED[:1], [TOOL]), rendered(_CALLED, [TOOL])
    offers, recalls = _NAME in before, called.count(_NAME) > before.count(_NAME)
    written = called[len(before) :] if called.startswith(before) else called
    unread = any(mark in source for mark in UNREAD)
    found = None if unread else _matching(_formats(TOOLS), written if recalls else "", source)
    return Detected(found, _matching(_formats(THINK), written, source), offers, recalls)


def tool_format(name: str) -> ToolFormat | None:
    """The format of this name; None for `none`. Raises ConfigError for an unknown one."""
    return None if name == OFF else _named(_formats(TOOLS), name, "--tool-call-parser")


def think_format(name: str) -> ThinkFormat | None:
    """The same for reasoning."""
    return None if name == OFF else _named(_formats(THINK), name, "--reasoning-parser")


def names() -> tuple[list[str], list[str]]:
    """Of all formats of calls, and of reasoning."""
    return [each.name for each in _formats(TOOLS)], [each.name for each in _formats(THINK)]


def _formats(table: Iterable[str]) -> list[Any]:
    found: list[Any] = []
    for entry in table:
        module, attribute = entry.split(":")
        value = getattr(import_module(f"octavo.text.parsers.{module}"), attribute)
        found += value if isinstance(value, tuple) else (value,)
    return found


def _matching(formats: list[Any], *texts: str) -> Any:
    """The first format whose fingerprint stands in the first text in which any does."""
    for text in texts:
        for each in formats:
            if any(all(mark in text for mark in marks) for marks in each.fingerprint):
                return each
    return None


def _named(formats: list[Any], name: str, flag: str) -> Any:
    word = name.lower()
    for each in formats:
        if word == each.name or word in each.aliases:
            return each
    known = ", ".join(each.name for each in formats)
    raise ConfigError(f"{flag} {name}: no such parser. Known: {known}; {OFF} turns it off.", flag=flag)
