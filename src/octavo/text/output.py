"""The way back of one choice: ids -> detokenizer -> stop strings -> reasoning, calls and text -> events.

It keeps every token with the text that it ends, so that token ids and logprobs go out when their text does. It does not
know who produces the ids, and it finds no eos: the engine says when a choice ends, this file when a stop string does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.request import FinishReason
from octavo.text.events import Event, Finished, LogprobEntry, ReasoningDelta, TextDelta, ToolCallDelta
from octavo.text.parsers.splitter import Kind, Parsing, Piece, Splitter
from octavo.text.stop import StopStrings
from octavo.tokenizer.detokenizer import Detokenizer

Told = tuple[tuple[int, ...], tuple[LogprobEntry, ...] | None]


@dataclass(frozen=True, slots=True)
class Stopped:
    """A choice that its text ended: how many of its output tokens count (the last one completed the end), and the stop
    string, empty where the only call that was allowed is complete."""

    tokens: int
    stop: str


class Output:
    """One choice of a request. `tokens` counts what was taken in and not discarded: completion_tokens of usage;
    `reasoning_tokens` those of them that came while the model reasoned."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        index: int = 0,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        parsing: Parsing | None = None,
    ) -> None:
        """parsing: how the text is to be read; None: it is all text."""
        self._detokenizer = detokenizer
        self._index = index
        self._stops = StopStrings(stop, include_stop_str_in_output)
        self._splitter = None if parsing is None else Splitter(parsing)
        self._silent = parsing is not None and parsing.exclude
        self._plain = not stop and parsing is None  # text waits for nothing
        self._min_tokens = min_tokens
        self._waiting: deque[tuple[int, int, LogprobEntry | None]] = deque()  # (where its text ends, id, logprobs)
        self._length = 0  # characters out of the detokenizer
        self._released = 0  # characters that are in events
        self.finished = False  # nothing follows
        self.tokens = 0
        self.reasoning_tokens = 0
        self.stopped: Stopped | None = None
        self.exceeded = False  # the budget of reasoning is used up: nothing is taken in before closed()
        self._budget = None if parsing is None else parsing.budget

    def push(self, token_ids: Sequence[int], logprobs: Sequence[LogprobEntry] | None = None) -> list[Event]:
        """Events of the next ids, one for each that brings text; logprobs has one entry for each id. Ids after a stop
        string are discarded: the caller looks at `stopped` and tells the engine. A stop string before `min_tokens`
        tokens does not count."""
        events: list[Event] = []
        if self.finished or self.exceeded:
            return events
        for position, id_ in enumerate(token_ids):
            piece = self._detokenizer.push_one(id_)
            self.tokens += 1
            self._length += len(piece)
            if piece and self._plain and logprobs is None and not self._waiting:  # the common case, quickly
                self._released = self._length
                events.append(TextDelta(self._index, piece, (id_,)))
                continue
            self._waiting.append((self._length, id_, None if logprobs is None else logprobs[position]))
            if self._splitter is not None and self._splitter.reasoning:
                self.reasoning_tokens += 1
            if piece:
                text = self._stops.push(piece, ignore=self.tokens <= self._min_tokens)
                if self._stops.matched is not None:
                    return events + self._stop(text)
                if text:
                    events += self._events(text)
                    if self._splitter is not None and self._splitter.done:
                        self.stopped = Stopped(self.tokens, "")
                        return events + self._end("", FinishReason.STOP, None)
            if self._budget is not None and self._is_beyond(self._budget):
                self.exceeded = True
                break
        return events

    def close_reasoning(self, token_ids: Sequence[int], logprobs: Sequence[LogprobEntry] | None) -> list[Event]:
        """Take in the ids that end reasoning beyond its budget; it has none from here on."""
        self.exceeded, self._budget = False, None
        return self.push(token_ids, logprobs)

    def hide(self, token_id: int, entry: LogprobEntry | None = None) -> None:
        """Take in a stop id: it counts and is given back, but its text is not part of the answer."""
        if not (self.finished or self.exceeded):
            self.tokens += 1
            self._waiting.append((self._length, token_id, entry))

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> list[Event]:
        """The engine ended the choice: what was held back, then Finished. Nothing if it has ended already, or goes on
        behind its reasoning."""
        if self.finished or self.exceeded:
            return []
        text = self._stops.push(self._detokenizer.finish(), ignore=self.tokens <= self._min_tokens)
        if self._stops.matched is not None:
            return self._stop(text)
        return self._end(text + self._stops.finish(), reason, stop_reason)

    def _is_beyond(self, budget: int) -> bool:
        """Whether reasoning ends here: not inside of a character."""
        reasons = self._splitter is not None and self._splitter.reasoning
        return reasons and self.reasoning_tokens >= budget and self._detokenizer.between_characters

    def _stop(self, text: str) -> list[Event]:
        matched = self._stops.matched or ""
        self.stopped = Stopped(self.tokens, matched)
        return self._end(text, FinishReason.STOP, matched)

    def _end(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> list[Event]:
        self.finished = True
        splitter = self._splitter
        if splitter is None:
            self._released = self._length  # every counted token goes out, also those of a removed stop string
            events: list[Event] = [TextDelta(self._index, text, *self._told())] if text or self._waiting else []
        else:
            events = self._split([*splitter.push(text), *splitter.finish()])
            self._released = self._length
            if self._waiting:
                events.append(TextDelta(self._index, "", *self._told()))
            if reason is FinishReason.STOP and splitter.calls:
                reason = FinishReason.TOOL_CALLS
        return [*events, Finished(self._index, reason, stop_reason)]

    def _events(self, text: str) -> list[Event]:
        """Of text that no stop string claims."""
        splitter = self._splitter
        if splitter is not None:
            events = self._split(splitter.push(text))
            if splitter.plain:  # reasoning is over and there are no functions: text goes the short way from here on
                self._released, self._splitter, self._plain = splitter.position, None, not self._stops.any
            return events
        self._released += len(text)
        return [TextDelta(self._index, text, *self._told())]

    def _split(self, pieces: list[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if self._silent and piece.kind is Kind.REASONING:
                continue  # its tokens go out with the next delta
            self._released = piece.end
            told = self._told()
            if piece.kind is Kind.TEXT:
                events.append(TextDelta(self._index, piece.text, *told))
            elif piece.kind is Kind.REASONING:
                events.append(ReasoningDelta(self._index, piece.text, *told))
            else:
                events.append(ToolCallDelta(self._index, piece.call, piece.id, piece.name, piece.text, *told))
        return events

    def _told(self) -> Told:
        """Ids and logprobs of the tokens whose text has gone out."""
        ids: list[int] = []
        entries: list[LogprobEntry] = []
        while self._waiting and self._waiting[0][0] <= self._released:
            _, id_, entry = self._waiting.popleft()
            ids.append(id_)
            if entry is not None:
                entries.append(entry)
        return tuple(ids), tuple(entries) if entries else None
