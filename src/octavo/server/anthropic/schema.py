"""Bodies of Anthropic's routes -> ChatRequest: system and content blocks, tools, thinking.

Unknown fields, and blocks and tools that only Anthropic's own machines could serve, are passed over; content that the
model would have to see and cannot is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from octavo import logs
from octavo.async_llm import AsyncLLM
from octavo.errors import InvalidRequest
from octavo.request import ChatRequest, Reasoning
from octavo.sampling_params import SamplingParams
from octavo.server.limits import check_depth

BILLING = "x-anthropic-billing-header:"  # a system block that changes with every request: the cache would never hit
_THINKING = ("enabled", "disabled", "adaptive", "between_tools")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
Message = dict[str, Any]
log = logs.get("server")


class ToolChoice(msgspec.Struct):
    type: str = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class Said(msgspec.Struct):
    """A message."""

    role: str
    content: str | list[dict[str, Any]]


class CountBody(msgspec.Struct, kw_only=True):
    """What both routes read."""

    messages: list[Said]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody, kw_only=True):
    max_tokens: int | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None


MESSAGES = msgspec.json.Decoder(MessagesBody)
COUNT = msgspec.json.Decoder(CountBody)


def chat_request(llm: AsyncLLM, body: CountBody) -> ChatRequest:
    """The conversation and what is asked of the answer. InvalidRequest names the field."""
    if not body.messages:
        raise InvalidRequest("messages: at least one message is required.", param="messages")
    for name, value in (("messages", [said.content for said in body.messages]), ("tools", body.tools)):
        check_depth(value, name)  # before anything is written as JSON, which goes as deep as it is nested
    messages = _system(body.system)
    for index, said in enumerate(body.messages):
        messages += _messages(said, f"messages[{index}]")
    choice = body.tool_choice or ToolChoice()
    return ChatRequest(
        messages,
        _params(llm, body),
        tools=_tools(body.tools or ()),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=not choice.disable_parallel_tool_use,
        reasoning=_reasoning(body),
    )


def _params(llm: AsyncLLM, body: CountBody) -> SamplingParams:
    if not isinstance(body, MessagesBody):
        return llm.default_sampling_params()
    params = llm.default_sampling_params(
        max_tokens=body.max_tokens, stop=body.stop_sequences, temperature=body.temperature, top_p=body.top_p,
        top_k=body.top_k, structured_outputs=_format(body.output_config),
    )  # fmt: skip
    return params if body.max_tokens is not None else replace(params, max_tokens=None)


def _format(config: OutputConfig | None) -> dict[str, Any] | None:
    """What the answer must look like, in our words."""
    if config is None or config.format is None:
        return None
    schema = config.format.get("schema")
    if config.format.get("type") != "json_schema" or not isinstance(schema, Mapping):
        raise InvalidRequest(
            "output_config.format must be of the type json_schema, with a schema.", param="output_config.format"
        )
    return {"json": schema}


def _reasoning(body: CountBody) -> Reasoning:
    effort = body.output_config.effort if body.output_config else None
    thinking = body.thinking
    if thinking is None:
        return Reasoning(effort=effort)
    if thinking.type not in _THINKING:
        raise InvalidRequest(
            f"thinking.type is {thinking.type[:40]!r}; it must be one of {', '.join(_THINKING)}.", param="thinking.type"
        )
    if thinking.budget_tokens is not None and thinking.budget_tokens < 0:
        raise InvalidRequest("thinking.budget_tokens must not be negative.", param="thinking.budget_tokens")
    return Reasoning(thinking.type != "disabled", effort, thinking.budget_tokens)


def _tool_choice(choice: ToolChoice) -> str:
    if choice.type == "tool":
        if not choice.name:
            raise InvalidRequest("tool_choice.name is missing.", param="tool_choice.name")
        return choice.name
    if choice.type not in _CHOICES:
        raise InvalidRequest(
            f"tool_choice.type is {choice.type[:40]!r}; it must be auto, any, tool or none.", param="tool_choice.type"
        )
    return _CHOICES[choice.type]


def _tools(given: list[dict[str, Any]] | tuple[()]) -> list[dict[str, Any]]:
    """In OpenAI's shape. Tools that Anthropic's machines run (a type and no schema) are left out."""
    made = []
    for index, tool in enumerate(given):
        schema = tool.get("input_schema")
        if schema is None and tool.get("type") not in (None, "custom"):
            log.warning("a tool of the type %s is left out: it runs elsewhere", str(tool.get("type"))[:60])
            continue
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"tools[{index}].name is missing.", param=f"tools[{index}].name")
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"tools[{index}].input_schema is no object.", param=f"tools[{index}].input_schema")
        function = {"name": name, "description": tool.get("description") or "", "parameters": schema}
        if tool.get("strict"):
            function["strict"] = True
        made.append({"type": "function", "function": function})
    return made


def _system(system: str | list[dict[str, Any]] | None) -> list[Message]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    texts = [_text(block, f"system[{index}]") for index, block in enumerate(system)]
    kept = [text for text in texts if not text.startswith(BILLING)]
    return [{"role": "system", "content": _parts(kept)}] if kept else []


def _messages(said: Said, where: str) -> list[Message]:
    """One message of theirs may be several of ours: each tool result is one."""
    if said.role not in ("user", "assistant", "system"):
        raise InvalidRequest(
            f"{where}.role is {said.role[:40]!r}; it must be user or assistant.", param=f"{where}.role"
        )
    if isinstance(said.content, str):
        return [{"role": said.role, "content": said.content}]
    blocks = [(block, f"{where}.content[{index}]") for index, block in enumerate(said.content)]
    return _assistant(blocks) if said.role == "assistant" else _user(blocks, said.role)


def _user(blocks: list[tuple[dict[str, Any], str]], role: str) -> list[Message]:
    made: list[Message] = []
    texts: list[str] = []
    for block, where in blocks:
        if block.get("type") == "tool_result":
            made.append(
                {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": _result(block, where)}
            )
        else:
            texts.append(_text(block, where))
    if texts or not made:
        made.append({"role": role, "content": _parts(texts)})
    return made


def _assistant(blocks: list[tuple[dict[str, Any], str]]) -> list[Message]:
    texts, calls, thoughts = [], [], []
    for block, where in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            function = {"name": str(block.get("name") or ""), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": str(block.get("id") or ""), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            texts.append(_text(block, where))
    message: Message = {"role": "assistant", "content": _parts(texts) if texts or not calls else None}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [message]


def _parts(texts: list[str]) -> str | list[dict[str, str]]:
    """One text as it is; several as the parts they are."""
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def _result(block: dict[str, Any], where: str) -> str:
    """What a tool gave back, a line for each of its blocks."""
    content = block.get("content") or ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content is neither a text nor blocks.", param=f"{where}.content")
    return "\n".join(_text(each, f"{where}.content[{index}]") for index, each in enumerate(content))


def _text(block: Any, where: str) -> str:
    """The text of a block; of a document or search result its text, too."""
    kind = block.get("type", "text") if isinstance(block, Mapping) else type(block).__name__
    text = block.get("text") if kind == "text" else None
    if kind == "document":
        source = block.get("source")
        text = source.get("data") if isinstance(source, Mapping) and source.get("type") == "text" else None
    if kind == "search_result" and isinstance(block.get("content"), list):
        return "\n".join(_text(each, f"{where}.content[{i}]") for i, each in enumerate(block["content"]))
    if not isinstance(text, str):
        raise InvalidRequest(
            f"{where} is of the type {str(kind)[:40]!r} without a text; this model reads text only.", param=where
        )
    return text
