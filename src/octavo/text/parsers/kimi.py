"""Kimi K2: a section of calls, each with an id that carries the function's name. Its template wants such ids
back."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.named_calls import NamedCalls

_BEGIN, _END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_EACH, _ARGUMENTS, _CLOSE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def _numbered(id_: str, name: str, place: int) -> str:
    return f"functions.{name}:{place}"


TOOLS = ToolFormat(
    "kimi_k2", (_BEGIN,),
    NamedCalls(
        r"\s*(?:functions\.)?(?P<name>[\w.\-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*", _EACH, (_CLOSE,),
        _END, marks=(_ARGUMENTS,),
    ),
    [[_BEGIN]], call_id=_numbered, interrupts=True,
    written=Written(f"{_EACH}functions.%s:0{_ARGUMENTS}", _CLOSE, "", _BEGIN, _END), aliases=("kimi",),
)  # fmt: skip
