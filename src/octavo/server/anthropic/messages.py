"""POST /v1/messages and /v1/messages/count_tokens: body -> ChatRequest, events -> content blocks.

The rules of the stream are those that clients were measured to need: an `event:` line for every event, usage in
message_start and in message_delta, message_stop always.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.request import FinishReason
from octavo.server.anthropic.schema import COUNT, MESSAGES, CountBody, MessagesBody, chat_request
from octavo.server.conversation import answer_headers, converse, prompt_ids
from octavo.server.dialect import ANTHROPIC
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front, Gathered, gather
from octavo.server.translated import Translated
from octavo.text.events import Delta, Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta

_encode = msgspec.json.Encoder().encode
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
SIGNATURE = "octavo"  # of thinking: theirs is checked when it comes back, ours is not


async def messages(request: Request) -> Response | EventStream:
    """Answer a conversation."""
    front: Front = request.app.state.front
    body: MessagesBody = await front.body(request, MESSAGES)
    front.check_model(body.model)
    chat = chat_request(front.llm, body)
    if body.stream:  # looks itself whether the client is there
        answering = await converse(front, chat)
        shape = _Stream(front, answering)
        source = Translated(answering, shape.pieces, shape.last)
        return source.stream(front, request, shape.message["id"], lambda: PING, ANTHROPIC)
    async with while_connected(request.receive):
        answering = await converse(front, chat)
        (choice,) = await gather(answering)
        made = {**_message(front, answering), "content": _blocks(choice), **_end(choice.reason, choice.stop_reason)}
        return Response(_encode(made), headers=answer_headers(front, answering), media_type="application/json")


async def count_tokens(request: Request) -> Response:
    """The number of tokens that the model would read of a conversation."""
    front: Front = request.app.state.front
    body: CountBody = await front.body(request, COUNT)
    front.check_model(body.model)
    ids = await prompt_ids(front, chat_request(front.llm, body))
    return Response(_encode({"input_tokens": len(ids)}), media_type="application/json")


def _message(front: Front, answering: Answering) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": front.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(answering),
    }


def _usage(answering: Answering) -> dict[str, int]:
    known = answering.usage
    return {
        "input_tokens": known.prompt_tokens - known.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": known.cached_tokens,
        "output_tokens": known.completion_tokens,
    }


def _end(reason: str, stop: int | str | None) -> dict[str, Any]:
    """What was cut off from outside counts as cut off by a limit: the API has no other word."""
    if reason == FinishReason.STOP:
        sequence = stop if isinstance(stop, str) else None
        return {"stop_reason": "end_turn" if sequence is None else "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": "tool_use" if reason == FinishReason.TOOL_CALLS else "max_tokens", "stop_sequence": None}


def _blocks(choice: Gathered) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if choice.reasoning:
        made.append({"type": "thinking", "thinking": choice.reasoning, "signature": SIGNATURE})
    if choice.text:
        made.append({"type": "text", "text": choice.text})
    for call in choice.tool_calls:
        made.append({"type": "tool_use", "id": _tool_id(call.id), "name": call.name, "input": _input(call.arguments)})
    return made


def _tool_id(id_: str) -> str:
    """`toolu_…`, whatever our own calls are named."""
    return f"toolu_{id_.removeprefix('call_')}"


def _input(arguments: str) -> Any:
    """The object of a call; what a model broke off is given as the text that it is."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {"arguments": arguments}
    return value if isinstance(value, dict) else {"arguments": value}


def _sse(kind: str, body: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **body}))


class _Stream:
    """One streamed answer: a block is open as long as the events are of its kind."""

    def __init__(self, front: Front, answering: Answering) -> None:
        self.message = _message(front, answering)
        self._answering = answering
        self._begun = False
        self._index = -1  # of the open block, or of the last one
        self._open: object = None  # the kind of the open block, with the call's number
        self._end: dict[str, Any] = _end("abort", None)

    def pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        """The events' bytes."""
        made = []
        if not self._begun:
            self._begun = True
            message = {**self.message, "usage": _usage(self._answering)}
            made.append(_sse("message_start", {"message": message}))
        for event in events:
            if isinstance(event, Finished):
                self._end = _end(str(event.reason), event.stop_reason)
            elif isinstance(event, ToolCallDelta) or event.text:
                made += self._delta(event)
        return made

    def last(self) -> bytes:
        """The end of the block, why the answer ended, and the end of the message."""
        delta = {"delta": self._end, "usage": _usage(self._answering)}
        return b"".join((*self._closed(), _sse("message_delta", delta), _sse("message_stop", {})))

    def _delta(self, event: Delta) -> list[bytes]:
        kind: object = type(event)
        if isinstance(event, ToolCallDelta):
            kind = event.call
        made = [] if kind == self._open else [*self._closed(), self._start(event)]
        self._open = kind
        if isinstance(event, TextDelta):
            delta = {"type": "text_delta", "text": event.text}
        elif isinstance(event, ReasoningDelta):
            delta = {"type": "thinking_delta", "thinking": event.text}
        elif event.arguments:
            delta = {"type": "input_json_delta", "partial_json": event.arguments}
        else:
            return made
        return [*made, _sse("content_block_delta", {"index": self._index, "delta": delta})]

    def _start(self, event: Delta) -> bytes:
        self._index += 1
        if isinstance(event, TextDelta):
            block: dict[str, Any] = {"type": "text", "text": ""}
        elif isinstance(event, ReasoningDelta):
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            block = {"type": "tool_use", "id": _tool_id(event.id or ""), "name": event.name or "", "input": {}}
        started = _sse("content_block_start", {"index": self._index, "content_block": block})
        return started if self._index else started + PING  # as their own servers have it

    def _closed(self) -> list[bytes]:
        if self._open is None:
            return []
        made = []
        if self._open is ReasoningDelta:
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            made.append(_sse("content_block_delta", {"index": self._index, "delta": delta}))
        self._open = None
        return [*made, _sse("content_block_stop", {"index": self._index})]
