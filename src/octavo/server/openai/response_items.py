"""Events -> output items of a response, and the events of its stream.

The rules of the stream are those that clients were measured to need: response.created first and response.completed
last, output_index on every event of an item, item_id and content_index on those of a text, an item and its part added
before their deltas.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from octavo.request import FinishReason
from octavo.server.openai import wire
from octavo.text.events import Delta, Event, Finished, LogprobEntry, ReasoningDelta, ToolCallDelta

encode = msgspec.json.Encoder().encode
Item = dict[str, Any]


class Items:
    """The items of one answer as they grow; every change comes back as (kind of event, its fields)."""

    def __init__(self, top: int | None, token_bytes: Callable[[int], bytes]) -> None:
        """top: alternatives of each token, where log-probabilities are wanted."""
        self.items: list[Item] = []
        self.reason = "abort"
        self._top = top
        self._token_bytes = token_bytes
        self._open: object = None  # what the last item is made of: a class of deltas, or the number of a call
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def take(self, events: Sequence[Event]) -> list[tuple[str, dict[str, Any]]]:
        """The changes that events make."""
        made = []
        for event in events:
            if isinstance(event, Finished):
                self.reason = str(event.reason)
                made += self._closed()
            elif isinstance(event, ToolCallDelta) or event.text:
                made += self._delta(event)
        return made

    def _delta(self, event: Delta) -> list[tuple[str, dict[str, Any]]]:
        kind: object = type(event)
        if isinstance(event, ToolCallDelta):
            kind = event.call
        made = []
        if kind != self._open:
            made += [*self._closed(), *self._begun(event)]
            self._open = kind
        text = event.arguments if isinstance(event, ToolCallDelta) else event.text
        if not text:
            return made
        self._texts.append(text)
        if isinstance(event, ToolCallDelta):
            return [*made, ("response.function_call_arguments.delta", {**self._place(), "delta": text})]
        if isinstance(event, ReasoningDelta):
            return [*made, ("response.reasoning_text.delta", {**self._place(), "content_index": 0, "delta": text})]
        logprobs = self._entries(event.token_ids, event.logprobs or ()) if self._top is not None else []
        self._logprobs += logprobs
        more = {"content_index": 0, "delta": text, "logprobs": logprobs}
        return [*made, ("response.output_text.delta", {**self._place(), **more})]

    def _begun(self, event: Delta) -> list[tuple[str, dict[str, Any]]]:
        item = _item(event)
        self.items.append(item)
        added = [("response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)})]
        if isinstance(event, ToolCallDelta):
            return added
        return [*added, ("response.content_part.added", {**self._place(), "content_index": 0, "part": _part(item, "")})]

    def _closed(self) -> list[tuple[str, dict[str, Any]]]:
        """The last item is complete."""
        if self._open is None:
            return []
        item, text, place = self.items[-1], "".join(self._texts), self._place()
        made: list[tuple[str, dict[str, Any]]] = []
        if item["type"] == "function_call":
            item["arguments"] = text or "{}"
            told = {**place, "arguments": item["arguments"], "name": item["name"]}
            made.append(("response.function_call_arguments.done", told))
        else:
            part = _part(item, text, self._logprobs)
            item["content"] = [part]
            kind = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            more = {} if kind == "reasoning_text" else {"logprobs": self._logprobs}
            made.append((f"response.{kind}.done", {**place, "content_index": 0, "text": text, **more}))
            made.append(("response.content_part.done", {**place, "content_index": 0, "part": part}))
        item["status"] = "incomplete" if self.reason == FinishReason.LENGTH else "completed"
        self._open, self._texts, self._logprobs = None, [], []
        return [*made, ("response.output_item.done", {"output_index": place["output_index"], "item": dict(item)})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _entries(self, token_ids: Sequence[int], entries: Sequence[LogprobEntry]) -> list[dict[str, Any]]:
        made = []
        for id_, entry in zip(token_ids, entries, strict=True):
            likely = [self._token(entry, other) for other in wire.top(entry, self._top or 0)]
            made.append({**self._token(entry, id_), "top_logprobs": likely})
        return made

    def _token(self, entry: LogprobEntry, id_: int) -> dict[str, Any]:
        told = entry[id_]
        return {"token": told.decoded_token, "logprob": told.logprob, "bytes": list(self._token_bytes(id_))}


def _item(event: Delta) -> Item:
    """A new item of an event's kind."""
    token = secrets.token_hex(16)
    if isinstance(event, ToolCallDelta):
        return {
            "id": f"fc_{token}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": event.id or f"call_{token}",
            "name": event.name or "",
            "arguments": "",
        }
    if isinstance(event, ReasoningDelta):
        return {"id": f"rs_{token}", "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
    return {"id": f"msg_{token}", "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _part(item: Item, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    if item["type"] == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
