"""GLM and who writes calls like it: the name, then a tag for every key and every value."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat
from octavo.text.parsers.tagged_calls import TaggedCalls


def _keys_and_values(suffix: str, each: str = "", name_ends: tuple[str, ...] = (), end: str = "") -> TaggedCalls:
    key, close = f"<arg_key{suffix}>", f"</tool_call{suffix}>"
    return TaggedCalls(
        argument=key, key_ends=((f"</arg_key{suffix}>", None),), value=f"<arg_value{suffix}>",
        value_end=f"</arg_value{suffix}>", close=close, each=each, name_ends=(*name_ends, "\n", key, close),
        end=end,
    )  # fmt: skip


FORMATS = (
    ToolFormat(
        "hunyuan", ("<tool_calls:opensource>", "<tool_call:opensource>"),
        _keys_and_values(
            ":opensource", "<tool_call:opensource>", ("<tool_sep:opensource>",), "</tool_calls:opensource>"
        ),
        [["<tool_call:opensource>"], ["'<tool_call' ~"]],
    ),
    ToolFormat(
        "glm", ("<tool_call>",), _keys_and_values(""), [["<tool_call>", "<arg_key>"]],
        aliases=("glm45", "glm47", "glm46", "laguna", "ling"),
    ),
)  # fmt: skip
