"""What a chat body says of functions and of reasoning, in the spellings of several servers -> the request's nouns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parameter import ID_END
from octavo.request import TOOL_CHOICES, Reasoning
from octavo.server.openai.schema import ChatFields

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
LONGEST_WORD = 64  # characters


def tool_choice(value: Any) -> str:
    """`auto`, `required`, `none` or a function's name. Raises InvalidRequest."""
    if value is None:
        return "auto"
    if isinstance(value, str):
        if value not in TOOL_CHOICES:
            raise InvalidRequest(
                f"tool_choice is {value[:LONGEST_WORD]!r}; it must be auto, none, required, or an object that names a "
                "function.",
                param="tool_choice",
            )
        return value
    if isinstance(value, Mapping) and value.get("type", "function") == "function":
        function = value.get("function", value)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in TOOL_CHOICES:
            return name
        raise InvalidRequest("tool_choice.function.name is missing.", param="tool_choice.function.name")
    raise InvalidRequest(
        'tool_choice must be auto, none, required, or {"type": "function", "function": {"name": ...}}.',
        param="tool_choice",
    )


def reasoning(body: ChatFields) -> Reasoning:
    """Of `reasoning_effort`, `reasoning`, `thinking_token_budget`, `include_reasoning` and the template's switch."""
    effort, block, budget = body.reasoning_effort, body.reasoning, body.thinking_token_budget
    exclude = body.include_reasoning is False
    enabled: bool | None = None
    if isinstance(block, Mapping):
        effort = _first(block.get("effort"), effort)
        budget = _first(block.get("max_tokens"), budget)
        exclude = exclude or bool(_switch(block.get("exclude"), "reasoning.exclude"))
        enabled = _switch(block.get("enabled"), "reasoning.enabled")
    elif block is not None:
        raise InvalidRequest("reasoning must be an object with effort, max_tokens or exclude.", param="reasoning")
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequest(
            f"reasoning_effort is {str(effort)[:LONGEST_WORD]!r}; it must be one of {', '.join(EFFORTS)}.",
            param="reasoning_effort",
        )
    if budget is not None and (type(budget) is not int or not -1 <= budget < ID_END):
        raise InvalidRequest(
            "thinking_token_budget must be a whole number of tokens, or -1 for no limit.", param="thinking_token_budget"
        )
    switch = (body.chat_template_kwargs or {}).get("enable_thinking")
    if enabled is None and isinstance(switch, bool):
        enabled = switch
    return Reasoning(enabled, effort, None if budget == -1 else budget, exclude)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _switch(value: Any, name: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidRequest(f"{name} must be true or false.", param=name)
