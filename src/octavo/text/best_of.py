"""best_of: many answers to one prompt, of which the n best are given back. A Flow of events over another one.

The best are those of the highest mean log-probability a token, as the OpenAI API has it; among equal ones the first.
Nothing comes before all answers are there. It knows events, not how they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from msgspec.structs import replace as changed

from octavo.request import FinishReason, Request, Usage
from octavo.text.events import Event, Finished, PromptFacts


class Answers(Protocol):
    """A request under way, as a Flow of lists of events: async_llm.Generation, and what stands for one."""

    request: Request
    prompt: PromptFacts
    done: bool  # everything has been taken
    reasons: list[FinishReason]  # of the choices that have ended

    @property
    def usage(self) -> Usage:
        """Of all answers."""

    @property
    def longest(self) -> int:
        """Tokens of the longest."""

    @property
    def seed(self) -> int:
        """What repeats them."""

    async def start(self, news: Callable[[], None]) -> None:
        """Begin."""

    def take(self) -> list[Event] | None:
        """New events."""

    def close(self) -> None:
        """Abort what is open."""

    def pause(self) -> None:
        """Give back what the engine holds; a second start() goes on with the same answers."""


class BestOf:
    """The n best of the inner flow's choices, renumbered from the best on."""

    def __init__(self, inner: Answers, n: int, logprobs: int | None) -> None:
        """logprobs: what was asked for; the inner flow has them in any case."""
        params = replace(inner.request.params, n=n, best_of=None, logprobs=logprobs)
        self.request = replace(inner.request, params=params)
        self.prompt = inner.prompt
        self._inner = inner
        self.done = False
        self.reasons: list[FinishReason] = []
        self._events: list[list[Event]] = [[] for _ in range(inner.request.params.n)]

    @property
    def usage(self) -> Usage:
        """Of all answers, the dropped ones too."""
        return self._inner.usage

    @property
    def longest(self) -> int:
        return self._inner.longest

    @property
    def seed(self) -> int:
        return self._inner.seed

    async def start(self, news: Callable[[], None]) -> None:
        await self._inner.start(news)

    def take(self) -> list[Event] | None:
        for event in self._inner.take() or ():
            self._events[event.index].append(event)
        if not self._inner.done or self.done:
            return None
        self.done = True
        ranked = sorted(range(len(self._events)), key=lambda choice: -mean_logprob(self._events[choice]))
        made: list[Event] = []
        for place, choice in enumerate(ranked[: self.request.params.n]):
            made += [self._renumbered(event, place) for event in self._events[choice]]
        self.reasons = [event.reason for event in made if isinstance(event, Finished)]
        return made

    def close(self) -> None:
        self._inner.close()

    def pause(self) -> None:
        self._inner.pause()

    def _renumbered(self, event: Event, place: int) -> Event:
        if isinstance(event, Finished) or self.request.params.logprobs is not None:
            return changed(event, index=place)
        return changed(event, index=place, logprobs=None)


def mean_logprob(events: list[Event]) -> float:
    """A token of one choice; -inf for an answer without tokens."""
    total, count = 0.0, 0
    for event in events:
        if not isinstance(event, Finished):
            total += sum(entry[id_].logprob for id_, entry in zip(event.token_ids, event.logprobs or (), strict=True))
            count += len(event.token_ids)
    return total / count if count else float("-inf")
