"""Bodies of Ollama's routes -> parameters and conversations.

Options have Ollama's names and defaults; those of loading a model are passed over, and so are unknown ones. The model's
own defaults stand over Ollama's, as its Modelfile does there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from octavo import logs
from octavo.async_llm import AsyncLLM
from octavo.errors import InvalidRequest
from octavo.request import ChatRequest, Reasoning
from octavo.sampling_params import MAX_TOP_LOGPROBS, SamplingParams

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.0, "repeat_last_n": 64,
}  # fmt: skip
OPTIONS = {  # Ollama's name -> ours
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical_p",
    "repeat_last_n": "repeat_last_n", "repeat_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "mirostat": "mirostat", "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta", "seed": "seed", "stop": "stop",
}  # fmt: skip
log = logs.get("server")
_DURATION = re.compile(r"-?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+")


class ChatMessage(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Asked(msgspec.Struct, kw_only=True):
    """What chat and generate have in common."""

    model: str | None = None
    stream: bool | None = None
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None


class OllamaChatBody(_Asked, kw_only=True):
    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateBody(_Asked, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


Asked = OllamaChatBody | OllamaGenerateBody
CHAT = msgspec.json.Decoder(OllamaChatBody)
GENERATE = msgspec.json.Decoder(OllamaGenerateBody)


def check(body: Asked) -> None:
    """InvalidRequest for what is not built or malformed, before any work."""
    if isinstance(body.format, str) and body.format not in ("", "json"):
        raise InvalidRequest(f"format is {body.format[:40]!r}; it must be json or a JSON schema.", param="format")
    if isinstance(body.keep_alive, str) and not _is_duration(body.keep_alive):
        raise InvalidRequest(
            f"keep_alive is {body.keep_alive[:40]!r}; it must be seconds or a duration such as 5m.", param="keep_alive"
        )
    most = body.top_logprobs
    if most is not None and not 0 <= most <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, got {most}.", param="top_logprobs")
    if isinstance(body, OllamaGenerateBody) and body.template:
        raise InvalidRequest("template is not supported; send raw: true with a prompt of your own.", param="template")


def unloads(body: Asked) -> bool:
    """Whether the model may go: keep_alive 0."""
    given = body.keep_alive
    return given == 0 or (isinstance(given, str) and bool(re.fullmatch(r"0+(\.0*)?\D*", given)))


def _is_duration(text: str) -> bool:
    return bool(_DURATION.fullmatch(text) or re.fullmatch(r"-?\d+(\.\d*)?", text))


def sampling(llm: AsyncLLM, body: Asked) -> SamplingParams:
    """The request's parameters over the model's, and those over Ollama's."""
    options = body.options or {}
    given = {ours: options[name] for name, ours in OPTIONS.items() if options.get(name) is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if not given.get("stop"):
        given.pop("stop", None)
    if body.logprobs:
        given["logprobs"] = body.top_logprobs or 0
    if body.format:
        given["structured_outputs"] = {"json_object": True} if body.format == "json" else {"json": body.format}
    context, served = options.get("num_ctx"), llm.info.max_model_len
    if isinstance(context, int) and context > served:
        log.warning("num_ctx %d is above the context that is served, which counts: %d", min(context, 10**9), served)
    limit = options.get("num_predict")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise InvalidRequest("options.num_predict must be a whole number.", param="options.num_predict")
    stated = {**DEFAULTS, **llm.defaults, **given}
    if limit is not None:
        stated["max_tokens"] = limit if limit > 0 else None  # -1 and -2: to the end of the context
    params = SamplingParams(**{name: value for name, value in stated.items() if value is not None})
    return params if stated.get("max_tokens") is not None else replace(params, max_tokens=None)


def reasoning(think: bool | str | None) -> Reasoning:
    """`think`: whether, or how much."""
    if isinstance(think, str):
        if think not in ("low", "medium", "high", "max", "true", "false"):
            raise InvalidRequest(
                f"think is {think[:40]!r}; it must be true, false, low, medium, high or max.", param="think"
            )
        return Reasoning(think != "false", None if think in ("true", "false") else think)
    return Reasoning(think)


def chat_request(llm: AsyncLLM, body: OllamaChatBody) -> ChatRequest:
    """The conversation and what is asked of the answer."""
    messages = [_message(each, f"messages[{index}]") for index, each in enumerate(body.messages or ())]
    return ChatRequest(messages, sampling(llm, body), tools=body.tools or (), reasoning=reasoning(body.think))


def prompt_request(llm: AsyncLLM, body: OllamaGenerateBody) -> ChatRequest:
    """A prompt as the conversation that it begins."""
    no_images(body.images, "images")
    system = [{"role": "system", "content": body.system}] if body.system else []
    messages = [*system, {"role": "user", "content": body.prompt or ""}]
    return ChatRequest(messages, sampling(llm, body), reasoning=reasoning(body.think))


def no_images(images: list[Any] | None, name: str) -> None:
    """InvalidRequest if there are any: they would be left out silently."""
    if images:
        raise InvalidRequest(f"{name}: this model reads text only.", param=name)


def _message(given: ChatMessage, where: str) -> dict[str, Any]:
    no_images(given.images, f"{where}.images")
    made: dict[str, Any] = {"role": given.role, "content": given.content or ""}
    if given.thinking:
        made["thinking"] = given.thinking
    if given.tool_name:
        made["name"] = given.tool_name
    if given.tool_call_id:
        made["tool_call_id"] = given.tool_call_id
    if given.tool_calls:
        made["tool_calls"] = [_call(call, index, where) for index, call in enumerate(given.tool_calls)]
        made["content"] = given.content or None
    return made


def _call(call: dict[str, Any], index: int, where: str) -> dict[str, Any]:
    """With an id, which templates of other APIs want, and the type that they look for."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        param = f"{where}.tool_calls[{index}].function"
        raise InvalidRequest(f"{param} has no name.", param=param)
    told = {"name": function["name"], "arguments": function.get("arguments") or {}}
    return {"id": str(call.get("id") or f"call_{index}"), "type": "function", "function": told}
