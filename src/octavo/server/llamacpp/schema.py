"""Bodies of llama.cpp's own routes: /completion, /infill, /apply-template. Its defaults, its names, its order of
samplers.

The operator's own sampling defaults stand over llama.cpp's. Unknown fields are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from octavo.async_llm import AsyncLLM
from octavo.errors import InvalidRequest
from octavo.sampling_params import PARAMETERS, SamplingParams
from octavo.server.limits import MAX_PROMPTS, check_count

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_last_n": 64, "repetition_penalty": 1.0,
    "samplers": "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
}  # fmt: skip
ALIASES = {
    "repeat_penalty": "repetition_penalty", "typ_p": "typical_p", "n_probs": "logprobs", "n_cmpl": "n",
}  # fmt: skip
_OWN = ("max_tokens", "logprobs", "n", "logit_bias", "structured_outputs", "detokenize", "echo")
SAMPLING = tuple(each.name for each in PARAMETERS if each.name not in _OWN)
_BANNED = -100.0  # what `false` means for a token: as good as never


class LlamaExtra(msgspec.Struct):
    text: str
    filename: str = "file"


class LlamaFields(msgspec.Struct, kw_only=True):
    """What /completion and /infill have in common."""

    prompt: Any = None
    model: str | None = None
    stream: bool | None = None
    n_predict: int | None = None
    max_tokens: int | None = None
    logit_bias: Any = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    cache_prompt: bool | None = None


class LlamaInfillFields(LlamaFields, kw_only=True):
    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: list[LlamaExtra] | None = None


class LlamaTemplateBody(msgspec.Struct):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


_FREE = [(name, Any, None) for name in (*SAMPLING, *ALIASES)]  # read by name
LlamaCompletionBody = msgspec.defstruct("LlamaCompletionBody", _FREE, bases=(LlamaFields,), kw_only=True)
LlamaInfillBody = msgspec.defstruct("LlamaInfillBody", _FREE, bases=(LlamaInfillFields,), kw_only=True)
COMPLETION = msgspec.json.Decoder(LlamaCompletionBody)
INFILL = msgspec.json.Decoder(LlamaInfillBody)
TEMPLATE = msgspec.json.Decoder(LlamaTemplateBody)


def sampling(llm: AsyncLLM, body: LlamaFields) -> SamplingParams:
    """The request's parameters over the server's, and those over llama.cpp's."""
    given = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    for alias, name in ALIASES.items():
        value = getattr(body, alias)
        if value is not None:
            given.setdefault(name, value)
    if not given.get("logprobs"):
        given.pop("logprobs", None)  # n_probs: 0
    if body.logit_bias:
        given["logit_bias"] = _bias(llm, body.logit_bias)
    if body.json_schema is not None:
        given["structured_outputs"] = {"json": body.json_schema}
    elif body.grammar:
        given["structured_outputs"] = {"grammar": body.grammar}
    stated = {**DEFAULTS, **llm.defaults, **given}
    limit = body.max_tokens if body.n_predict is None else body.n_predict
    if limit is None or limit < 0:
        return replace(SamplingParams(**stated), max_tokens=None)  # to the end of the context
    return SamplingParams(**{**stated, "max_tokens": max(1, limit)})


def _bias(llm: AsyncLLM, given: Any) -> dict[int, float]:
    """[[id or text, number or false], …] or {id or text: number}. A text's bias is that of each of its ids."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    made: dict[int, float] = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidRequest("logit_bias must be a list of pairs of a token and a number.", param="logit_bias")
        token, bias = pair
        value = _BANNED if bias is False else bias
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"logit_bias: {str(bias)[:40]!r} is no number.", param="logit_bias")
        numbered = isinstance(token, int) or (isinstance(given, Mapping) and str(token).isdecimal())
        ids = [int(token)] if numbered else llm.tokenizer.encode(str(token))
        made.update(dict.fromkeys(ids, max(_BANNED, min(-_BANNED, float(value)))))
    return made


def prompts(llm: AsyncLLM, value: Any) -> tuple[list[str | list[int]], bool]:
    """The prompts, and whether there were several. A prompt is a text, ids, or a list of ids and texts that are put
    together."""
    if isinstance(value, Mapping):
        value = value.get("prompt_string")
    if isinstance(value, str):
        return [value], False
    if not isinstance(value, list) or not value:
        raise InvalidRequest("prompt must be a text, a list of ids, or a list of prompts, not empty.", param="prompt")
    if any(type(each) is int for each in value):
        return [_joined(llm, value, "prompt")], False
    check_count(len(value), MAX_PROMPTS, "prompt", "prompts")
    made: list[str | list[int]] = []
    for index, each in enumerate(value):
        if isinstance(each, Mapping):
            each = each.get("prompt_string")
        if isinstance(each, list) and each:
            made.append(_joined(llm, each, f"prompt[{index}]"))
        elif isinstance(each, str):
            made.append(each)
        else:
            raise InvalidRequest(f"prompt[{index}] is neither a text nor ids.", param=f"prompt[{index}]")
    return made, len(made) > 1


def _joined(llm: AsyncLLM, items: list[Any], name: str) -> list[int]:
    """Ids of a list of ids and texts; a text in front gets what the model puts before a sequence."""
    made: list[int] = []
    for index, each in enumerate(items):
        if type(each) is int and -(2**31) <= each < 2**31:
            made.append(each)
        elif isinstance(each, str):
            made += llm.tokenizer.encode(each, add_special_tokens=index == 0)
        else:
            raise InvalidRequest(f"{name} has an item that is neither an id nor a text.", param=name)
    return made
