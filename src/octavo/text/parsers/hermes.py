"""JSON between tags: Hermes, Qwen and whoever was trained on their form, and families with other tags.

Small models of this form often leave the tags out, or put a fence of Markdown in their place. At the beginning of an
answer that counts as a call when it names a function of the request.
"""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.json_calls import JsonCalls

BARE = ("```json", "{", "<tools>")

HERMES = ToolFormat(
    "hermes", ("<tool_call>",), JsonCalls(("</tool_call>", "</tools>"), BARE), [["<tool_call>", "arguments"]], BARE,
    written=Written('<tool_call>\n{"name": "%s", "arguments": ', "}\n</tool_call>", "\n"),
    aliases=("qwen", "qwen25", "qwen2_5", "granite4", "mimo", "xml"),
)  # fmt: skip


def _tagged(name: str, begin: str, end: str, aliases: tuple[str, ...] = (), keyed: bool = False) -> ToolFormat:
    return ToolFormat(name, (begin,), JsonCalls((end,), keyed=keyed), [[begin]], interrupts=True, aliases=aliases)


FORMATS = (
    _tagged("apertus", "<|tools_prefix|>", "<|tools_suffix|>", keyed=True),
    _tagged("tool_calls", "<tool_calls>", "</tool_calls>", ("minimax", "apriel")),
    _tagged("nemotron", "<TOOLCALL>", "</TOOLCALL>", ("nemotron_json",)),
    _tagged("cohere", "<|START_ACTION|>", "<|END_ACTION|>", ("command_r7b", "cohere_command3", "cohere2")),
    ToolFormat("gigachat", ("<|function_call|>",), JsonCalls(), [["<|function_call|>"]], aliases=("gigachat3",)),
    ToolFormat(
        "gigachat_role", ("function call<|role_sep|>",), JsonCalls(), [["function call<|role_sep|>"]]
    ),
    ToolFormat("firefunction", ("functools[",), JsonCalls(), [["functools["]]),
)  # fmt: skip
