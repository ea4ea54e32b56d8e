"""A conversation -> the text that the model reads, through its chat template.

The model's own template is probed once in a killable process, then rendered here; a template that came with a request
is only ever rendered there. It knows roles and shapes of messages (OpenAI's); it knows no ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequest, UnsupportedModel
from octavo.request import ChatRequest
from octavo.text.template import LONGEST_TEMPLATE, Fault, Template, TemplateFailed, global_names
from octavo.text.template_worker import TemplateWorker
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

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
REASONING = ("reasoning_content", "thinking", "reasoning")  # one text under the names of several servers
RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    | {"chat_template", "chat_template_kwargs", "tokenize", "return_dict", "return_tensors", "self", "loop", "caller"}
    | {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
    | {"padding", "truncation", "max_length", "tokenizer_kwargs", "return_assistant_tokens_mask"}
)
_END = "<octavo-end-of-final-message> "  # its last space tells whether the template trims the message
_PROBE: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


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

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()

    def render(self, request: ChatRequest) -> str:
        """The prompt's text of a request; an assistant message at the end is continued."""
        return self.render_messages(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message or None,
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
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of a conversation; InvalidRequest names the message or field at fault.

        continue_final_message: True continues the last message; None does so when it is the assistant's and an answer
        is asked for; False never. chat_template: the request's own, rendered in the worker.
        """
        extra = self._checked_kwargs(chat_template_kwargs or {})
        plain = [_plain_message(message, index) for index, message in enumerate(messages)]
        if not plain:
            raise InvalidRequest("messages is empty; at least one message is needed.", param="messages")
        continued = continue_final_message is True or (
            continue_final_message is None and add_generation_prompt and _has_open_end(plain[-1])
        )
        if continued and not isinstance(plain[-1].get("content"), str):
            raise InvalidRequest(
                "continue_final_message needs a last message with content.", param="continue_final_message"
            )
        variables = {
            **self._special,
            **extra,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continued,
        }
        kind, render = self._renderer(chat_template, bool(tools))
        try:
            text = _render(render, plain, variables, continued)
        except TemplateFailed as failure:
            param = "messages" if chat_template is None else "chat_template"
            raise InvalidRequest(f"The chat template refuses this request: {failure.message}", param=param) from failure
        return Prompt(text, kind, continued)

    def _renderer(self, requested: str | None, with_tools: bool) -> tuple[str, Any]:
        """(kind, function of the variables) of the template that applies."""
        if requested is not None:
            if len(requested) > LONGEST_TEMPLATE:
                raise InvalidRequest(
                    f"chat_template has {len(requested)} characters; at most {LONGEST_TEMPLATE} are accepted.",
                    param="chat_template",
                )
            return "request", lambda variables: self._worker.render(requested, variables)
        compiled = self._compiled.get("tool_use") if with_tools else None
        compiled = compiled or self._compiled.get("default")
        if compiled is not None:
            return "model", compiled.render
        if self._default is not None:
            default = self._default
            return "default", lambda variables: default.render({**variables, "add_bos": self._add_bos})
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
            self._worker.render(source, {**variables, "add_generation_prompt": True})
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


def _render(render: Any, messages: list[dict[str, Any]], variables: dict[str, Any], continued: bool) -> str:
    """Renders; if the template refuses several or late system messages, once more with one in front."""
    if continued:
        last = {**messages[-1], "content": messages[-1]["content"] + _END}
        messages = [*messages[:-1], last]
    try:
        text: str = render({**variables, "messages": messages})
    except TemplateFailed as failure:
        merged = _one_system_message(messages)
        if merged == messages or failure.fault is Fault.BROKEN:
            raise
        text = render({**variables, "messages": merged})
    return _cut_at_end(text) if continued else text


def _cut_at_end(text: str) -> str:
    at = text.rfind(_END.strip())
    if at < 0:
        raise TemplateFailed("it leaves out the last message, which is to be continued")
    return text[:at] if text.startswith(_END, at) else text[:at].rstrip()


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = [message["content"] for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *rest] if system else messages


def _has_open_end(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and isinstance(message.get("content"), str) and "tool_calls" not in message


def _plain_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A message as templates expect it: known role, content one string, no nulls."""
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{where}.role is {str(role)[:60]!r}; known roles: {', '.join(ROLES)}.", param=f"{where}.role"
        )
    plain = {key: value for key, value in message.items() if value is not None}
    plain["role"] = ROLES[role]
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], f"{where}.content")
    elif role != "assistant":
        raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
    elif "tool_calls" not in plain:
        plain["content"] = ""
    if "tool_calls" in plain:
        plain["tool_calls"] = _plain_tool_calls(plain["tool_calls"], f"{where}.tool_calls")
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    if reasoning is not None:
        plain.setdefault("thinking", reasoning)
        plain["reasoning_content"] = reasoning
    return plain


def _plain_content(content: Any, where: str) -> str:
    """A string as it is; of a list of parts the texts, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} is neither a string nor a list of parts.", param=where)
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text", "output_text", "refusal") and isinstance(
            text := part.get("refusal" if kind == "refusal" else "text"), str
        ):
            texts.append(text)
        else:
            raise InvalidRequest(
                f"{where}[{index}] is of type {str(kind)[:40]!r}; this model reads text parts only.",
                param=f"{where}[{index}].type",
            )
    return "\n".join(texts)


def _plain_tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Arguments, a JSON string on the wire, as the object that templates print; a string that is none stays."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise InvalidRequest(f"{where} is not a list of objects.", param=where)
    plain = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            call = {**call, "function": {**function, "arguments": _parsed(function["arguments"])}}
        plain.append(dict(call))
    return plain


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # what a model once wrote badly must not end its conversation
    return value if isinstance(value, dict) else arguments
