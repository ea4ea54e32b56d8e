"""A conversation -> the prompt, and how its answer is to be read.

It asks the model's template once, at start, how it writes calls and reasoning (parsers/detect), and puts what a request
wants of both where the template looks for it. It knows neither ids nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.errors import InvalidRequest
from octavo.request import TOOL_CHOICES, ChatRequest, Reasoning
from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.functions import checked, told_in_words
from octavo.text.messages import Message, plain_message, text_of
from octavo.text.parsers.constrained import behind_reasoning, must_call, strict_calls
from octavo.text.parsers.detect import Detected, think_format, tool_format
from octavo.text.parsers.formats import ThinkFormat, ToolFormat
from octavo.text.parsers.hermes import HERMES
from octavo.text.parsers.splitter import Parsing
from octavo.text.prompt import Prompt, PromptTemplate

AUTO = "auto"
RESULTS = ("tool", "function")  # roles
_SWITCHES = ("enable_thinking", "thinking")  # variables by which templates turn reasoning on and off


@dataclass(frozen=True)
class ReadyPrompt:
    """What the model reads, and how to read what it answers; None: it is all text. told: headers of the answer, which
    say where something of ours stood in for the model's own. constraint: what the answer is held to."""

    text: str
    parsing: Parsing | None
    told: Mapping[str, str] = field(default_factory=dict)
    constraint: StructuredOutputsParams | None = None


@dataclass(frozen=True)
class Ways:
    """What the operator chose. tools, think: `auto`, `none`, or the name of a parser. reasoning: None is the model's
    own way."""

    tools: str = AUTO
    think: str = AUTO
    reasoning: bool | None = None
    budget: int | None = None


class Conversations:
    """Those with one model."""

    def __init__(
        self, template: PromptTemplate, ways: Ways | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        """variables: for the template, where a request does not give them. Raises ConfigError for a name of no
        parser."""
        ways = ways or Ways()
        self._template = template
        self._given = dict(variables or {})
        self._usual = Reasoning(ways.reasoning, None, ways.budget)
        found = template.detected() or Detected(None, None, False, False)
        self.tools: ToolFormat | None = found.tools if ways.tools == AUTO else tool_format(ways.tools)
        self.think: ThinkFormat | None = found.think if ways.think == AUTO else think_format(ways.think)
        self.in_words = not found.offers  # the template has no place for functions
        if self.in_words and ways.tools == AUTO:
            self.tools = HERMES

    @property
    def kind(self) -> str | None:
        """Whose template it is: `model`, `default`, or None."""
        return self._template.kind

    @property
    def summary(self) -> str:
        """What stands in the start-up summary."""
        if self.tools is None:
            tools = "calls are not read"
        else:
            tools = "told in words, the template has no place for them" if self.in_words else self.tools.name
        return f"functions: {tools} · reasoning: {'none' if self.think is None else self.think.name}"

    def close(self) -> None:
        """Ends the worker of request-supplied templates."""
        self._template.close()

    def render(self, chat: ChatRequest) -> str:
        """The prompt alone."""
        return self.prepare(chat).text

    def prepare(self, chat: ChatRequest) -> ReadyPrompt:
        """Raises InvalidRequest that names the message or field at fault."""
        functions = checked(chat.tools, chat.tool_choice)
        wanted = _joined(chat.reasoning, self._usual)
        messages, in_words = chat.messages, self.in_words and chat.chat_template is None
        called = any(message.get("tool_calls") or message.get("role") in RESULTS for message in messages)
        if (in_words and (functions or called)) or (called and self.tools is not None and self.tools.call_id):
            plain = [plain_message(message, index) for index, message in enumerate(messages)]
            messages = told_in_words(plain, functions) if in_words else self._renamed(plain)
        prompt = self._template.render_messages(
            messages,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message or None,
            tools=None if in_words else functions,
            documents=chat.documents,
            chat_template=chat.chat_template,
            chat_template_kwargs={**self._given, **self._variables(wanted), **chat.chat_template_kwargs},
        )
        return self._ready(chat, prompt, functions, wanted)

    def _ready(
        self, chat: ChatRequest, prompt: Prompt, functions: Sequence[Mapping[str, Any]], wanted: Reasoning
    ) -> ReadyPrompt:
        tools, think = self.tools if functions else None, self.think
        told = {"x-octavo-template": "default"} if prompt.template == "default" else {}
        if functions and self.in_words and chat.chat_template is None:
            told["x-octavo-tools"] = "fallback"
        text, opened = prompt.text, think is not None and _is_open(think, prompt, chat.messages)
        if opened and wanted.enabled is False and think is not None and not prompt.continued:
            text, opened = f"{text.rstrip()}\n\n{think.end}\n\n", False
        offered = [each["function"] for each in functions]
        single = not chat.parallel_tool_calls or chat.tool_choice not in TOOL_CHOICES
        constraint, demanded = chat.params.structured_outputs, False
        if chat.tool_choice not in ("auto", "none"):
            if constraint is not None:
                raise InvalidRequest(
                    f"{constraint.name} and a tool_choice of calls exclude each other.", param="tool_choice"
                )
            forced = [each for each in offered if chat.tool_choice in ("required", each["name"])]
            thinks = think if wanted.enabled is not False else None
            constraint, tools = must_call(tools or HERMES, thinks, opened, forced, single)
            demanded = True
            think = None if think is not None and think.channels else think
        elif constraint is not None and opened and think is not None:
            constraint = behind_reasoning(constraint, think)
        elif constraint is None and tools is not None:
            constraint = strict_calls(tools, offered, single)
        if tools is None and think is None:
            return ReadyPrompt(text, None, told, constraint)
        schemas = {each["name"]: each["parameters"] for each in offered}
        parsing = Parsing(tools, think, opened, schemas, single, wanted.budget, wanted.exclude, demanded)
        return ReadyPrompt(text, parsing, told, constraint)

    def _variables(self, wanted: Reasoning) -> dict[str, Any]:
        """What the template looks for of it."""
        read = self._template.variables
        made: dict[str, Any] = {}
        if wanted.enabled is not None:
            made = {name: wanted.enabled for name in _SWITCHES if name in read}
        if wanted.effort is not None and "reasoning_effort" in read:
            made["reasoning_effort"] = wanted.effort
        if wanted.budget is not None and "thinking_budget" in read:
            made["thinking_budget"] = wanted.budget
        return made

    def _renamed(self, messages: Sequence[Message]) -> list[Message]:
        """Ids of calls of earlier turns as the model's family has them."""
        assert self.tools is not None and self.tools.call_id is not None
        made: list[Message] = []
        known: dict[str, str] = {}
        for message in messages:
            calls = []
            for call in message.get("tool_calls", ()):
                function = call.get("function")
                name = str(function.get("name")) if isinstance(function, Mapping) else ""
                id_ = str(call.get("id"))
                known[id_] = self.tools.call_id(id_, name, len(known))
                calls.append({**call, "id": known[id_]})
            answered = str(message.get("tool_call_id"))
            more: dict[str, Any] = {"tool_calls": calls} if calls else {}
            if answered in known:
                more["tool_call_id"] = known[answered]
            made.append({**message, **more})
        return made


def _joined(asked: Reasoning, usual: Reasoning) -> Reasoning:
    """What a request says of reasoning, over what the operator does. An effort of `none` and a budget of 0 turn it
    off."""
    enabled = usual.enabled if asked.enabled is None else asked.enabled
    budget = usual.budget if asked.budget is None else asked.budget
    if asked.enabled is None and (asked.effort == "none" or budget == 0):
        enabled = False
    elif asked.enabled is None and asked.effort is not None:
        enabled = True
    return replace(asked, enabled=enabled, effort=None if asked.effort == "none" else asked.effort, budget=budget)


def _is_open(think: ThinkFormat, prompt: Prompt, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answer goes on inside of reasoning that the prompt has begun."""
    if prompt.continued:
        said = text_of(messages[-1].get("content"))
        return said.rfind(think.begin.strip()) > said.rfind(think.end)
    return prompt.text.rstrip().endswith(think.begin.rstrip())
