"""A conversation -> the text that the model reads, through its chat template.

The model's own template is probed once in a killable process, then rendered here; a template that came with a request
is only ever rendered there. messages knows roles and shapes; it knows no ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequest, UnsupportedModel
from octavo.request import ChatRequest
from octavo.text.messages import (
    Message,
    Shapes,
    ended_with,
    folded_system_message,
    one_system_message,
    plain_message,
    shaped,
)
from octavo.text.parsers.detect import Detected, detect
from octavo.text.template import (
    LONGEST_TEMPLATE,
    Fault,
    Template,
    TemplateFailed,
    global_names,
    template_variables,
)
from octavo.text.template_shapes import shapes_of
from octavo.text.template_worker import PROBE_PATIENCE_S, TemplateWorker
from octavo.tokenizer.tokenizer import Tokenizer

# For models without a template (base models): plain, stated in the documentation, and named in a response header.
DEFAULT_TEMPLATE = (
    "{{- bos_token if add_bos }}"
    "{%- for message in messages %}"
    "{{- message.content if message.role == 'system' else message.role | capitalize + ': ' + message.content }}"
    "{%- if not (loop.last and message.role == 'assistant' and not add_generation_prompt) %}{{- '\\n\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)

RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    | {"chat_template", "chat_template_kwargs", "tokenize", "return_dict", "return_tensors", "self", "loop", "caller"}
    | {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
    | {"padding", "truncation", "max_length", "tokenizer_kwargs", "return_assistant_tokens_mask"}
)
_END = "<octavo-end-of-final-message> "  # its last space tells whether the template trims the message
_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]
Render = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    text: with BOS where the model wants it, so it is encoded without add_special_tokens. template: `model`, `default`
    (none in the model: respond with `x-octavo-template: default`) or `request`. continued: the last message is the
    start of the answer.
    """

    text: str
    template: str
    continued: bool


class PromptTemplate:
    """The templates of one model. Made at start: raises UnsupportedModel for a template that is broken or hostile.

    templates: name -> Jinja source as the tokenizer carries them. special_tokens: `bos_token` and so on -> text.
    With `allow_default` a model without a template gets DEFAULT_TEMPLATE, which writes BOS if `add_bos`.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        allow_default: bool = True,
        add_bos: bool = False,
    ) -> None:
        self._special = dict(special_tokens)
        self._add_bos = add_bos
        self._worker = TemplateWorker()
        self._globals = global_names()
        try:
            self._compiled = {name: self._probe(name, source) for name, source in templates.items()}
        finally:
            self._worker.close()  # until a request brings a template, if one ever does
        self._sources = dict(templates)
        if self._compiled and "default" not in self._compiled:
            self._compiled["default"] = next(iter(self._compiled.values()))
            self._sources["default"] = next(iter(templates.values()))
        self._shapes = {name: shapes_of(template, self._special) for name, template in self._compiled.items()}
        self._default = Template(DEFAULT_TEMPLATE) if allow_default else None

    @classmethod
    def of_tokenizer(
        cls, tokenizer: Tokenizer, chat_template: str | None = None, allow_default: bool = True
    ) -> PromptTemplate:
        """The templates that a tokenizer carries, or the operator's one in their place."""
        templates = tokenizer.facts.chat_templates if chat_template is None else {"default": chat_template}
        return cls(templates, tokenizer.facts.special_tokens, allow_default, tokenizer.adds_bos)

    @property
    def kind(self) -> str | None:
        """What requests without a template of their own get: `model`, `default`, or None (an error)."""
        return "model" if "default" in self._compiled else "default" if self._default is not None else None

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Names that the usual template looks for."""
        source = self._sources.get("default")
        return frozenset() if source is None else template_variables(source)

    def detected(self) -> Detected | None:
        """How the usual template writes calls and reasoning; None without one. Of two templates, the one for tools is
        asked."""
        name = "tool_use" if "tool_use" in self._compiled else "default"
        if name not in self._compiled:
            return None
        return detect(self._sources[name], self._compiled[name], self._shapes[name], self._special)

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def render(self, request: ChatRequest) -> str:
        """The prompt's text of a request; an assistant message at the end is continued."""
        return self.render_messages(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message or None,
            tools=request.tools,
            documents=request.documents,
            chat_template=request.chat_template,
            chat_template_kwargs=request.chat_template_kwargs,
        ).text

    def render_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of a conversation; InvalidRequest names the message or field at fault.

        continue_final_message: True continues the last message; None does so when it is the assistant's and an answer
        is asked for; False never. tools: functions in OpenAI's shape. documents: objects with `title` and `text`.
        chat_template: the name of one of the model's templates, or the request's own, rendered in the worker.
        """
        extra = self._checked_kwargs(chat_template_kwargs or {})
        plain = [plain_message(message, index) for index, message in enumerate(messages)]
        if not plain:
            raise InvalidRequest("messages is empty; at least one message is needed.", param="messages")
        continued = continue_final_message is True or (
            continue_final_message is None and add_generation_prompt and _has_open_end(plain[-1])
        )
        if continued and ended_with(plain[-1], _END) is None:
            raise InvalidRequest(
                "continue_final_message needs a last message with content.", param="continue_final_message"
            )
        variables = {
            **self._special,
            **extra,
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt and not continued,
        }
        kind, render, shapes = self._renderer(chat_template, bool(tools))
        try:
            text = _render(render, [shaped(message, shapes) for message in plain], variables, continued, shapes)
        except TemplateFailed as failure:
            param = "messages" if kind != "request" else "chat_template"
            raise InvalidRequest(f"The chat template refuses this request: {failure.message}", param=param) from failure
        return Prompt(text, kind, continued)

    def _renderer(self, requested: str | None, with_tools: bool) -> tuple[str, Render, Shapes]:
        """(kind, function of the variables, shapes of messages) of the template that applies."""
        if requested is not None and requested not in self._compiled:
            if len(requested) > LONGEST_TEMPLATE:
                raise InvalidRequest(
                    f"chat_template has {len(requested)} characters; at most {LONGEST_TEMPLATE} are accepted.",
                    param="chat_template",
                )
            return "request", lambda variables: self._worker.render(requested, variables), Shapes()
        name = requested or ("tool_use" if with_tools and "tool_use" in self._compiled else "default")
        if name in self._compiled:
            return "model", self._compiled[name].render, self._shapes[name]
        if self._default is not None:
            default = self._default
            return "default", lambda variables: default.render({**variables, "add_bos": self._add_bos}), Shapes()
        raise InvalidRequest(
            "This model has no chat template. Use /v1/completions, send chat_template, or start the server without "
            "--no-default-chat-template.",
            param="messages",
        )

    def _probe(self, name: str, source: str) -> Template:
        """Compiled here only after it compiled and ended in the worker. One that refuses or stumbles over the probe (it
        wants tools, say) is no danger."""
        variables = {**self._special, "messages": _PROBE, "tools": None, "documents": None}
        try:
            self._worker.render(source, {**variables, "add_generation_prompt": True}, patience=PROBE_PATIENCE_S)
        except TemplateFailed as failure:
            if failure.fault is Fault.BROKEN:
                raise UnsupportedModel(
                    f"The model's chat template {name!r} is refused: {failure.message}. Serve the model with a "
                    "corrected template file, or without its template.",
                    param="chat_template",
                ) from failure
        return Template(source)

    def _checked_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        for name in kwargs:
            if name in RESERVED or name in self._globals or name in self._special:
                problem = "is reserved"
            elif not name.isidentifier() or name.startswith("_"):
                problem = "is no name of a template variable"
            else:
                continue
            raise InvalidRequest(
                f"chat_template_kwargs: {name[:60]!r} {problem}.", param=f"chat_template_kwargs.{name[:60]}"
            )
        return dict(kwargs)


def _render(render: Render, messages: list[Message], variables: dict[str, Any], continued: bool, shapes: Shapes) -> str:
    """Renders; a template that refuses system messages, or several, or late ones, gets one in front, or none."""
    if continued:
        messages = [*messages[:-1], ended_with(messages[-1], _END) or messages[-1]]
    try:
        text = render({**variables, "messages": messages})
    except TemplateFailed as failure:
        if failure.fault is Fault.BROKEN or not any(message["role"] == "system" for message in messages):
            raise
        text = _render_otherwise(render, messages, variables, shapes, failure)
    return _cut_at_end(text) if continued else text


def _render_otherwise(
    render: Render, messages: list[Message], variables: dict[str, Any], shapes: Shapes, failure: TemplateFailed
) -> str:
    for changed in (one_system_message(messages), folded_system_message(messages)):
        try:
            return render({**variables, "messages": [shaped(message, shapes) for message in changed]})
        except TemplateFailed:
            continue
    raise failure


def _cut_at_end(text: str) -> str:
    at = text.rfind(_END.strip())
    if at < 0:
        raise TemplateFailed("it leaves out the last message, which is to be continued")
    return text[:at] if text.startswith(_END, at) else text[:at].rstrip()


def _has_open_end(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and ended_with(dict(message), "") is not None and "tool_calls" not in message
