"""Prompts against transformers' apply_chat_template; roles and shapes of messages; names of templates."""

import functools
from typing import Any

import pytest
import tokenizers

from octavo.errors import InvalidRequest
from octavo.request import ChatRequest
from octavo.sampling_params import SamplingParams
from octavo.text.prompt import DEFAULT_TEMPLATE, PromptTemplate
from octavo.text.template import Template
from octavo.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import QWEN, SMOLLM2, metadata, sentencepiece

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": "é<b>", "y": [1, None]}}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": 'Say "hi" & <go>', "parameters": {"type": "object"}},
}
USER = {"role": "user", "content": "Hello"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "How are you?"}],
    [{"role": "user", "content": "  spaces\n\n\ttabs  "}],
    [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n{{ 7 * 7 }} {% raw %} & < > ' \" \\ é🙂"}],
    [{"role": "user", "content": ""}],
    [USER, {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "late"}, USER],
    [USER] * 7,
    [{"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "line\n" * 50}, USER],
    [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "to be contin"}],
]
TOOL_CONVERSATION: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    {"role": "assistant", "content": "Done", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
]


@functools.cache
def special_tokens(name: str) -> dict[str, str]:
    return dict(Tokenizer.from_gguf(metadata(name)).facts.special_tokens)


@functools.cache
def oracle(name: str) -> Any:
    """transformers' rendering for a model's template and special tokens; its vocabulary plays no part."""
    from transformers import PreTrainedTokenizerFast

    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    template = metadata(name)["tokenizer.chat_template"]
    return PreTrainedTokenizerFast(tokenizer_object=empty, chat_template=template, **special_tokens(name))


@functools.cache
def of_model(name: str) -> PromptTemplate:
    return PromptTemplate({"default": metadata(name)["tokenizer.chat_template"]}, special_tokens(name))


def of_source(source: str) -> PromptTemplate:
    return PromptTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("name", [SMOLLM2, QWEN])
@pytest.mark.parametrize("generate", [True, False])
def test_conversations(name: str, generate: bool) -> None:
    for messages in CONVERSATIONS:
        expected = oracle(name).apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        ours = of_model(name).render_messages(messages, add_generation_prompt=generate, continue_final_message=False)
        assert ours.text == expected
        assert (ours.template, ours.continued) == ("model", False)


@pytest.mark.parametrize("name", [SMOLLM2, QWEN])
def test_last_assistant_message_is_continued(name: str) -> None:
    for content in ("to be contin", "trailing space ", "", "<|im_end|>"):
        messages = [USER, {"role": "assistant", "content": content}]
        expected = oracle(name).apply_chat_template(messages, tokenize=False, continue_final_message=True)
        for ours in (
            of_model(name).render_messages(messages),
            of_model(name).render_messages(messages, add_generation_prompt=False, continue_final_message=True),
        ):
            assert ours.text == expected and ours.continued and ours.text.endswith(content)


def test_continuation_where_the_template_trims() -> None:
    template = of_source("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    assert template.render_messages([USER, {"role": "assistant", "content": "a b "}]).text == "[Hello][a b"
    with pytest.raises(InvalidRequest, match="leaves out the last message"):
        of_source("{{ messages[0].content }}").render_messages([USER, {"role": "assistant", "content": "a"}])


def test_tools() -> None:
    expected = oracle(QWEN).apply_chat_template(
        TOOL_CONVERSATION, tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
    assert of_model(QWEN).render_messages(TOOL_CONVERSATION, tools=[TOOL]).text == expected
    on_the_wire = {**CALL, "function": {"name": "f", "arguments": '{"x": "é<b>", "y": [1, null]}'}}
    messages = [
        {**message, "tool_calls": [on_the_wire] * len(message["tool_calls"])} if "tool_calls" in message else message
        for message in TOOL_CONVERSATION
    ]
    assert of_model(QWEN).render_messages(messages, tools=[TOOL]).text == expected


ODD_TEMPLATES = [
    "  {% if true %}\n   a\n  {% endif %}\n{{ 'é<&>\"' | tojson }} {{ [1, {'b': none}] | tojson(indent=2) }}\n",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}\n{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n, dict(a=1) }}",
    "{{ bos_token }}{{ nothing }}{{ messages | map(attribute='role') | list }}{{ tools }}{{ add_generation_prompt }}",
    "{{ strftime_now('%Y') }}{{ messages[-1]['content'].split('l') }}{{ '%s' % 3 }}{{ 'a{}'.format(1) }}",
]


@pytest.mark.parametrize("source", ODD_TEMPLATES)
def test_settings_of_the_environment(source: str) -> None:
    messages = [USER, {"role": "assistant", "content": "Hi"}, USER]
    expected = oracle(SMOLLM2).apply_chat_template(messages, chat_template=source, tokenize=False)
    template = of_model(SMOLLM2)
    assert template.render_messages(messages, add_generation_prompt=False, chat_template=source).text == expected
    # The same in this process.
    variables = {**special_tokens(SMOLLM2), "messages": messages, "tools": None, "add_generation_prompt": False}
    assert Template(source).render(variables) == expected
    template.close()


def test_roles_and_shapes() -> None:
    template = of_source("{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": None},
        {"role": "assistant", "content": None},
        {"role": "function", "name": "f", "content": "r"},
    ]
    assert template.render_messages(messages).text == "system=d;user=a\nb\nc;assistant=;tool=r;"
    for names in ("reasoning_content", "reasoning", "thinking"):
        source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
        messages = [{"role": "assistant", "content": "x", names: "why "}]
        assert of_source(source).render_messages(messages, continue_final_message=False).text == "why why "


def test_several_system_messages_are_merged_where_the_template_refuses_them() -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}"
        "{% endif %}{{ m.role }}={{ m.content }};{% endfor %}"
    )
    messages = [{"role": "system", "content": "a"}, USER, {"role": "developer", "content": "b"}, USER]
    assert of_source(strict).render_messages(messages).text == "system=a\n\nb;user=Hello;user=Hello;"
    lenient = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    assert of_source(lenient).render_messages(messages).text == "system=a;user=Hello;system=b;user=Hello;"


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no systems') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{{ m.role }}={{ m.content }};{% endfor %}"
)


def test_system_messages_join_the_first_user_turn_where_the_template_knows_none() -> None:
    system = {"role": "system", "content": "Be brief."}
    template = of_source(NO_SYSTEM)
    assert template.render_messages([system, USER]).text == "user=Be brief.\n\nHello;"
    later = [USER, {"role": "assistant", "content": "Hi"}, {"role": "developer", "content": "Be kind."}, USER]
    text = template.render_messages([system, *later]).text
    assert text == "user=Be brief.\n\nBe kind.\n\nHello;assistant=Hi;user=Hello;"
    assert template.render_messages([system]).text == "user=Be brief.;"
    continued = template.render_messages([system, USER, {"role": "assistant", "content": "To be"}])
    assert continued.text == "user=Be brief.\n\nHello;assistant=To be" and continued.continued
    with pytest.raises(InvalidRequest, match="no systems") as error:  # what it said of the messages as they came
        template.render_messages([system, USER, USER])
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "king", "content": "x"}, "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[1].tool_calls"),
    ],
)
def test_bad_messages_are_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        of_model(SMOLLM2).render_messages([USER, message])
    assert error.value.param == param


def test_bad_requests_are_named() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        of_model(SMOLLM2).render_messages([])
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        of_model(SMOLLM2).render_messages([{"role": "assistant", "tool_calls": [CALL]}], continue_final_message=True)


@pytest.mark.parametrize(
    "name",
    ["chat_template", "messages", "tools", "tokenize", "add_generation_prompt", "bos_token", "raise_exception", "dict"]
    + ["namespace", "__class__", "_x", "a-b", "", "loop", "self", "documents", "range"],
)
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        of_source("x").render_messages([USER], chat_template_kwargs={name: True})
    assert error.value.param == f"chat_template_kwargs.{name}"


def test_kwargs_reach_the_template() -> None:
    template = of_source("{{ enable_thinking }}{{ level.a }}")
    assert (
        template.render_messages([USER], chat_template_kwargs={"enable_thinking": False, "level": {"a": 1}}).text
        == "False1"
    )


def test_default_template_of_base_models() -> None:
    base = PromptTemplate({}, {"bos_token": "<s>"})
    messages = [{"role": "system", "content": "Be kind."}, USER, {"role": "assistant", "content": "Hi"}, USER]
    prompt = base.render_messages(messages)
    assert prompt.text == "Be kind.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Hello\n\nAssistant:"
    assert prompt.template == base.kind == "default"
    with_bos = PromptTemplate({}, {"bos_token": "<s>"}, add_bos=True)
    assert with_bos.render_messages(messages).text == "<s>" + prompt.text
    assert base.render_messages(messages[:3]).text == "Be kind.\n\nUser: Hello\n\nAssistant: Hi"
    with pytest.raises(InvalidRequest, match="no chat template"):
        PromptTemplate({}, {}, allow_default=False).render_messages(messages)
    assert "{{" in DEFAULT_TEMPLATE


def test_requests() -> None:
    template = PromptTemplate.of_tokenizer(Tokenizer.from_gguf(metadata(SMOLLM2)))
    params = SamplingParams()
    messages = [USER, {"role": "assistant", "content": "Hi"}]
    assert template.kind == "model"
    assert template.render(ChatRequest(messages, params)).endswith("assistant\nHi")
    assert template.render(ChatRequest(messages, params, add_generation_prompt=False)).endswith("Hi<|im_end|>\n")
    ended = ChatRequest(messages, params, add_generation_prompt=False, continue_final_message=True)
    assert template.render(ended).endswith("assistant\nHi")
    asked = ChatRequest(
        messages[:1], params, chat_template="{{ a }}{{ add_generation_prompt }}", chat_template_kwargs={"a": 1}
    )
    assert template.render(asked) == "1True"
    template.close()
    own = PromptTemplate.of_tokenizer(Tokenizer.from_gguf(metadata(SMOLLM2)), chat_template="own")
    assert own.render(ChatRequest(messages[:1], params)) == "own"
    base = Tokenizer.from_gguf(sentencepiece())
    assert PromptTemplate.of_tokenizer(base).render(ChatRequest([USER], params)) == "<s>User: Hello\n\nAssistant:"
    assert PromptTemplate.of_tokenizer(base, allow_default=False).kind is None


def test_content_as_parts_where_the_template_reads_parts() -> None:
    typed = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    both = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"
    )
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}]
    for source, as_parts, as_string in ((typed, "<a><b>", "<x>"), (both, "<a><b>", "x"), (plain, "a\nb", "x")):
        template = of_source(source)
        assert template.render_messages(parts).text == as_parts
        assert template.render_messages([{"role": "user", "content": "x"}]).text == as_string
        last = [{"role": "assistant", "content": parts[0]["content"]}]
        assert template.render_messages(last).text.endswith("b") and template.render_messages(last).continued


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"x": [1, null], "é": "b"}'),
        ("{{ c.function.arguments }}", '{"x": [1, null], "é": "b"}'),
        ("{{ '' + c.function.arguments }}", '{"x": [1, null], "é": "b"}'),
    ],
)
@pytest.mark.parametrize("content", ["m.content is none", "m.content is not defined", "m.content == ''"])
def test_tool_calls_in_the_shape_that_the_template_prints(source: str, expected: str, content: str) -> None:
    shown = "{% if " + content + " %}{% for c in m.tool_calls %}" + source + "{% endfor %}{% endif %}"
    template = of_source("{% for m in messages %}{% if m.tool_calls %}" + shown + "{% endif %}{% endfor %}")
    for arguments in ('{"x": [1, null], "é": "b"}', {"x": [1, None], "é": "b"}):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1"},
        ]
        assert template.render_messages(messages, tools=[TOOL]).text == expected


def test_documents() -> None:
    template = of_source(
        "{% for d in documents or [] %}{{ d.title }}:{{ d.text }};{% endfor %}{{ messages[0].content }}"
    )
    request = ChatRequest([USER], SamplingParams(), documents=[{"title": "A", "text": "b"}])
    assert template.render(request) == "A:b;Hello" and template.render(ChatRequest([USER], SamplingParams())) == "Hello"
    told = of_model(QWEN).render(ChatRequest([USER], SamplingParams(), tools=[TOOL]))
    assert told == oracle(QWEN).apply_chat_template([USER], tools=[TOOL], tokenize=False, add_generation_prompt=True)


def test_named_templates() -> None:
    named = PromptTemplate({"default": "plain", "rag": "from {{ documents | length }}"}, {})
    prompt = named.render_messages([USER], chat_template="rag", documents=[{"text": "a"}])
    assert (prompt.text, prompt.template) == ("from 1", "model")
    only = PromptTemplate({"chat": "the only one"}, {})
    assert only.render_messages([USER]).text == "the only one" and only.kind == "model"
    template = PromptTemplate({"default": "plain", "tool_use": "with {{ tools | length }}"}, {})
    assert (
        template.render_messages([USER]).text == "plain"
        and template.render_messages([USER], tools=[TOOL]).text == "with 1"
    )
