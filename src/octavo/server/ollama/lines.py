"""Answers of chat and generate in Ollama's lines: newline-delimited JSON, durations in nanoseconds.

The last line of a stream carries the figures; a body is one line with all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from octavo.request import FinishReason
from octavo.server.openai import wire
from octavo.server.submit import Answering, Front, Gathered
from octavo.text.events import Delta, Event, Finished, LogprobEntry, ReasoningDelta, TextDelta, ToolCallDelta

_encode = msgspec.json.Encoder().encode


def now() -> str:
    """RFC 3339 with a fraction."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def line(value: object) -> bytes:
    return bytes(_encode(value)) + b"\n"


def loaded(model: str, chat: bool, reason: str) -> dict[str, Any]:
    """The answer to an empty prompt: the model is there, or may go."""
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": reason}


def call(name: str, arguments: str, index: int, id_: str) -> dict[str, Any]:
    """A tool call; arguments that the model broke off are given as the text that they are."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        value = arguments
    told = value if isinstance(value, dict) else {"arguments": value}
    return {"id": id_, "function": {"index": index, "name": name, "arguments": told}}


class Lines:
    """One answer. chat: messages, not texts. context: ids of the answer stand in the last line, behind the prompt's."""

    def __init__(self, front: Front, answering: Answering, model: str, chat: bool, top: int | None = None) -> None:
        """top: alternatives of each token, where log-probabilities are wanted."""
        self._answering = answering
        self._model = model
        self._chat = chat
        self._top = top
        self._token_bytes = front.llm.tokenizer.token_bytes
        self._call: ToolCallDelta | None = None  # the one that is being told
        self._arguments: list[str] = []
        self._ids: list[int] = []
        self._waiting: list[dict[str, Any]] = []  # log-probabilities of tokens without text
        self._reason = "stop"

    # -- a stream ----------------------------------------------------------------------------------------------------

    def pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        """A line for each piece of text; a call is told when it is complete."""
        made: list[bytes] = []
        for event in events:
            if isinstance(event, Finished):
                made += self._told_call()
                self._reason = _reason(str(event.reason))
                continue
            self._ids += event.token_ids
            if self._top is not None:
                self._waiting += self._entries(event.token_ids, event.logprobs or ())
            if isinstance(event, ToolCallDelta):
                if event.id is not None:
                    made += self._told_call()
                    self._call = event
                self._arguments.append(event.arguments)
            elif event.text:
                made += [*self._told_call(), self._text(event)]
        return made

    def last(self) -> bytes:
        """The line with the figures."""
        said = {"message": {"role": "assistant", "content": ""}} if self._chat else {"response": ""}
        return line({**self._head(), **said, **self._logprobs(), **self._figures(self._reason, self._ids)})

    def idle(self) -> bytes:
        """A line that says nothing, for clients that wait."""
        said = {"message": {"role": "assistant", "content": ""}} if self._chat else {"response": ""}
        return line({**self._head(), **said, "done": False})

    def _text(self, event: Delta) -> bytes:
        assert isinstance(event, TextDelta | ReasoningDelta)
        thinking = isinstance(event, ReasoningDelta)
        text, thought = ("", event.text) if thinking else (event.text, None)
        more = {"thinking": thought} if thinking else {}
        said = {"message": {"role": "assistant", "content": text, **more}} if self._chat else {"response": text, **more}
        return line({**self._head(), **said, "done": False, **self._logprobs()})

    def _told_call(self) -> list[bytes]:
        begun, self._call = self._call, None
        if begun is None:
            return []
        made = call(begun.name or "", "".join(self._arguments), begun.call, begun.id or "")
        self._arguments.clear()
        message = {"role": "assistant", "content": "", "tool_calls": [made]}
        return [line({**self._head(), "message": message, "done": False})]

    # -- a body ------------------------------------------------------------------------------------------------------

    def whole(self, choice: Gathered) -> dict[str, Any]:
        """The complete answer."""
        said: dict[str, Any] = {"content": choice.text} if self._chat else {"response": choice.text}
        if choice.reasoning:
            said["thinking"] = choice.reasoning
        if choice.tool_calls:
            calls = enumerate(choice.tool_calls)
            said["tool_calls"] = [call(each.name, each.arguments, index, each.id) for index, each in calls]
        if self._chat:
            said = {"message": {"role": "assistant", **said}}
        if self._top is not None:
            self._waiting = self._entries(choice.token_ids, choice.logprobs)
        return {**self._head(), **said, **self._logprobs(), **self._figures(_reason(choice.reason), choice.token_ids)}

    # -- parts -------------------------------------------------------------------------------------------------------

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now()}

    def _figures(self, reason: str, ids: Sequence[int]) -> dict[str, Any]:
        known, (first, following, total) = self._answering.usage, self._answering.seconds
        prompt = self._answering.generations[0].prompt.token_ids
        return {
            "done": True,
            "done_reason": reason,
            **({} if self._chat else {"context": [*prompt, *ids]}),
            "total_duration": int(total * 1e9),
            "load_duration": 0,
            "prompt_eval_count": known.prompt_tokens,
            "prompt_eval_duration": int(first * 1e9),
            "eval_count": known.completion_tokens,
            "eval_duration": int(following * 1e9),
        }

    def _logprobs(self) -> dict[str, Any]:
        made, self._waiting = self._waiting, []
        return {"logprobs": made} if made else {}

    def _entries(self, token_ids: Sequence[int], entries: Sequence[LogprobEntry]) -> list[dict[str, Any]]:
        made = []
        for id_, entry in zip(token_ids, entries, strict=True):
            likely = [self._token(entry, other) for other in wire.top(entry, self._top or 0)]
            made.append({**self._token(entry, id_), "top_logprobs": likely})
        return made

    def _token(self, entry: LogprobEntry, id_: int) -> dict[str, Any]:
        told = entry[id_]
        return {"token": told.decoded_token, "logprob": told.logprob, "bytes": list(self._token_bytes(id_))}


def _reason(reason: str) -> str:
    """Theirs are stop and length; what ended from outside is a length, too."""
    return "stop" if reason in (FinishReason.STOP, FinishReason.TOOL_CALLS) else "length"
