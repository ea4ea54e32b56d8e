"""DeepSeek: V3 and R1 fence the arguments, V3.1 does not, from V3.2 on they are tags."""

from __future__ import annotations

from octavo.text.parsers.formats import ToolFormat, Written
from octavo.text.parsers.named_calls import NamedCalls
from octavo.text.parsers.tagged_calls import TaggedCalls
from octavo.text.parsers.values import JSON, TEXT

_BEGIN, _END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_EACH, _CLOSE, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def _tags(name: str, section: str, aliases: tuple[str, ...] = ()) -> ToolFormat:
    syntax = TaggedCalls(
        argument='<｜DSML｜parameter name="', key_ends=(('" string="true">', TEXT), ('" string="false">', JSON)),
        value_end="</｜DSML｜parameter>", close="</｜DSML｜invoke>", each='<｜DSML｜invoke name="', name_ends=('">',),
        end=f"</｜DSML｜{section}>",
    )  # fmt: skip
    begin = f"<｜DSML｜{section}>"
    return ToolFormat(name, (begin,), syntax, [["｜DSML｜", section]], interrupts=True, aliases=aliases)


FORMATS = (
    _tags("deepseek_v32", "function_calls"),
    _tags("deepseek_v4", "tool_calls"),
    ToolFormat(
        "deepseek_v3", (_BEGIN, _EACH),
        NamedCalls(
            rf"\s*(?:function)?{_SEP}(?P<name>[\w.\-]+)\s*(?:```json)?\s*", _EACH, ("```", _CLOSE), _END,
            marks=(_SEP,),
        ),
        [[_BEGIN, "```json"]], interrupts=True,
        written=Written(f"{_EACH}function{_SEP}%s\n```json\n", f"\n```{_CLOSE}", "\n", _BEGIN, _END),
        aliases=("deepseek_r1", "deepseek"),
    ),
    ToolFormat(
        "deepseek_v31", (_BEGIN, _EACH),
        NamedCalls(rf"\s*(?P<name>[\w.\-]+){_SEP}\s*", _EACH, (_CLOSE,), _END, marks=(_SEP,)),
        [[_BEGIN]], interrupts=True, written=Written(f"{_EACH}%s{_SEP}", _CLOSE, "", _BEGIN, _END),
    ),
)  # fmt: skip
