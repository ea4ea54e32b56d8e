"""FunctionGemma and Gemma 4: call:name{key:value}, strings between marks of their own."""

from __future__ import annotations

from octavo.text.parsers.braced_calls import BracedCalls
from octavo.text.parsers.formats import ToolFormat

FORMATS = (
    ToolFormat(
        "functiongemma", ("<start_function_call>",), BracedCalls("<escape>", "<end_function_call>"),
        [["<start_function_call>"]], interrupts=True,
    ),
    ToolFormat(
        "gemma4", ("<|tool_call>",), BracedCalls('<|"|>', "<tool_call|>"), [["<|tool_call>call:"], ["<|tool_call>"]],
        interrupts=True,
    ),
)  # fmt: skip
