"""Published chat templates against transformers' apply_chat_template, and what is done where it gives nothing.

The templates are those that llama.cpp carries (tests/tokenizer/carriers.py), of some fifty families.
"""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from octavo.errors import InvalidRequest
from octavo.text.prompt import PromptTemplate
from octavo.text.template import Template
from octavo.text.template_shapes import shapes_of
from tests.text.test_prompt import CALL, CONVERSATIONS, TOOL, TOOL_CONVERSATION, USER
from tests.tokenizer import carriers

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ONE_CALL: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": "Let me see.", "tool_calls": [{**CALL, "id": "abcdefghi"}]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "1"},
    {"role": "assistant", "content": "It is 1."},
    USER,
]
PARTS: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
DOCUMENTS = [{"title": "One", "text": "first"}, {"title": "Two", "text": "second"}]
# Templates that need variables of their own, or tools in every conversation, fail for a plain question anywhere.
NEEDY = ("firefunction", "tool_use")


def names() -> list[str]:
    return [name for name in carriers.files("llama.cpp") if name.endswith(".jinja")]


@functools.cache
def oracle() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **SPECIAL)


def expected(source: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    """transformers' rendering; None where the template refuses or fails."""
    import jinja2

    try:
        return str(oracle().apply_chat_template(messages, chat_template=source, tokenize=False, **options))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return None


def rendered(template: PromptTemplate, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return template.render_messages(messages, **options).text
    except InvalidRequest:
        return None


def with_json_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the API sends them, for the few templates that print arguments as they come."""
    made: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for message in made:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return made


@pytest.mark.parametrize("part", range(4))
def test_published_templates(part: int) -> None:
    compared = 0
    for name in names()[part::4]:
        source = Path(carriers.files("llama.cpp")[name]).read_text(encoding="utf-8")
        template, shapes = PromptTemplate({"default": source}, SPECIAL), shapes_of(Template(source), SPECIAL)
        cases: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [(each, {}) for each in CONVERSATIONS]
        cases += [([USER], {"chat_template_kwargs": {"enable_thinking": on}}) for on in (True, False)]
        cases += [([USER], {"documents": DOCUMENTS}), ([USER], {"tools": [TOOL]})]
        tools = [ONE_CALL, TOOL_CONVERSATION]
        cases += [(each if shapes.argument_objects else with_json_arguments(each), {"tools": [TOOL]}) for each in tools]
        cases += [(PARTS, {})] if shapes.parts else []
        for messages, options in cases:
            kwargs = {**options, **options.get("chat_template_kwargs", {})}
            kwargs.pop("chat_template_kwargs", None)
            want = expected(source, messages, add_generation_prompt=True, **kwargs)
            got = rendered(template, messages, continue_final_message=False, **options)
            assert got == want or want is None, f"{name}: {messages} {options}"
            compared += want is not None
        last = [USER, {"role": "assistant", "content": "to be contin"}]
        want = expected(source, last, continue_final_message=True)
        assert want is None or rendered(template, last) == want, name
        assert any(needy in name for needy in NEEDY) or rendered(template, [USER]) is not None, name
    assert compared > 200


def test_conversations_that_a_template_refuses_are_made_to_fit() -> None:
    """A system role where there is none, and calls without content, which Python's clients send as null."""
    files = carriers.files("llama.cpp")
    gemma = files["google-gemma-2-2b-it.jinja"].read_text(encoding="utf-8")
    system = [{"role": "system", "content": "Be brief."}, USER]
    assert expected(gemma, system) is None
    folded = rendered(PromptTemplate({"default": gemma}, SPECIAL), system)
    assert folded == expected(gemma, [{"role": "user", "content": "Be brief.\n\nHello"}], add_generation_prompt=True)
    without_content = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
    ]
    for name in ("Qwen-Qwen3-0.6B.jinja", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"):
        source = files[name].read_text(encoding="utf-8")
        assert expected(source, without_content, tools=[TOOL]) is None
        text = rendered(PromptTemplate({"default": source}, SPECIAL), without_content, tools=[TOOL])
        assert text is not None and '"y": [1, null]' in text


# Hand-written in the manner of known families: what each tests stands in its name.
MANNERS = {
    "plain ChatML": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "headers and a date": "{{ bos_token }}{% set day = strftime_now('%d') if strftime_now is defined else '1' %}"
    "{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}{{ '<|e|>' }}{% endfor %}",
    "brackets, system inside the first turn": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if m.role == 'user' %}[Q]{{ s + '\n' if loop.first and s else '' }}{{ m.content }}[/Q]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "thinking switched off by an empty block": "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<t>\n\n</t>{% endif %}",
    "macros, loop controls, namespaces": "{% macro turn(m) %}{{ m.role | upper }} {{ m.content }}{% endmacro %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{% set ns.last = loop.index0 %}{{ turn(m) }}\n{% endfor %}{{ ns.last }}",
    "tools as JSON, arguments item by item": "{% for t in tools or [] %}{{ t | tojson(indent=4) }}\n{% endfor %}"
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments.items() %}"
    "<p={{ k }}>{{ v if v is string else v | tojson }}</p>{% endfor %}{% endfor %}{{ m.content or '' }}{% endfor %}",
    "generation marked, dates, dictionaries": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ dict(a=m.content)['a'] }}{% endif %}{% endfor %}"
    "{{ dict.fromkeys(['x', 'y'], 1) }}{{ strftime_now('%Y') }}",
    "reasoning kept or dropped": "{% for m in messages %}{% if m.reasoning_content is defined %}<r>{{ m.thinking }}</r>"
    "{% endif %}{{ m.content }}{{ eos_token if not loop.last }}{% endfor %}",
}


@pytest.mark.parametrize("manner", MANNERS)
def test_templates_in_the_manner_of_families(manner: str) -> None:
    template = PromptTemplate({"default": MANNERS[manner]}, SPECIAL)
    thought = [USER, {"role": "assistant", "content": "Hi", "reasoning": "why"}, USER]
    for messages, tools in [*((each, None) for each in (*CONVERSATIONS, thought)), (ONE_CALL, [TOOL])]:
        for options in ({}, {"enable_thinking": False}):
            want = expected(MANNERS[manner], messages, tools=tools, add_generation_prompt=True, **options)
            got = rendered(template, messages, tools=tools, continue_final_message=False, chat_template_kwargs=options)
            assert want is not None and got == want
