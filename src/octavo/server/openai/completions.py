"""POST /v1/completions: text or ids of one or several prompts -> text, with echo and the older shape of logprobs.

Choice c of prompt p is answered under the index p * n + c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.sampling_params import SamplingParams
from octavo.server.openai import wire
from octavo.server.openai.schema import COMPLETION, CompletionFields, beams, check_completion, prompts, sampling
from octavo.server.openai.wire import NOTHING, Chunks, Head, encode
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front, gather
from octavo.text.events import Event, Finished, LogprobEntry, TextDelta


async def completions(request: Request) -> Response | EventStream:
    """Continue prompts."""
    front: Front = request.app.state.front
    body: CompletionFields = await front.body(request, COMPLETION)
    front.check_model(body.model)
    check_completion(body)
    given = prompts(body.prompt, front.llm.client.info.max_model_len)
    params, echo_only = _params(front, body)
    if body.suffix:
        given, params = await filled_in(front, given, body.suffix, params)
    if body.stream and params.prompt_logprobs is not None and not body.echo:
        raise InvalidRequest("prompt_logprobs are not streamed; leave out stream.", param="prompt_logprobs")
    answer = front.answer(
        given, params, body.add_special_tokens is not False, body.cache_salt, body.priority, beams(body, params)
    )  # fmt: skip
    if body.stream:  # looks itself whether the client is there
        shape = _Shape(front, body, answering := await answer, echo_only)
        return shape.stream().stream(front, request, wire.receipt(answering))
    async with while_connected(request.receive):
        shape = _Shape(front, body, answering := await answer, echo_only)
        return Response(await shape.whole(), headers=wire.receipt(answering), media_type="application/json")


async def filled_in(
    front: Front, given: Sequence[str | list[int]], suffix: str, params: SamplingParams
) -> tuple[list[str | list[int]], SamplingParams]:
    """Prompts whose answer ends where `suffix` begins, and parameters that end it at the tokens for that."""
    texts = [each for each in given if isinstance(each, str)]
    if len(texts) < len(given):
        raise InvalidRequest("suffix needs prompts that are texts.", param="suffix")
    for text in (*texts, suffix):
        front.check_length(text, "prompt")
    fill_in = front.llm.fill_in
    made: list[str | list[int]] = [await asyncio.to_thread(fill_in.ids, text, suffix) for text in texts]
    return made, replace(params, stop_token_ids=(*params.stop_token_ids, *fill_in.stop_ids))


def _params(front: Front, body: CompletionFields) -> tuple[SamplingParams, bool]:
    """The parameters, and whether only the prompt is wanted back (echo with max_tokens 0, as evaluators ask)."""
    echo_only = bool(body.echo) and getattr(body, "max_tokens") == 0  # noqa: B009
    changes: dict[str, Any] = {"max_tokens": 1} if echo_only else {}
    params = sampling(front.llm, body, body.logprobs, **changes)
    if body.echo and body.suffix:
        raise InvalidRequest("echo has no meaning with suffix; leave it out.", param="echo")
    if body.echo and params.logprobs is not None and params.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=params.logprobs)
    return params, echo_only


@dataclass
class _Logprobs:
    """The older shape of logprobs: parallel lists. offset: characters of the choice's text so far."""

    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, text: str, id_: int, entry: LogprobEntry | None) -> None:
        """The next token; the prompt's first has no logprob."""
        self.tokens.append(text)
        self.text_offset.append(self.offset)
        self.offset += len(text)
        if entry is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
        else:
            self.token_logprobs.append(entry[id_].logprob)
            self.top_logprobs.append({each.decoded_token or "": each.logprob for each in reversed(entry.values())})

    def taken(self) -> dict[str, Any] | None:
        """What was added since, for the wire; None if nothing was."""
        if not self.tokens:
            return None
        made = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return made


TEXT = b'{"index":%d,"text":', b',"logprobs":null,"finish_reason":null}'


class _Shape:
    """The answer on the wire."""

    def __init__(self, front: Front, body: CompletionFields, answering: Answering, echo_only: bool) -> None:
        self._answering = answering
        self._head = Head(front, answering, wire.request_id("cmpl", body.request_id), "text_completion")
        self._tokenizer = front.llm.tokenizer
        self._wants_logprobs = body.logprobs is not None
        self._wants_prompt_logprobs = getattr(body, "prompt_logprobs") is not None  # noqa: B009
        self._echo = bool(body.echo)
        self._echo_only = echo_only
        self._echoed_prompts: set[int] = set()
        options = body.stream_options
        self._usage = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        told = self._wants_logprobs or self._usage_always or echo_only  # not every chunk is its text and no more
        self._around = [] if told else self._head.around(*TEXT)
        self._states = [_Logprobs() for _ in range(answering.choices)]

    # -- a stream ----------------------------------------------------------------------------------------------------

    def stream(self) -> Chunks:
        """The answer, streamed."""
        return Chunks(self._answering, self._head, self._pieces, self._usage)

    def _pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        n, made = self._answering.n, []
        if self._echo and prompt not in self._echoed_prompts:
            self._echoed_prompts.add(prompt)
            made = [self._text(prompt * n + c, self._echoed(prompt, prompt * n + c)) for c in range(n)]
        for event in events:
            index = prompt * n + event.index
            if self._around and isinstance(event, TextDelta) and event.text:
                before, after = self._around[index]
                made.append(before + encode(event.text) + after)
            else:
                made.append(self._event(index, event))
        return made

    def _event(self, index: int, event: Event) -> bytes:
        if isinstance(event, Finished):
            reason = "length" if self._echo_only else str(event.reason)
            choice = b'{"index":%d,"text":"","logprobs":%b,"finish_reason":%b,"stop_reason":%b}' % (
                index, self._logprobs(index), encode(reason), encode(event.stop_reason),
            )  # fmt: skip
            return self._head.finish_chunk(choice, self._usage, self._usage_always)
        if self._echo_only or not isinstance(event, TextDelta):  # a completion is never parsed: it is all text
            return b""
        if self._wants_logprobs:
            self._add(index, event.token_ids, event.logprobs or ())
        return self._text(index, event.text) if event.text else b""

    def _text(self, index: int, text: str) -> bytes:
        logprobs = self._logprobs(index)
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}' % (index, encode(text), logprobs)
        return self._head.chunk(choice, self._usage_always)

    def _logprobs(self, index: int) -> bytes:
        return encode(self._states[index].taken()) if self._wants_logprobs else NOTHING

    # -- a body ------------------------------------------------------------------------------------------------------

    async def whole(self) -> bytes:
        """The complete answer."""
        choices = []
        for index, each in enumerate(await gather(self._answering)):
            prompt = index // self._answering.n
            text = self._echoed(prompt, index) if self._echo else ""
            if not self._echo_only:
                text += each.text
                if self._wants_logprobs:
                    self._add(index, each.token_ids, each.logprobs)
            facts = self._answering.generations[prompt].prompt
            choice = {
                "index": index,
                "text": text,
                "logprobs": self._states[index].taken(),
                "finish_reason": "length" if self._echo_only else each.reason,
                "stop_reason": each.stop_reason,
            }
            if self._wants_prompt_logprobs and facts.logprobs is not None:
                choice["prompt_logprobs"] = wire.prompt_logprobs(facts.logprobs)
            choices.append(choice)
        return self._head.body(choices)

    # -- echo and logprobs -------------------------------------------------------------------------------------------

    def _echoed(self, prompt: int, index: int) -> str:
        """The prompt's text, its logprobs added to those of the choice."""
        facts = self._answering.generations[prompt].prompt
        if self._wants_logprobs and facts.logprobs is not None:
            self._add(index, facts.token_ids, facts.logprobs)
        if facts.text is not None:
            return facts.text
        return self._tokenizer.decode(facts.token_ids, skip_special_tokens=False)

    def _add(self, index: int, token_ids: Sequence[int], entries: Sequence[LogprobEntry | None]) -> None:
        state = self._states[index]
        for id_, entry in zip(token_ids, entries, strict=True):
            state.add(self._tokenizer.token_text(id_), id_, entry)
