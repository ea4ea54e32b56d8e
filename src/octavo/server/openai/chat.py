"""POST /v1/chat/completions: body -> ChatRequest, events -> chunks or one body.

The rules of the stream are those that clients were measured to need: the role in a first chunk of every choice, a chunk
with its finish_reason always, usage in a last chunk without choices, no empty deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.request import ChatRequest
from octavo.sampling_params import SamplingParams
from octavo.server.openai import wire
from octavo.server.openai.schema import CHAT, ChatFields, beams, check_chat, endless_by_default, sampling
from octavo.server.openai.tools import reasoning, tool_choice
from octavo.server.openai.wire import NOTHING, Chunks, Head, encode
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front, Gathered, gather
from octavo.text.events import Delta, Event, Finished, LogprobEntry, ReasoningDelta, TextDelta


async def chat(request: Request) -> Response | EventStream:
    """Answer a conversation."""
    front: Front = request.app.state.front
    body: ChatFields = await front.body(request, CHAT)
    front.check_model(body.model)
    check_chat(body)
    asked = (body.top_logprobs or 0) if body.logprobs else None
    params = endless_by_default(front.llm, body, sampling(front.llm, body, asked))
    if body.stream and params.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs are not streamed; leave out stream.", param="prompt_logprobs")
    if body.stream:  # looks itself whether the client is there
        answering, headers = await _answer(front, body, params)
        return _Shape(front, body, answering).stream().stream(front, request, headers)
    async with while_connected(request.receive):
        answering, headers = await _answer(front, body, params)
        return Response(await _Shape(front, body, answering).whole(), headers=headers, media_type="application/json")


async def _answer(front: Front, body: ChatFields, params: SamplingParams) -> tuple[Answering, dict[str, str]]:
    """The answer, not begun, and its headers."""
    answering = await front.chat(
        _chat_request(body, params), salt=body.cache_salt, priority=body.priority, beams=beams(body, params),
        add_special_tokens=bool(body.add_special_tokens),
    )  # fmt: skip
    return answering, {**wire.receipt(answering), **answering.told}


def _chat_request(body: ChatFields, params: SamplingParams) -> ChatRequest:
    return ChatRequest(
        body.messages,
        params,
        body.add_generation_prompt is not False,
        bool(body.continue_final_message),
        body.chat_template,
        body.chat_template_kwargs or {},
        body.tools or (),
        body.documents or (),
        tool_choice(body.tool_choice),
        body.parallel_tool_calls is not False,
        reasoning(body),
    )


TEXT = b'{"index":%d,"delta":{"content":', b'},"logprobs":null,"finish_reason":null}'


class _Shape:
    """One answer on the wire."""

    def __init__(self, front: Front, body: ChatFields, answering: Answering) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._answering = answering
        self._head = Head(front, answering, wire.request_id("chatcmpl", body.request_id), kind)
        self._token_bytes = front.llm.tokenizer.token_bytes
        self._logprobs = bool(body.logprobs)
        self._top = body.top_logprobs or 0
        options = body.stream_options
        self._begun = False
        self._waiting: dict[int, list[Any]] = {}  # logprobs of tokens without text
        self._usage = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        told = self._logprobs or self._usage_always  # each chunk says more than its text
        self._around = [] if told else self._head.around(*TEXT)
        last = body.messages[-1]
        echoed = last.get("content") if body.echo and last.get("role") == "assistant" else None
        self._echoed = echoed if isinstance(echoed, str) else ""

    # -- a stream ----------------------------------------------------------------------------------------------------

    def stream(self) -> Chunks:
        """The answer, streamed."""
        return Chunks(self._answering, self._head, self._pieces, self._usage)

    def _pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        made = []
        for event in events:
            if self._around and isinstance(event, TextDelta) and event.text:
                before, after = self._around[event.index]
                made.append(before + encode(event.text) + after)
            else:
                made.append(self._event(event))
        if not self._begun:
            self._begun = True
            made.insert(0, self._opening())
        return made

    def _opening(self) -> bytes:
        delta = b'{"role":"assistant","content":%b}' % encode(self._echoed)
        return b"".join(
            self._head.chunk(
                b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}' % (index, delta), self._usage_always
            )
            for index in range(self._answering.choices)
        )

    def _event(self, event: Event) -> bytes:
        waiting = self._waiting
        index = event.index
        if isinstance(event, Finished):
            content = waiting.pop(index, None)
            logprobs = encode({"content": content}) if content else NOTHING
            choice = b'{"index":%d,"delta":{},"logprobs":%b,"finish_reason":%b,"stop_reason":%b}' % (
                index, logprobs, encode(str(event.reason)), encode(event.stop_reason),
            )  # fmt: skip
            return self._head.finish_chunk(choice, self._usage, self._usage_always)
        delta = _delta(event)
        logprobs = NOTHING
        if self._logprobs:
            content = [*waiting.pop(index, ()), *self._content(event)]
            if not delta:
                waiting[index] = content
                return b""
            logprobs = encode({"content": content})
        elif not delta:
            return b""
        choice = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null}' % (index, delta, logprobs)
        return self._head.chunk(choice, self._usage_always)

    # -- a body ------------------------------------------------------------------------------------------------------

    async def whole(self) -> bytes:
        """The complete answer."""
        choices = []
        for index, each in enumerate(await gather(self._answering)):
            logprobs = None
            if self._logprobs:
                logprobs = {"content": self._entries(each.token_ids, each.logprobs)}
            choices.append(
                {
                    "index": index,
                    "message": self._message(each),
                    "logprobs": logprobs,
                    "finish_reason": each.reason,
                    "stop_reason": each.stop_reason,
                }
            )
        prompt = self._answering.generations[0].prompt.logprobs
        more = {} if prompt is None else {"prompt_logprobs": wire.prompt_logprobs(prompt)}
        return self._head.body(choices, **more)

    def _message(self, each: Gathered) -> dict[str, Any]:
        text: str | None = self._echoed + each.text
        made: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if each.reasoning:
            made["reasoning_content"] = made["reasoning"] = each.reasoning
        if each.tool_calls:
            made["content"] = text or None
            made["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in each.tool_calls
            ]
        return made

    # -- logprobs ----------------------------------------------------------------------------------------------------

    def _content(self, delta: Delta) -> list[dict[str, Any]]:
        return self._entries(delta.token_ids, delta.logprobs or ())

    def _entries(self, token_ids: Sequence[int], entries: Sequence[LogprobEntry]) -> list[dict[str, Any]]:
        """OpenAI's shape, an object for each token."""
        made = []
        for id_, entry in zip(token_ids, entries, strict=True):
            likely = [self._token(entry, other) for other in wire.top(entry, self._top)]
            made.append({**self._token(entry, id_), "top_logprobs": likely})
        return made

    def _token(self, entry: LogprobEntry, id_: int) -> dict[str, Any]:
        logprob = entry[id_]
        data = list(self._token_bytes(id_))
        return {"token": logprob.decoded_token, "logprob": logprob.logprob, "bytes": data}


def _delta(event: Delta) -> bytes:
    """What a chunk says of an event (JSON); empty if nothing. A key that has nothing to say is left out: null breaks
    clients."""
    if isinstance(event, TextDelta):
        return b'{"content":%b}' % encode(event.text) if event.text else b""
    if isinstance(event, ReasoningDelta):
        text = encode(event.text)
        return b'{"reasoning_content":%b,"reasoning":%b}' % (text, text) if event.text else b""
    arguments = encode(event.arguments)
    if event.id is None:
        call = b'{"index":%d,"function":{"arguments":%b}}' % (event.call, arguments)
    else:
        call = b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}' % (
            event.call, encode(event.id), encode(event.name), arguments,
        )  # fmt: skip
    return b'{"tool_calls":[%b]}' % call
