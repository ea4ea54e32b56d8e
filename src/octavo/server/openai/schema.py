"""Bodies of the OpenAI routes: what is read, what is ignored, what is refused because it is not built.

Sampling fields are those of sampling_params.PARAMETERS. A null counts as absent, an unknown field is ignored; a field
of a feature that is not built is refused by name unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from octavo.async_llm import AsyncLLM
from octavo.beam_search import MAX_WIDTH, BeamSearchParams
from octavo.errors import ContextLengthExceeded, InvalidRequest
from octavo.parameter import ID_END
from octavo.sampling_params import MAX_TOP_LOGPROBS, PARAMETERS, SamplingParams
from octavo.server.limits import MAX_MESSAGES, MAX_PROMPTS, check_count, check_depth, check_text
from octavo.server.openai import structured

ALIASES = {
    "max_completion_tokens": "max_tokens", "n_predict": "max_tokens", "repeat_penalty": "repetition_penalty",
    "typ_p": "typical_p", "mirostat_mode": "mirostat",
}  # fmt: skip
_OWN = ("logprobs", "echo")  # whose shape differs between the two routes
SAMPLING = tuple(each.name for each in PARAMETERS if each.name not in _OWN)
MAX_SALT = 1024  # characters

# Field of a feature that is not built -> values that ask for nothing, beside null, false, 0 and whatever is empty.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "lora": (),
    "lora_path": (),
    "lora_request": (),
    "adapter_id": (),
    "audio": (),
    "modalities": (["text"],),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    """Fields of both routes beside those of sampling."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    request_id: str | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    response_format: Any = None


class ChatFields(_Common, kw_only=True):
    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Any = None
    reasoning: Any = None
    thinking_token_budget: Any = None


class CompletionFields(_Common, kw_only=True):
    prompt: Any = None  # see `prompts`
    logprobs: Any = None
    suffix: str | None = None


_FREE = [(name, Any, None) for name in (*SAMPLING, *ALIASES, *structured.FIELDS, *REFUSED)]  # read by name
ChatBody = msgspec.defstruct("ChatBody", _FREE, bases=(ChatFields,), kw_only=True)
CompletionBody = msgspec.defstruct("CompletionBody", _FREE, bases=(CompletionFields,), kw_only=True)
CHAT = msgspec.json.Decoder(ChatBody)
COMPLETION = msgspec.json.Decoder(CompletionBody)


def check_chat(body: ChatFields) -> None:
    """InvalidRequest for what is not built, too large or malformed, before any work."""
    _check_common(body)
    if not body.messages:
        raise InvalidRequest("messages is empty; at least one message is needed.", param="messages")
    check_count(len(body.messages), MAX_MESSAGES, "messages", "messages")
    check_depth(body.messages, "messages")
    check_depth(body.chat_template_kwargs, "chat_template_kwargs")
    check_depth(body.documents, "documents")
    check_depth(body.tools, "tools")
    most = body.top_logprobs
    if most is not None:
        if not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        if not 0 <= most <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs must be a whole number from 0 to {MAX_TOP_LOGPROBS}, got {most}.", param="top_logprobs"
            )


def check_completion(body: CompletionFields) -> None:
    """The same for /v1/completions."""
    _check_common(body)


def _check_common(body: _Common) -> None:
    for name, harmless in REFUSED.items():
        value = getattr(body, name)
        if value and value not in harmless:
            raise _not_built(name)
    check_text(body.cache_salt, "cache_salt", MAX_SALT)
    check_text(body.request_id, "request_id")
    if body.cache_salt == "":
        raise InvalidRequest("cache_salt must not be empty; leave it out.", param="cache_salt")
    if body.priority is not None and not -(2**31) <= body.priority < 2**31:
        raise InvalidRequest("priority must be a whole number of 32 bits.", param="priority")


def _not_built(name: str, hint: str = "") -> InvalidRequest:
    return InvalidRequest(f"{name} is not supported by this server{f'; {hint}' if hint else ''}.", param=name)


def sampling(llm: AsyncLLM, body: _Common, logprobs: Any, **changes: Any) -> SamplingParams:
    """The request's SamplingParams over the server's defaults; `changes` are what the route decides."""
    given = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    for alias, name in ALIASES.items():
        value = getattr(body, alias)
        if value is not None and (name not in given or alias == "max_completion_tokens"):
            given[name] = value
    endless = given.get("max_tokens") == -1  # llama.cpp's word for "to the end of the context"
    if endless:
        del given["max_tokens"]
    given["structured_outputs"] = structured.constraint(body)
    params = llm.default_sampling_params(**{**given, "logprobs": logprobs, **changes})
    return replace(params, max_tokens=None) if endless else params


def beams(body: _Common, params: SamplingParams) -> BeamSearchParams | None:
    """The beam search that vLLM's use_beam_search asks for: n beams, all of which are given back; None without it."""
    if not body.use_beam_search:
        return None
    if body.stream:
        raise InvalidRequest("use_beam_search is not streamed; leave out stream.", param="use_beam_search")
    if params.structured_outputs is not None:
        raise InvalidRequest("use_beam_search knows no structured output; leave one out.", param="use_beam_search")
    if params.best_of is not None:
        raise InvalidRequest("best_of has no meaning with use_beam_search; n is the number of beams.", param="best_of")
    if params.n > MAX_WIDTH:
        raise InvalidRequest(f"n must be at most {MAX_WIDTH} with use_beam_search, got {params.n}.", param="n")
    length_penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return BeamSearchParams(
        params.n, params.max_tokens or ID_END - 1, params.ignore_eos, length_penalty, params.include_stop_str_in_output
    )


def endless_by_default(llm: AsyncLLM, body: _Common, params: SamplingParams) -> SamplingParams:
    """A chat answer may go on to the end of the context where nobody set a limit."""
    stated = "max_tokens" in llm.defaults or any(
        getattr(body, name) is not None for name in ("max_tokens", "max_completion_tokens", "n_predict")
    )
    return params if stated else replace(params, max_tokens=None)


def prompts(value: Any, limit: int) -> list[str | list[int]]:
    """The prompts of a completion: a text, texts, ids, or lists of ids. InvalidRequest names the item at fault.

    Lists of more than `limit` ids are refused before their items are looked at.
    """
    if value is None:
        raise InvalidRequest("prompt is missing.", param="prompt")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("prompt must be a text or a list of texts or token ids, not empty.", param="prompt")
    if isinstance(value[0], int):
        return [_ids(value, "prompt", limit)]
    check_count(len(value), MAX_PROMPTS, "prompt", "prompts")
    made: list[str | list[int]] = []
    for index, each in enumerate(value):
        if isinstance(each, str):
            made.append(each)
        elif isinstance(each, list):
            made.append(_ids(each, f"prompt[{index}]", limit))
        else:
            raise InvalidRequest(f"prompt[{index}] is neither a text nor token ids.", param=f"prompt[{index}]")
    return made


def _ids(value: list[Any], name: str, limit: int) -> list[int]:
    """Not yet compared with the vocabulary, but small enough to be told."""
    if len(value) > limit:
        raise ContextLengthExceeded(limit, len(value), param=name)
    if not all(type(each) is int for each in value):
        raise InvalidRequest(f"{name} has an item that is no token id.", param=name)
    if any(not -(2**31) <= each < 2**31 for each in value):
        raise InvalidRequest(f"{name} has a number that is no token id.", param=name)
    return value
