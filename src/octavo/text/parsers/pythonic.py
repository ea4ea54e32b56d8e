"""Calls in Python's spelling: Llama 4 and OLMo without a marker, Liquid between its own."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat
from octavo.text.parsers.python_calls import PythonCalls

LIQUID = ToolFormat(
    "lfm2", ("<|tool_call_start|>",), PythonCalls(("<|tool_call_end|>",)),
    [["<|tool_call_start|>"], ["<|tool_list_start|>"], ["List of tools: ["]], interrupts=True, aliases=("liquid",),
)  # fmt: skip
TOOLS = ToolFormat(
    "pythonic", ("<|python_start|>", "<function_calls>"),
    PythonCalls(("<|python_end|>", "</function_calls>"), ("[",)),
    [["[func_name1(params_name1=params_value1"], ["<function_calls>", "<functions>"], ["[func1("]], ("[",),
    aliases=("llama4_pythonic", "llama4", "olmo3"),
)  # fmt: skip
