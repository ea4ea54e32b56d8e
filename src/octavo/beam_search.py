"""Beam search over an AsyncLLM: every step asks for one token of each beam, and the prefix cache makes that cheap.

As in transformers: `width` beams; a step takes the 2 * width likeliest ids of each; an end id among the `width` best
completes a beam (in vLLM any end id does); the `n` best come back. The score of a beam is its log-probability over its
length to the power of length_penalty, the length being the answer's (vLLM counts the prompt, too). Probabilities are
those of the model's own logits: no sampler has a part in them. It knows ids and scores, no HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from octavo.async_llm import AsyncLLM, Prompt, PromptIds, gather
from octavo.errors import DeadlineExceeded, InvalidRequest
from octavo.generation import Generation, new_output
from octavo.request import FinishReason, Request, Usage
from octavo.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from octavo.text.events import Event, LogprobEntry, PromptFacts

MAX_WIDTH = MAX_TOP_LOGPROBS // 2  # a step needs the 2 * width likeliest ids of each beam


@dataclass(frozen=True)
class BeamSearchParams:
    """vLLM's name and fields. include_stop_str_in_output: the end id's text is kept."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        if not (type(self.beam_width) is int and 1 <= self.beam_width <= MAX_WIDTH):
            raise InvalidRequest(
                f"beam_width must be a whole number from 1 to {MAX_WIDTH}, got {self.beam_width!r}.", param="beam_width"
            )
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not -10 <= penalty <= 10:
            raise InvalidRequest(
                f"length_penalty must be a number from -10 to 10, got {penalty!r:.40}.", param="length_penalty"
            )


@dataclass(frozen=True)
class Beam:
    """An answer under way. entries: log-probabilities of each id and of those that stood beside it."""

    ids: tuple[int, ...] = ()
    logprob: float = 0.0
    entries: tuple[LogprobEntry, ...] = ()
    ended: bool = False

    def score(self, length_penalty: float, length: int | None = None) -> float:
        """Greater is better. length: as if it had so many ids."""
        return self.logprob / math.pow(length or len(self.ids) or 1, length_penalty)


class BeamSearch:
    """A search under way, as a Flow of events (text.best_of.Answers); all of them come at its end."""

    def __init__(self, llm: AsyncLLM, request: Request, prompt: PromptFacts, params: BeamSearchParams) -> None:
        """request: of AsyncLLM.request_of; its params.n is how many beams are given back."""
        self.request = request
        self.prompt = prompt
        self._llm = llm
        self._params = params
        self._ends = () if params.ignore_eos else (*llm.tokenizer.eos_ids, *request.params.stop_token_ids)
        self._best: list[Beam] = []
        self.done = False
        self.reasons: list[FinishReason] = []
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def usage(self) -> Usage:
        """Of the beams that are given back."""
        return Usage(len(self.prompt.token_ids), sum(len(beam.ids) for beam in self._best), self.prompt.cached_tokens)

    @property
    def longest(self) -> int:
        return max((len(beam.ids) for beam in self._best), default=0)

    @property
    def seed(self) -> int:
        return self.request.seed

    async def start(self, news: Callable[[], None]) -> None:
        self._task = asyncio.create_task(self._run(news))

    def take(self) -> list[Event] | None:
        if self._error is not None:
            raise self._error
        if not self._best or self.done:
            return None
        self.done = True
        self.reasons = [FinishReason.STOP if beam.ended else FinishReason.LENGTH for beam in self._best]
        return [event for index, beam in enumerate(self._best) for event in self._events(index, beam)]

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        """A second start() searches anew."""
        self.close()

    async def _run(self, news: Callable[[], None]) -> None:
        try:
            self._best = (await self._search())[: self.request.params.n]
        except Exception as error:  # raised by take(): nobody else waits for the task
            self._error = error
        news()

    async def _search(self) -> list[Beam]:
        """The beams in order, the best first."""
        width, penalty, most = self._params.beam_width, self._params.length_penalty, self._params.max_tokens
        running, ended = [Beam()], []
        for length in range(1, most + 1):
            try:
                grown = [beam for each in await self._step(running) for beam in each]
            except DeadlineExceeded:
                if length == 1:
                    raise
                break  # with what there is
            grown.sort(key=lambda beam: -beam.logprob)  # all of one length; sort() keeps the order of equal ones
            ended += [beam for beam in grown[:width] if beam.ended]
            running = [beam for beam in grown if not beam.ended][:width]
            ended = sorted(ended, key=lambda beam: -beam.score(penalty))[:width]
            # A running beam can at best keep its log-probability, which is below 0, at the length that is best for it.
            longest = most if penalty > 0 else length
            hope = max((beam.score(penalty, longest) for beam in running), default=float("-inf"))
            if not running or (len(ended) == width and ended[-1].score(penalty) >= hope):
                break
        return sorted([*ended, *running], key=lambda beam: -beam.score(penalty))

    async def _step(self, beams: Sequence[Beam]) -> list[list[Beam]]:
        """Each beam with each of its likeliest next ids."""
        params = SamplingParams(
            temperature=0, max_tokens=1, logprobs=2 * self._params.beam_width, ignore_eos=True, detokenize=False
        )
        calls = []
        for beam in beams:
            ids: PromptIds = (*self.prompt.token_ids, *beam.ids)
            asked = await self._llm.request_of(ids, params, terms=self.request.terms)
            calls.append(Generation(self._llm.client, self._llm.tokenizer, *asked, patient=True))
        made = []
        for beam, output in zip(beams, await asyncio.gather(*(gather(call) for call in calls)), strict=True):
            (entry,) = output.outputs[0].logprobs or [{}]
            made.append(
                [
                    Beam((*beam.ids, id_), beam.logprob + found.logprob, (*beam.entries, entry), id_ in self._ends)
                    for id_, found in entry.items()
                ]
            )
        return made

    def _events(self, index: int, beam: Beam) -> list[Event]:
        """A beam as the events of a choice."""
        target = new_output(self._llm.tokenizer, self.request, index)
        hidden = beam.ended and not self._params.include_stop_str_in_output
        shown = len(beam.ids) - hidden
        wanted = self.request.params.logprobs
        entries = None
        if wanted is not None:
            entries = [_most_likely(entry, id_, wanted) for id_, entry in zip(beam.ids, beam.entries, strict=True)]
        events = target.push(beam.ids[:shown], None if entries is None else entries[:shown])
        if hidden:
            target.hide(beam.ids[-1], None if entries is None else entries[-1])
        return events + target.finish(self.reasons[index])


def _most_likely(entry: LogprobEntry, chosen: int, most: int) -> LogprobEntry:
    """The chosen id first, then the most likely ones, as everywhere."""
    ranked = {id_: each for id_, each in entry.items() if each.rank is not None and each.rank <= most}
    return {chosen: entry[chosen], **ranked}


async def beam_search(
    llm: AsyncLLM, prompt: Prompt, params: BeamSearchParams, given: SamplingParams, **placed: object
) -> BeamSearch:
    """A search for the answers to one prompt. given: n, logprobs, stop_token_ids and seed count. placed: as for
    AsyncLLM.submit. Raises InvalidRequest or ContextLengthExceeded before anything runs."""
    if given.n > params.beam_width:
        raise InvalidRequest(f"n must be at most beam_width ({params.beam_width}), got {given.n}.", param="n")
    if given.stop or given.prompt_logprobs is not None:
        name = "stop" if given.stop else "prompt_logprobs"
        raise InvalidRequest(f"{name} is not supported with beam search.", param=name)
    request, facts = await llm.request_of(prompt, replace(given, max_tokens=params.max_tokens), **placed)  # type: ignore[arg-type]
    room = request.params.max_tokens or 1
    return BeamSearch(llm, request, facts, replace(params, max_tokens=min(params.max_tokens, room)))
