"""Solar Open: id, name and arguments of every call behind markers of their own."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat
from octavo.text.parsers.named_calls import NamedCalls

_NAME, _ARGUMENTS = "<|tool_call:name|>", "<|tool_call:args|>"

TOOLS = ToolFormat(
    "solar", ("<|tool_calls|>",),
    NamedCalls(
        r"\s*[\w.\-]*<\|tool_call:name\|>(?P<name>[\w.\-]+)<\|tool_call:args\|>\s*", "<|tool_call:begin|>",
        ("<|tool_call:end|>",), "<|calls|>", marks=(_NAME, _ARGUMENTS),
    ),
    [["<|tool_call:name|>"]], interrupts=True,
)  # fmt: skip
