"""Harmony (gpt-oss): messages whose head says in which channel they are and to whom they go.

<|channel|>analysis<|message|>... is reasoning, `to=functions.NAME` in a head makes the message a call's arguments, all
else is text. The prompt ends inside of the first head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.text.parsers.formats import LONGEST_NAME, Calls, ThinkFormat, ToolFormat
from octavo.text.parsers.source import Reading, Source, markers_of

if TYPE_CHECKING:
    from octavo.text.parsers.splitter import Splitter

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", _START, _CHANNEL)
_HEADS = (_CHANNEL, _START, _MESSAGE, " to=", "<|constrain|>")
_TO = re.compile(r"\bto=functions\.([\w.\-]+)")
_IN = re.compile(r"<\|channel\|>\s*(\w+)")
_FINGERPRINT = ((_CHANNEL, _MESSAGE, "<|call|>"),)


class _InChannels:
    """The splitter reads the channels; a call has no section of its own."""

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return (*_ENDS, _MESSAGE, "<|constrain|>")

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """Never asked."""
        raise AssertionError("Harmony has no sections")


TOOLS = ToolFormat("harmony", (), _InChannels(), _FINGERPRINT, aliases=("openai", "gpt-oss", "gpt_oss"))


THINK = ThinkFormat(
    "harmony", "<|channel|>analysis<|message|>", "<|end|>", _FINGERPRINT,
    (*_ENDS, _MESSAGE, "<|constrain|>"), channels=True, aliases=("openai_gptoss", "gpt-oss", "gpt_oss"),
    forced="<|end|><|start|>assistant<|channel|>final<|message|>",
)  # fmt: skip


def channels(source: Source, out: Splitter) -> Reading[None]:
    """The whole answer."""
    while not out.done:
        if not (yield from _is_head(source)):
            yield from source.rest(out.write)
            return
        found = yield from source.short(markers_of(_MESSAGE), 4 * LONGEST_NAME)
        if found is None:
            yield from source.rest(out.write)
            return
        if not (yield from _message(source, out, found[0])):
            return


def _is_head(source: Source) -> Reading[bool]:
    for begin in _HEADS:
        if (yield from source.starts(begin)):
            return True
    return False


def _message(source: Source, out: Splitter, head: str) -> Reading[bool]:
    """One message. False: the answer ends."""
    to, in_ = _TO.findall(head), _IN.findall(head)
    ends = markers_of(*_ENDS)
    if to:
        out.begin(to[-1])
        found = yield from source.until(ends, out.arguments)
        if found:
            out.end()
    elif in_ and in_[-1] == "analysis" or "to=" in head:
        found = yield from out.reason(ends)
    else:
        found = yield from source.until(ends, out.write)
    if found in (_START, _CHANNEL):
        source.back(len(found))
    return bool(found)
