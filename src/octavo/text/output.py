"""The way back of one choice: ids -> detokenizer -> stop strings -> events.

It keeps every token with the text that it ends, so that token ids and logprobs go out when their text does. It does not
know who produces the ids, and it finds no eos: the engine says when a choice ends, this file when a stop string does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.request import FinishReason
from octavo.text.events import Event, Finished, LogprobEntry, TextDelta
from octavo.text.stop import StopStrings
from octavo.tokenizer.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Stopped:
    """A choice that a stop string ended: how many of its output tokens count (the last one completed the string)."""

    tokens: int
    stop: str


class Output:
    """One choice of a request. `tokens` counts what was taken in and not discarded: completion_tokens of usage."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        index: int = 0,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._index = index
        self._stops = StopStrings(stop, include_stop_str_in_output)
        self._plain = not stop  # text waits for no stop string
        self._min_tokens = min_tokens
        self._waiting: deque[tuple[int, int, LogprobEntry | None]] = deque()  # (where its text ends, id, logprobs)
        self._length = 0  # characters out of the detokenizer
        self._released = 0  # characters out of the stop strings
        self.finished = False  # nothing follows
        self.tokens = 0
        self.stopped: Stopped | None = None

    def push(self, token_ids: Sequence[int], logprobs: Sequence[LogprobEntry] | None = None) -> list[Event]:
        """Events of the next ids, one for each that brings text; logprobs has one entry for each id. Ids after a stop
        string are discarded: the caller looks at `stopped` and tells the engine. A stop string before `min_tokens`
        tokens does not count."""
        events: list[Event] = []
        if self.finished:
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
            if piece:
                text = self._stops.push(piece, ignore=self.tokens <= self._min_tokens)
                if self._stops.matched is not None:
                    return events + self._stop(text)
                if text:
                    self._released += len(text)
                    events.append(self._delta(text))
        return events

    def hide(self, token_id: int, entry: LogprobEntry | None = None) -> None:
        """Take in a stop id: it counts and is given back, but its text is not part of the answer."""
        if not self.finished:
            self.tokens += 1
            self._waiting.append((self._length, token_id, entry))

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> list[Event]:
        """The engine ended the choice: what was held back, then Finished. Nothing if it has ended already."""
        if self.finished:
            return []
        text = self._stops.push(self._detokenizer.finish(), ignore=self.tokens <= self._min_tokens)
        if self._stops.matched is not None:
            return self._stop(text)
        return self._end(text + self._stops.finish(), reason, stop_reason)

    def _stop(self, text: str) -> list[Event]:
        matched = self._stops.matched or ""
        self.stopped = Stopped(self.tokens, matched)
        return self._end(text, FinishReason.STOP, matched)

    def _end(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> list[Event]:
        self.finished = True
        self._released = self._length  # every counted token goes out, also those of a removed stop string
        events: list[Event] = [self._delta(text)] if text or self._waiting else []
        return [*events, Finished(self._index, reason, stop_reason)]

    def _delta(self, text: str) -> TextDelta:
        ids: list[int] = []
        entries: list[LogprobEntry] = []
        while self._waiting and self._waiting[0][0] <= self._released:
            _, id_, entry = self._waiting.popleft()
            ids.append(id_)
            if entry is not None:
                entries.append(entry)
        return TextDelta(self._index, text, tuple(ids), tuple(entries) if entries else None)
