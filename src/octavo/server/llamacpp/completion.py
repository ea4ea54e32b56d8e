"""POST /completion and /infill: llama.cpp's own shape of answers, with its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.request import FinishReason
from octavo.sampling_params import SamplingParams
from octavo.server.conversation import answer_headers
from octavo.server.llamacpp import schema
from octavo.server.llamacpp.schema import LlamaFields, LlamaInfillFields
from octavo.server.openai import wire
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front, Gathered, gather
from octavo.server.translated import Translated
from octavo.text.events import Event, Finished, LogprobEntry, TextDelta

_encode = msgspec.json.Encoder().encode
Prompt = str | list[int]


async def completion(request: Request) -> Response | EventStream:
    """Continue prompts, in llama.cpp's shape."""
    front: Front = request.app.state.front
    body: LlamaFields = await front.body(request, schema.COMPLETION)
    front.check_model(body.model)
    front.check_length(body.prompt if isinstance(body.prompt, str) else "", "prompt")
    given, several = await asyncio.to_thread(schema.prompts, front.llm, body.prompt)
    return await _answered(request, front, body, given, several, schema.sampling(front.llm, body))


async def infill(request: Request) -> Response | EventStream:
    """Fill in what stands between two texts."""
    front: Front = request.app.state.front
    body: LlamaInfillFields = await front.body(request, schema.INFILL)
    front.check_model(body.model)
    if body.input_prefix is None and body.input_suffix is None:
        raise InvalidRequest("input_prefix or input_suffix is needed.", param="input_prefix")
    if body.prompt is not None and not isinstance(body.prompt, str):
        raise InvalidRequest("prompt must be a text: how the middle begins.", param="prompt")
    extra = [(each.filename, each.text) for each in body.input_extra or ()]
    for text in (body.input_prefix, body.input_suffix, body.prompt, *(text for _, text in extra)):
        front.check_length(text or "", "input_prefix")
    params = schema.sampling(front.llm, body)
    fill_in = front.llm.fill_in
    ids = await asyncio.to_thread(
        fill_in.ids, body.input_prefix or "", body.input_suffix or "", extra, body.prompt or ""
    )
    params = replace(params, stop_token_ids=(*params.stop_token_ids, *fill_in.stop_ids))
    return await _answered(request, front, body, [ids], False, params)


async def _answered(
    request: Request, front: Front, body: LlamaFields, given: Sequence[Prompt], several: bool, params: SamplingParams
) -> Response | EventStream:
    answer = front.answer(given, params, True, None, None)
    if body.stream:  # looks itself whether the client is there
        answering = await answer
        shape = _Shape(front, body, answering)
        source, headers = Translated(answering, shape.pieces, shape.last), answer_headers(front, answering)
        return EventStream(source, headers, front.config.sse_ping_interval, shape.idle)
    async with while_connected(request.receive):
        answering = await answer
        shape = _Shape(front, body, answering)
        made = [shape.whole(index, choice) for index, choice in enumerate(await gather(answering))]
        told = made if several or len(made) > 1 else made[0]
        return Response(_encode(told), headers=answer_headers(front, answering), media_type="application/json")


class _Shape:
    """One answer on the wire."""

    def __init__(self, front: Front, body: LlamaFields, answering: Answering) -> None:
        self._front = front
        self._body = body
        self._answering = answering
        self._tokens = [0] * answering.choices  # so far
        self._waiting: list[list[dict[str, Any]]] = [[] for _ in range(answering.choices)]  # probabilities
        self._text = [""] * answering.choices  # whether there was a line break
        self._told_progress = not body.return_progress

    # -- a stream ----------------------------------------------------------------------------------------------------

    def pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        """An event for each piece of text; the last one of a choice carries the figures."""
        made = []
        if not self._told_progress:
            self._told_progress = True
            made.append(self._progress())
        for event in events:
            index = prompt * self._answering.n + event.index
            if isinstance(event, Finished):
                made.append(_sse(self._end(index, "", str(event.reason), event.stop_reason, [])))
            elif isinstance(event, TextDelta):
                self._tokens[index] += len(event.token_ids)
                self._waiting[index] += self._entries(event.token_ids, event.logprobs or ())
                if event.text:
                    self._text[index] = "\n" if "\n" in event.text else self._text[index]
                    made.append(_sse(self._part(index, event)))
        return made

    def last(self) -> bytes:
        return b""

    def idle(self) -> bytes:
        """An event that says nothing, for clients that count them."""
        return _sse({"index": 0, "content": "", "tokens": [], "stop": False})

    def _part(self, index: int, event: TextDelta) -> dict[str, Any]:
        made = {
            "index": index,
            "content": event.text,
            "tokens": list(event.token_ids),
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": self._tokens[index],
            "tokens_evaluated": len(self._prompt(index)),
        }
        if self._body.timings_per_token:
            made["timings"] = wire.timings(self._answering)
        return {**made, **self._probabilities(index)}

    def _progress(self) -> bytes:
        """Once, when the prompt has been read: how much of it was known already."""
        known, (first, _, _) = self._answering.usage, self._answering.seconds
        told = {
            "total": known.prompt_tokens,
            "cache": known.cached_tokens,
            "processed": known.prompt_tokens,
            "time_ms": int(first * 1e3),
        }
        return _sse({"index": 0, "content": "", "tokens": [], "stop": False, "prompt_progress": told})

    # -- a body ------------------------------------------------------------------------------------------------------

    def whole(self, index: int, choice: Gathered) -> dict[str, Any]:
        """A complete choice."""
        self._tokens[index] = len(choice.token_ids)
        self._text[index] = choice.text
        self._waiting[index] = self._entries(choice.token_ids, choice.logprobs)
        ids = choice.token_ids if self._body.return_tokens else []
        return self._end(index, choice.text, choice.reason, choice.stop_reason, ids)

    def _end(self, index: int, content: str, reason: str, stop: int | str | None, ids: Sequence[int]) -> dict[str, Any]:
        generation = self._answering.generations[index // self._answering.n]
        prompt, params = generation.prompt, generation.request.params
        word = stop if isinstance(stop, str) else ""
        kinds: Mapping[str, str] = {FinishReason.STOP: "word" if word else "eos", FinishReason.LENGTH: "limit"}
        text = prompt.text
        if text is None:
            text = self._front.llm.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        return {
            "index": index,
            "content": content,
            "tokens": list(ids),
            "id_slot": -1,
            "stop": True,
            "model": self._front.model,
            "tokens_predicted": self._tokens[index],
            "tokens_evaluated": len(prompt.token_ids),
            "generation_settings": settings(params, self._answering.seed, self._front),
            "prompt": text,
            "has_new_line": "\n" in self._text[index],
            "truncated": False,
            "stop_type": kinds.get(reason, "none"),
            "stopping_word": word,
            "tokens_cached": len(prompt.token_ids) + max(0, self._tokens[index] - 1),
            "timings": wire.timings(self._answering),
            **self._probabilities(index),
        }

    # -- parts -------------------------------------------------------------------------------------------------------

    def _prompt(self, index: int) -> tuple[int, ...]:
        return self._answering.generations[index // self._answering.n].prompt.token_ids

    def _probabilities(self, index: int) -> dict[str, Any]:
        made, self._waiting[index] = self._waiting[index], []
        return {"completion_probabilities": made} if made else {}

    def _entries(self, token_ids: Sequence[int], entries: Sequence[LogprobEntry]) -> list[dict[str, Any]]:
        most = self._answering.generations[0].request.params.logprobs or 0
        made = []
        for id_, entry in zip(token_ids, entries, strict=False):
            likely = [self._token(entry, other) for other in wire.top(entry, most)]
            made.append({**self._token(entry, id_), "top_logprobs": likely})
        return made

    def _token(self, entry: LogprobEntry, id_: int) -> dict[str, Any]:
        told, data = entry[id_], self._front.llm.tokenizer.token_bytes(id_)
        return {"id": id_, "token": told.decoded_token, "bytes": list(data), "logprob": told.logprob}


def _sse(value: object) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def settings(params: SamplingParams, seed: object, front: Front) -> dict[str, Any]:
    """What an answer was made with, under llama.cpp's names."""
    made = {name: getattr(params, name) for name in schema.SAMPLING if name not in ("seed", "best_of")}
    made["repeat_penalty"] = made.pop("repetition_penalty")
    made["typ_p"] = made["typical_p"]
    limit = -1 if params.max_tokens is None else params.max_tokens
    return {
        **made,
        "n_ctx": front.llm.client.info.max_model_len,
        "n_predict": limit,
        "max_tokens": limit,
        "n_probs": params.logprobs or 0,
        "seed": seed,
        "samplers": (params.samplers or "").split(";") if isinstance(params.samplers, str) else params.samplers or [],
    }
