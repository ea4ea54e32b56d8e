"""Llama 3: a bare JSON object that names a function and its parameters, at the beginning of the answer."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.json_calls import JsonCalls

BARE = ("{", "[")
TOOLS = ToolFormat(
    "llama3_json", ("<|python_tag|>",), JsonCalls((), BARE), [['{"name": ', '"parameters": ', "<|eot_id|>"]], BARE,
    interrupts=True, written=Written('{"name": "%s", "parameters": ', "}", "; "),
    aliases=("llama3", "llama4_json", "llama"),
)  # fmt: skip
