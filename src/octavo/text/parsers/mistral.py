"""Mistral: [TOOL_CALLS] and a JSON list (old), or a name, [ARGS] and an object for each call (new). Its templates
refuse ids that are not nine letters and digits."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence

from octavo.text.parsers.formats import Calls, ToolFormat, Written
from octavo.text.parsers.json_calls import JsonCalls
from octavo.text.parsers.named_calls import NamedCalls
from octavo.text.parsers.source import Reading, Source

_DIGITS = string.ascii_lowercase + string.digits
_BEGIN = "[TOOL_CALLS]"
_OLD = JsonCalls()
_NEW = NamedCalls(r"\s*(?P<name>[\w.\-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*")


class _Either:
    """What follows the marker tells which of the two it is."""

    def literals(self) -> Sequence[str]:
        """See Syntax."""
        return ("[CALL_ID]", "[ARGS]")

    def read(self, source: Source, calls: Calls, opened: str) -> Reading[bool]:
        """See Syntax."""
        yield from source.skip_space()
        syntax = _OLD if (yield from source.peek()) in ("[", "{") else _NEW
        return (yield from syntax.read(source, calls, opened))


def _nine(id_: str, name: str, place: int) -> str:
    if len(id_) == 9 and id_.isalnum():
        return id_
    number = int.from_bytes(hashlib.sha256(id_.encode(errors="replace")).digest()[:8], "little")
    return "".join(_DIGITS[number // 36**place % 36] for place in range(9))


TOOLS = ToolFormat(
    "mistral", (_BEGIN,), _Either(), [[_BEGIN]], call_id=_nine, interrupts=True,
    written=Written(f"{_BEGIN}%s[ARGS]", ""), aliases=("mistral_old", "mistral_new"),
)  # fmt: skip
