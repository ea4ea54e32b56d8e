"""For every dialect: the front that answers, and the generations of one HTTP request while they run.

A request has one or several prompts of n choices each; choice c of prompt p has the number p * n + c. It knows events,
no wire format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest

from octavo import logs
from octavo.async_llm import AsyncLLM, Prompt
from octavo.beam_search import BeamSearchParams, beam_search
from octavo.config import ServerConfig
from octavo.errors import ContextLengthExceeded, ModelNotServed, Unavailable
from octavo.flow import items, let_others
from octavo.request import ChatRequest, FinishReason, Usage
from octavo.sampling_params import SamplingParams
from octavo.server.crowd import Crowd
from octavo.server.health import Health
from octavo.server.kept import Kept
from octavo.server.limits import MAX_ANSWERS, check_count, decode, read_body
from octavo.server.metrics import Metrics
from octavo.server.quota import NOTHING, Accounts, Meter
from octavo.server.tenants import current
from octavo.server.tracing import Span, Tracing
from octavo.server.vector_calls import VectorCalls
from octavo.shelf import Shelf
from octavo.text.best_of import Answers
from octavo.text.events import Event, Finished, LogprobEntry, ReasoningDelta, TextDelta, ToolCallDelta

SEED_BITS = 53  # of seeds made here: a receipt that JavaScript can read as a number
log = logs.get("server")


@dataclass
class Front:
    """What every route is given."""

    llm: AsyncLLM
    names: tuple[str, ...]  # of the model; answers carry the first
    config: ServerConfig
    health: Health
    metrics: Metrics
    shelf: Shelf
    aliases: tuple[str, ...] = ()  # other names that requests may use; not listed
    created: int = field(default_factory=lambda: int(time.time()))
    tracing: Tracing | None = None
    kept: Kept = field(init=False)
    accounts: Accounts = field(init=False)
    crowd: Crowd = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(self.config.stream_grace)
        self.crowd = Crowd(lambda: self.llm.client.open_requests)
        self.accounts = Accounts(self.shelf.engine.state_path / "usage.json")

    @property
    def model(self) -> str:
        """The name in answers."""
        return self.names[0]

    def check_model(self, name: str | None) -> None:
        """ModelNotServed unless the name is one of this model's: `:latest` and nothing count as well."""
        if not name or name == "default" or self.config.any_model_name:
            return
        known = {*self.names, *self.aliases}
        if name not in known and name.removesuffix(":latest") not in known:
            raise ModelNotServed(name[:200], self.names)

    @cached_property
    def longest_text(self) -> int:
        """Characters beyond which a text cannot fit the context, whatever its tokens: counting them would take a core
        for seconds."""
        tokenizer = self.llm.tokenizer
        return self.llm.client.info.max_model_len * max(map(len, tokenizer.all_bytes()), default=1)

    def check_length(self, text: str, name: str) -> None:
        """ContextLengthExceeded for a text that cannot fit; the number of tokens is then a lower bound."""
        if len(text) > self.longest_text:
            limit = self.llm.client.info.max_model_len
            raise ContextLengthExceeded(limit, len(text) * limit // self.longest_text, param=name)

    async def body(self, request: HttpRequest, decoder: msgspec.json.Decoder[Any]) -> Any:
        """A request's body as its struct, within every limit."""
        if self.health.draining:
            raise Unavailable("The server is shutting down.", retry_after=10.0)
        return decode(decoder, await read_body(request.stream(), request.headers))

    @property
    def vectors(self) -> VectorCalls:
        """Embeddings and scores on the terms of the call, counted."""
        terms = current().terms(None, None, self.config.share_prefix_cache)
        return VectorCalls(self.llm.vectors.under(terms), self._meter)

    def _meter(self, usage: Callable[[], Usage]) -> Meter:
        """Of a request of the present call's tenant."""
        tenant = current().tenant
        return Meter(self.accounts.of(tenant), tenant, usage)

    def check_quota(self) -> None:
        """RateLimited or QueueFull, before any work, if the call's tenant may begin nothing; whether it may is settled
        at start."""
        tenant = current().tenant
        self.accounts.of(tenant).check(tenant)
        self.crowd.check(tenant.name)

    async def chat(
        self,
        chat: ChatRequest,
        *,
        salt: str | None = None,
        priority: int | None = None,
        beams: BeamSearchParams | None = None,
        add_special_tokens: bool = False,
    ) -> Answering:
        """The answer to a conversation, whatever dialect it came in: its prompt is that of the model's chat template.
        Raises InvalidRequest or ContextLengthExceeded before anything runs."""
        self.check_quota()
        for text in (each.get("content") for each in chat.messages):
            self.check_length(text if isinstance(text, str) else "", "messages")
        ready = await self.llm.prepare(chat)
        answering = await self.answer([ready], chat.params, add_special_tokens, salt, priority, beams)
        answering.told = dict(ready.told)
        return answering

    async def answer(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        add_special_tokens: bool,
        salt: str | None,
        priority: int | None,
        beams: BeamSearchParams | None = None,
    ) -> Answering:
        """Generations of all prompts, or beam searches. Raises InvalidRequest or ContextLengthExceeded before anything
        runs."""
        self.check_quota()
        most = max(params.n, params.best_of or 1, 0 if beams is None else beams.beam_width)
        check_count(len(prompts) * most, MAX_ANSWERS, "n", "answers in one request")
        begin, terms = time.perf_counter(), current().terms(salt, priority, self.config.share_prefix_cache)
        generations: list[Answers] = []
        for number, prompt in enumerate(prompts):
            await let_others(number)
            text = prompt if isinstance(prompt, str | Sequence) else prompt.text
            if isinstance(text, str):
                self.check_length(text, "prompt")
            placed: dict[str, Any] = {
                "add_special_tokens": add_special_tokens, "terms": terms, "seed_bits": SEED_BITS,
            }  # fmt: skip
            if beams is None:
                generations.append(await self.llm.submit(prompt, params, **placed))
            else:
                generations.append(await beam_search(self.llm, prompt, beams, params, **placed))
        answering = Answering(self.metrics, generations, begin, self._meter)
        if self.tracing is not None:
            answering.span = self.tracing.begin(time.perf_counter() - begin, self.model)
        return answering


class Answering:
    """The generations of one HTTP request, as a Flow of (number of the prompt, its new events)."""

    def __init__(
        self,
        metrics: Metrics,
        generations: Sequence[Answers],
        begin: float,
        meter: Callable[[Callable[[], Usage]], Meter],
    ) -> None:
        """begin: time.perf_counter() before tokenizing. meter: makes one of what tells how much was used."""
        self.generations = generations
        self.n = generations[0].request.params.n
        self.choices = len(generations) * self.n
        self._metrics = metrics
        self._begin = self._last = begin
        self._first: float | None = None
        self._left = len(generations)  # that are not done
        self.done = False
        self._ready: list[int] = []  # those with news
        self._news: Callable[[], None] = lambda: None
        self._failure: FinishReason | None = None
        self._closed = False
        self._meter = meter(self._spent)
        self.told: dict[str, str] = {}  # headers that say what was done to the request
        self.span: Span | None = None  # where traces are kept

    async def start(self, news: Callable[[], None]) -> None:
        self._news = news
        self._last = time.perf_counter() if self._first is not None else self._last  # a pause is no gap between tokens
        try:
            self._meter.begin()
            for number, generation in enumerate(self.generations):
                await let_others(number)
                if not generation.done:
                    await generation.start(partial(self._came, number))
                    self._ready.append(number)  # a paused one may have something
        except Exception:
            self._failure = FinishReason.ERROR
            raise

    def take(self) -> list[tuple[int, list[Event]]] | None:
        made = []
        ready, self._ready = self._ready, []
        try:
            for number in ready:
                generation = self.generations[number]
                events = generation.take()
                if events is not None:
                    made.append((number, events))
                    self._observe()
                    if generation.done:
                        self._left -= 1
                        self.done = not self._left
        except Exception:
            self._failure = FinishReason.ERROR
            raise
        return made or None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for generation in self.generations:
            generation.close()
            for reason in generation.reasons:
                self._metrics.finished(reason)
        self._meter.end()
        failure = self._failure or (FinishReason.ABORT if self._left else None)
        self._metrics.request_ended(self, failure)
        if self.span is not None:
            self.span.end(self, None if failure is None else str(failure))
        if log.isEnabledFor(logging.DEBUG):
            self._tell()

    def pause(self) -> None:
        """Give back what the engine holds; a second start() goes on with the same answers."""
        for generation in self.generations:
            if not generation.done:
                generation.pause()
        self._meter.end()

    def _came(self, number: int) -> None:
        self._ready.append(number)
        self._news()

    def _observe(self) -> None:
        now = time.perf_counter()
        if self._first is None:
            self._first = now
            self._metrics.first_token.observe(now - self._begin)
        else:
            self._metrics.gap.observe(now - self._last)
        self._last = now

    def _tell(self) -> None:
        """llama.cpp's two lines, for -v."""
        usage = self.usage
        first, following, _ = self.seconds
        after = usage.completion_tokens - self.choices
        for name, seconds, tokens in (
            ("prompt eval", first, usage.prompt_tokens - usage.cached_tokens), ("eval", following, after)
        ):  # fmt: skip
            if seconds > 0 and tokens > 0:
                each, rate = seconds * 1e3 / tokens, tokens / seconds
                log.debug(
                    "%s time = %.2f ms / %d tokens (%.2f ms per token, %.2f tokens per second)",
                    name, seconds * 1e3, tokens, each, rate,
                )  # fmt: skip

    # -- what is known of it -----------------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """Of all prompts together, so far."""
        each = [generation.usage for generation in self.generations]
        if len(each) == 1:
            return each[0]
        return Usage(
            sum(one.prompt_tokens for one in each),
            sum(one.completion_tokens for one in each),
            sum(one.cached_tokens for one in each),
            sum(one.reasoning_tokens for one in each),
        )

    def _spent(self) -> Usage:
        """What counts against the tenant: nothing of a request that failed before its first token."""
        return NOTHING if self._failure is not None and self._first is None else self.usage

    @property
    def seconds(self) -> tuple[float, float, float]:
        """To the first token, from there to the last one so far, in all."""
        first = self._last if self._first is None else self._first
        return first - self._begin, self._last - first, self._last - self._begin

    @property
    def queued(self) -> float:
        """Seconds that the prompt that waited longest waited in the engine."""
        return max(generation.prompt.queued for generation in self.generations)

    @property
    def longest(self) -> int:
        """Tokens of the longest choice."""
        return max(generation.longest for generation in self.generations)

    @property
    def params(self) -> SamplingParams:
        """Of the first prompt: they are alike but for the seed."""
        return self.generations[0].request.params

    @property
    def reasons(self) -> list[str]:
        """Why the choices ended that have."""
        return [str(reason) for generation in self.generations for reason in generation.reasons]

    @property
    def most(self) -> int | None:
        """Tokens that a choice may have."""
        return self.params.max_tokens

    @property
    def seed(self) -> int | list[int]:
        """The receipt: what repeats the answer; a list where each prompt has its own."""
        seeds = [generation.seed for generation in self.generations]
        return seeds[0] if len(set(seeds)) == 1 else seeds


@dataclass
class GatheredCall:
    """One call of a choice."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """A JSON text."""
        return "".join(self.pieces)


@dataclass
class Gathered:
    """One complete choice."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[GatheredCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobEntry] = field(default_factory=list)
    reason: str = "abort"
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, event: Event) -> None:
        """The choice's next event."""
        if isinstance(event, Finished):
            self.reason, self.stop_reason = str(event.reason), event.stop_reason
            return
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or ()
        if isinstance(event, TextDelta):
            self.texts.append(event.text)
        elif isinstance(event, ReasoningDelta):
            self.thoughts.append(event.text)
        else:
            self._add_call(event)

    def _add_call(self, event: ToolCallDelta) -> None:
        if event.call == len(self.tool_calls):
            self.tool_calls.append(GatheredCall(event.id or "", event.name or ""))
        self.tool_calls[event.call].pieces.append(event.arguments)


async def gather(answering: Answering) -> list[Gathered]:
    """Every choice, complete, in order."""
    choices = [Gathered() for _ in range(answering.choices)]
    async for batch in items(answering):
        for prompt, events in batch:
            for event in events:
                choices[prompt * answering.n + event.index].add(event)
    return choices
