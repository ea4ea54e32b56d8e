"""Bodies of /v1/responses -> ChatRequest: input items, instructions, tools, text format.

Items and tools of kinds that only OpenAI's machines serve are passed over with a line in the log: clients send them
whatever the server is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from octavo import logs
from octavo.async_llm import AsyncLLM
from octavo.errors import InvalidRequest
from octavo.request import ChatRequest, Reasoning
from octavo.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from octavo.server.openai.schema import SAMPLING

Message = dict[str, Any]
Item = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"  # of `include`
_FREE = tuple(name for name in SAMPLING if name not in ("n", "best_of", "max_tokens", "structured_outputs"))
log = logs.get("server")


class ResponseReasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class ResponseText(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseFields(msgspec.Struct, kw_only=True):
    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None


ResponseBody = msgspec.defstruct(
    "ResponseBody", [(name, Any, None) for name in _FREE], bases=(ResponseFields,), kw_only=True
)
BODY = msgspec.json.Decoder(ResponseBody)


def chat_request(llm: AsyncLLM, body: ResponseFields, messages: Sequence[Message]) -> ChatRequest:
    """What is asked of an answer to these messages, which are those of earlier responses and of this one."""
    told = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if not messages and not told:
        raise InvalidRequest("input is missing or empty.", param="input")
    choice, names = _tool_choice(body.tool_choice)
    effort = body.reasoning.effort if body.reasoning else None
    return ChatRequest(
        [*told, *messages],
        sampling(llm, body),
        chat_template_kwargs=body.chat_template_kwargs or {},
        tools=_tools(body.tools or (), names),
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=Reasoning(False if effort == "none" else None, None if effort == "none" else effort),
    )


def sampling(llm: AsyncLLM, body: ResponseFields) -> SamplingParams:
    """The request's parameters over the server's defaults; an answer may go on to the end of the context."""
    given = {name: value for name in _FREE if (value := getattr(body, name)) is not None}
    most = body.top_logprobs
    if most is not None and not 0 <= most <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, got {most}.", param="top_logprobs")
    if LOGPROBS in (body.include or ()) or most:
        given["logprobs"] = most or 0
    if body.text is not None and body.text.format is not None:
        given["structured_outputs"] = _format(body.text.format)
    params = llm.default_sampling_params(**given, max_tokens=body.max_output_tokens)
    stated = body.max_output_tokens is not None or "max_tokens" in llm.defaults
    return params if stated else replace(params, max_tokens=None)


def _format(given: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = given.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema" and isinstance(given.get("schema"), Mapping):
        return {"json": given["schema"]}
    raise InvalidRequest(
        "text.format must be of the type text, json_object, or json_schema with a schema.", param="text.format"
    )


def _tool_choice(given: str | Mapping[str, Any] | None) -> tuple[str, set[str] | None]:
    """What must be called, and the names that may be, where only some of the tools may."""
    if given is None:
        return "auto", None
    if isinstance(given, str):
        if given not in ("auto", "none", "required"):
            raise InvalidRequest("tool_choice must be auto, none, required or an object.", param="tool_choice")
        return given, None
    if given.get("type") == "function" and isinstance(given.get("name"), str):
        return str(given["name"]), None
    if given.get("type") == "allowed_tools" and isinstance(given.get("tools"), list):
        names = {str(each.get("name")) for each in given["tools"] if isinstance(each, Mapping)}
        return "required" if given.get("mode") == "required" else "auto", names
    raise InvalidRequest("tool_choice must name a function of tools.", param="tool_choice")


def _tools(given: Sequence[Mapping[str, Any]], names: set[str] | None) -> list[dict[str, Any]]:
    """Functions in the shape of chat completions."""
    made, others = [], set()
    for index, tool in enumerate(given):
        if tool.get("type") != "function":
            others.add(str(tool.get("type"))[:40])
            continue
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"tools[{index}].name is missing.", param=f"tools[{index}].name")
        function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key)}
        if names is None or name in names:
            made.append({"type": "function", "function": function})
    if others:
        log.warning("tools of these types are left out, they run elsewhere: %s", ", ".join(sorted(others)))
    return made


# -- items -> messages -------------------------------------------------------------------------------------------------


def items_of(body: ResponseFields) -> list[Item]:
    """The input as items."""
    if body.input is None:
        return []
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    return body.input


def messages_of(items: Sequence[Item], name: str = "input") -> list[Message]:
    """The conversation that items are. What the assistant thought, said and called in a row is one message."""
    made: list[Message] = []
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        where = f"{name}[{index}]"
        if kind == "message":
            _add_message(made, item, where)
        elif kind in ("function_call", "custom_tool_call"):
            _add_call(made, item, where)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            result = {"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": _output(item, where)}
            made.append(result)
        elif kind == "reasoning":
            _open_turn(made)["reasoning_content"] = _thoughts(item)
        else:
            log.warning("an input item of the type %s is left out", str(kind)[:40])
    return [_closed(message) for message in made]


def _add_message(made: list[Message], item: Item, where: str) -> None:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}.role is missing.", param=f"{where}.role")
    if role != "assistant":
        made.append({"role": role, "content": content})
        return
    turn = _open_turn(made)
    if turn.get("content") is not None or turn.get("tool_calls"):
        turn = {"role": "assistant", "content": None}
        made.append(turn)
    turn["content"] = content


def _add_call(made: list[Message], item: Item, where: str) -> None:
    if not isinstance(item.get("name"), str):
        raise InvalidRequest(f"{where}.name is missing.", param=f"{where}.name")
    arguments = item.get("arguments", item.get("input"))
    function = {"name": item["name"], "arguments": arguments if isinstance(arguments, str) else "{}"}
    call = {"id": str(item.get("call_id") or ""), "type": "function", "function": function}
    _open_turn(made).setdefault("tool_calls", []).append(call)


def _open_turn(made: list[Message]) -> Message:
    """The assistant's message at the end, or a new one."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": None})
    return made[-1]


def _closed(message: Message) -> Message:
    """A turn that said and called nothing has an empty text."""
    if message.get("content") is None and not message.get("tool_calls"):
        return {**message, "content": ""}
    return message


def _output(item: Item, where: str) -> Any:
    output = item.get("output")
    if isinstance(output, str | list):
        return output
    if isinstance(output, Mapping):
        return msgspec.json.encode(output).decode()
    raise InvalidRequest(f"{where}.output is missing.", param=f"{where}.output")


def _thoughts(item: Item) -> str:
    parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
    return "\n".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
