"""Function and parameter tags: Qwen3-Coder and who writes like it, MiniMax, Seed, MiniCPM, and functionary's JSON."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.named_calls import NamedCalls
from octavo.text.parsers.tagged_calls import TaggedCalls


def _functions(end: str) -> TaggedCalls:
    return TaggedCalls(
        argument="<parameter=", key_ends=((">", None),), value_end="</parameter>", close="</function>",
        each="<function=", trimmed=True, end=end,
    )  # fmt: skip


FORMATS = (
    ToolFormat(
        "seed_oss", ("<seed:tool_call>",), _functions("</seed:tool_call>"), [["<seed:tool_call>"]], interrupts=True
    ),
    ToolFormat(
        "minimax_m2", ("<minimax:tool_call>",),
        TaggedCalls(
            argument='<parameter name="', key_ends=(('">', None),), value_end="</parameter>", close="</invoke>",
            each='<invoke name="', name_ends=('">',), end="</minimax:tool_call>",
        ),
        [["<minimax:tool_call>"]], interrupts=True,
    ),
    ToolFormat(
        "minicpm5", ('<function name="',),
        TaggedCalls(
            argument='<param name="', key_ends=(('">', None),), value_end="</param>", close="</function>",
            each='<function name="', name_ends=('">',), quotes=("<![CDATA[", "]]>"),
        ),
        [['<function name="', '<param name="']],
    ),
    ToolFormat(
        "qwen3_coder", ("<tool_call>", "<function="), _functions("</tool_call>"),
        [["<tool_call>", "<function=", "<parameter="]],
        aliases=("qwen3_xml", "qwen35", "nemotron_v3", "step3p5", "qwen3coder"),
    ),
    ToolFormat(
        "functionary_v31", ("<function=",), NamedCalls(r"(?P<name>[\w.\-]+)>\s*", closers=("</function>",)),
        [["<function=", "</function>"]], written=Written("<function=%s>", "</function>"),
    ),
)  # fmt: skip
