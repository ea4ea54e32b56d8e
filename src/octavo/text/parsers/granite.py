"""Granite 3 (Granite 4 writes as Hermes does) and Phi-4-mini: a marker and a JSON list."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.json_calls import JsonCalls

FORMATS = (
    ToolFormat("phi4_mini", ("<|tool_call|>",), JsonCalls(("<|/tool_call|>",)), [["<|tool_call|>", "<|/tool_call|>"]],
               aliases=("phi4_mini_json",)),
    ToolFormat("granite", ("<|tool_call|>", "<tool_call>"), JsonCalls(("</tool_call>",)), [["<|tool_call|>"]],
               written=Written('<|tool_call|>{"name": "%s", "arguments": ', "}"),
               aliases=("granite3", "granite-20b-fc")),
)  # fmt: skip
