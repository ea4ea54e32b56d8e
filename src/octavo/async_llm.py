"""Both directions of a request, once for all dialects: a conversation or a prompt in, events out.

Template -> ids -> Request -> engine; ids -> detokenizer -> stop strings -> events. It knows no HTTP and no kernel: the
server's dialects translate to and from it, `LLM` is its synchronous face.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from octavo.checkpoints.pooling import Pooling
from octavo.engine.client import EngineClient
from octavo.engine.messages import ChoiceOutput
from octavo.errors import ContextLengthExceeded, InvalidRequest, OctavoError
from octavo.execution.step import TokenLogprobs
from octavo.flow import items
from octavo.request import (
    ChatRequest,
    CompletionOutput,
    FinishReason,
    Logprob,
    Request,
    RequestOutput,
    Usage,
)
from octavo.sampling_params import SamplingParams, pack_bad_words
from octavo.text.best_of import Answers, BestOf
from octavo.text.breakers import Breakers
from octavo.text.events import Delta, Event, Finished, LogprobEntry, PromptFacts, TextDelta
from octavo.text.fim import FillIn
from octavo.text.output import Output
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import LONG_TEXT, Tokenizer
from octavo.vectors import Vectors

INLINE_CHARACTERS = LONG_TEXT  # a longer text is tokenized in a thread: 2 MB/s would hold the event loop for 4 ms
INLINE_MESSAGES = 16  # rendering takes about 10 us a message
PromptIds = Sequence[int]


class Renderer(Protocol):
    """The chat template (text/prompt.py)."""

    @property
    def kind(self) -> str | None:
        """Whose template it is: `model`, `default`, or None."""

    def render(self, request: ChatRequest) -> str:
        """The prompt's text."""

    def close(self) -> None:
        """End the worker process of request-supplied templates."""


class Generation:
    """A request under way: a Flow of lists of events. Closing it early aborts the request."""

    def __init__(self, llm: AsyncLLM, request: Request, prompt: PromptFacts, *, patient: bool = False) -> None:
        """patient: see EngineClient.open."""
        self.request = request
        self.prompt = prompt
        self._llm = llm
        self._outputs: list[Output] = []
        self._open = set(range(request.params.n))  # choices
        self.done = False
        self.reasons: list[FinishReason] = []  # of the choices that have ended
        self._asked_stop_ids = llm.asked_stop_ids(request.params)
        self._stream = llm.client.open(request, patient)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.token_ids), sum(o.tokens for o in self._outputs), self.prompt.cached_tokens)

    @property
    def seed(self) -> int:
        """The seed that repeats this answer."""
        return self.request.seed

    async def start(self, news: Callable[[], None]) -> None:
        if not self._outputs:  # else it goes on after a pause
            self._outputs = [self._llm.new_output(self.request, choice) for choice in range(self.request.params.n)]
        await self._stream.start(news)

    def take(self) -> list[Event] | None:
        came = self._stream.take()
        if came is None:
            return None
        events: list[Event] = []
        for output in came:
            if output.error:
                raise OctavoError(output.error)
            choice = output.choice
            if choice in self._open:
                events += self._take(output)
                target = self._outputs[choice]
                if target.finished:
                    self._open.discard(choice)
                    last = events[-1]
                    assert isinstance(last, Finished)
                    self.reasons.append(last.reason)
                    if output.finish is None and target.stopped is not None:
                        self._stream.abort(choice, target.stopped.tokens)
        if not self._open:
            self.done = True
            self._stream.close()
        return events or None

    def close(self) -> None:
        self._stream.close()

    def pause(self) -> None:
        self._stream.pause()

    def _take(self, output: ChoiceOutput) -> list[Event]:
        if output.prompt is not None:
            self.prompt.cached_tokens = output.prompt.cached_tokens
            if output.prompt.prompt_logprobs is not None:
                self.prompt.logprobs = [None, *(self._llm.entry(each) for each in output.prompt.prompt_logprobs)]
        target, ids = self._outputs[output.choice], output.token_ids
        logprobs = None if output.logprobs is None else [self._llm.entry(each) for each in output.logprobs]
        if output.finish is None:
            return target.push(ids, logprobs)
        hidden = output.stop_id is not None and not self.request.params.include_stop_str_in_output
        shown = len(ids) - hidden
        events = target.push(ids[:shown], None if logprobs is None else logprobs[:shown])
        if hidden:
            target.hide(ids[-1], None if logprobs is None else logprobs[-1])
        asked_for = output.stop_id in self._asked_stop_ids
        return events + target.finish(FinishReason(output.finish), output.stop_id if asked_for else None)


class AsyncLLM:
    """A model behind an engine client."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        renderer: Renderer | None,
        defaults: Mapping[str, Any] | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        """defaults: sampling defaults of the model and the operator, for requests that leave them out. pooling: of a
        model that gives vectors in place of text."""
        self.client = client
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.defaults = dict(defaults or {})
        self.info = client.info
        self.breakers = Breakers(tokenizer, self.info.vocab_size)
        self._vectors = None if pooling is None else Vectors(client, tokenizer, pooling)

    @property
    def vectors(self) -> Vectors:
        """Embeddings and scores. Raises InvalidRequest for a model that generates text."""
        if self._vectors is None:
            raise InvalidRequest(
                "this model generates text; for embeddings start it with --task embed (and --pooling mean or last)."
            )
        return self._vectors

    @cached_property
    def fill_in(self) -> FillIn:
        """Prompts whose answer stands between two texts. Raises InvalidRequest for a model without tokens for it."""
        return FillIn(self.tokenizer)

    def default_sampling_params(self, **changes: Any) -> SamplingParams:
        """The server's defaults with `changes` over them; None counts as left out."""
        given = {name: value for name, value in changes.items() if value is not None}
        return SamplingParams(**{**self.defaults, **given})

    async def submit(
        self,
        prompt: str | PromptIds,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        add_special_tokens: bool = True,
        salt: str = "",
        priority: int = 0,
        seed_bits: int = 64,
    ) -> Answers:
        """A Generation of a text or of ids. Raises InvalidRequest or ContextLengthExceeded before anything runs.

        seed_bits: of a seed that is made here, because the parameters have none."""
        best_of = params.best_of
        every = params
        if best_of is not None:
            every = replace(params, n=best_of, best_of=None, logprobs=params.logprobs or 0)
        request, facts = await self.request_of(
            prompt, every, request_id=request_id, add_special_tokens=add_special_tokens, salt=salt, priority=priority,
            seed_bits=seed_bits,
        )  # fmt: skip
        generation = Generation(self, request, facts)
        return generation if best_of is None else BestOf(generation, params.n, params.logprobs)

    async def request_of(
        self,
        prompt: str | PromptIds,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        add_special_tokens: bool = True,
        salt: str = "",
        priority: int = 0,
        seed_bits: int = 64,
    ) -> tuple[Request, PromptFacts]:
        """What the engine would be told of a text or of ids. Raises InvalidRequest or ContextLengthExceeded."""
        if isinstance(prompt, str):
            ids = await self.encode(prompt, add_special_tokens)
            facts = PromptFacts(ids, prompt)
        else:
            facts = PromptFacts(self._checked_ids(prompt))
        if self._vectors is not None:
            raise InvalidRequest("this model gives vectors, not text: use /v1/embeddings, /rerank or /score.")
        params = self._checked_params(len(facts.token_ids), params)
        seed = secrets.randbits(seed_bits) if params.seed is None else params.seed % 2**64
        words = tuple(ids for word in params.bad_words for ids in self._bad_word(word))
        pack_bad_words(words)  # refuses what does not fit
        breakers = self.breakers.bits(params.dry_sequence_breakers) if params.dry_multiplier > 0 else b""
        request = Request(
            request_id or f"req-{secrets.token_hex(12)}", facts.token_ids, params, seed, bad_word_ids=words,
            breaker_bits=breakers, salt=salt, priority=priority,
        )  # fmt: skip
        return request, facts

    async def submit_chat(self, chat: ChatRequest, *, request_id: str | None = None, salt: str = "") -> Answers:
        """A Generation of a conversation, through the model's chat template."""
        text = await self.render(chat)
        return await self.submit(text, chat.params, request_id=request_id, add_special_tokens=False, salt=salt)

    async def render(self, chat: ChatRequest) -> str:
        """The prompt that the chat template makes of a conversation."""
        if self.renderer is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions or --chat-template.")
        if _is_short(chat):
            return self.renderer.render(chat)
        return await asyncio.to_thread(self.renderer.render, chat)

    async def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of a text; long ones are tokenized in a thread, without the GIL."""
        if len(text) <= INLINE_CHARACTERS:
            return tuple(self.tokenizer.encode(text, add_special_tokens))
        return tuple(await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens))

    async def generate(
        self, prompt: str | PromptIds, params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """vLLM's shape: RequestOutputs that grow until `finished`."""
        params = params or self.default_sampling_params()
        async for output in collect(await self.submit(prompt, params, request_id=request_id)):
            yield output

    async def close(self) -> None:
        await self.client.close()
        if self.renderer is not None:
            self.renderer.close()

    # -- what Generation needs ---------------------------------------------------------------------------------------

    def new_output(self, request: Request, choice: int) -> Output:
        params = request.params
        detokenizer = Detokenizer(
            self.tokenizer, params.skip_special_tokens, request.prompt_ids, params.spaces_between_special_tokens
        )
        return Output(detokenizer, choice, params.stop, params.include_stop_str_in_output, params.min_tokens)

    def asked_stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """Stop ids of the user's own: they are named as stop_reason, the model's end ids are not."""
        return frozenset(params.stop_token_ids) - frozenset(self.tokenizer.eos_ids)

    def entry(self, logprobs: TokenLogprobs) -> LogprobEntry:
        """{id: Logprob} of the chosen id and the most likely ones."""
        made = {logprobs.token_id: self._logprob(logprobs.token_id, logprobs.logprob, logprobs.rank)}
        for rank, (token_id, value) in enumerate(logprobs.top, 1):
            made.setdefault(token_id, self._logprob(token_id, value, rank))
        return made

    def _logprob(self, token_id: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.tokenizer.token_text(token_id))

    # -- checks ------------------------------------------------------------------------------------------------------

    def _checked_ids(self, ids: PromptIds) -> tuple[int, ...]:
        worst = max(ids, default=0)
        if min(ids, default=0) < 0 or worst >= self.info.vocab_size:
            raise InvalidRequest(
                f"prompt has the token id {worst if worst > 0 else min(ids)}, but ids go from 0 to "
                f"{self.info.vocab_size - 1}.",
                param="prompt",
            )
        return tuple(ids)

    def _checked_params(self, count: int, params: SamplingParams) -> SamplingParams:
        """The parameters as the engine is told them, for a prompt of `count` ids."""
        limit = self.info.max_model_len
        if count == 0:
            raise InvalidRequest("prompt is empty: it must have at least one token.", param="prompt")
        if count >= limit:
            raise ContextLengthExceeded(limit, count)
        params.check_vocabulary(self.info.vocab_size)
        if params.structured_outputs is not None:
            raise InvalidRequest("structured_outputs are not supported yet.", param="structured_outputs")
        if params.min_tokens > limit - count:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}, but only {limit - count} tokens fit after the prompt.",
                param="min_tokens",
            )
        changed: dict[str, Any] = {}
        if params.max_tokens is None or params.max_tokens > limit - count:
            changed["max_tokens"] = limit - count  # clamped, never refused: clients ask for 64,000
        if not params.ignore_eos:  # ends of turn that only the tokenizer knows
            known = (*params.stop_token_ids, *self.info.eos_ids)
            if more := tuple(token for token in self.tokenizer.eos_ids if token not in known):
                changed["stop_token_ids"] = (*params.stop_token_ids, *more)
        return replace(params, **changed) if changed else params

    def _bad_word(self, word: str) -> list[tuple[int, ...]]:
        """Ids of a bad word at the start of a text and after a space, as vLLM does."""
        plain, spaced = self.tokenizer.encode(word), self.tokenizer.encode(" " + word.lstrip())
        made = {tuple(plain), tuple(spaced)}
        return sorted(ids for ids in made if ids)


def _is_short(chat: ChatRequest) -> bool:
    """The model's own template renders it in less time than a thread takes to start on it (0.2 ms)."""
    more = chat.chat_template_kwargs or chat.tools or chat.documents
    if chat.chat_template is not None or more or len(chat.messages) > INLINE_MESSAGES:
        return False
    texts = [text for message in chat.messages if isinstance(text := message.get("content"), str)]
    return len(texts) == len(chat.messages) and sum(map(len, texts)) <= INLINE_CHARACTERS


class _Collector:
    """Events of a generation -> vLLM's RequestOutput."""

    def __init__(self, generation: Answers) -> None:
        params = generation.request.params
        total = None if params.logprobs is None else 0.0
        self._generation = generation
        self._text = params.detokenize
        self._choices = [
            CompletionOutput(i, "", [], total, None if params.logprobs is None else []) for i in range(params.n)
        ]

    def take(self, events: list[Event]) -> None:
        for event in events:
            choice = self._choices[event.index]
            if isinstance(event, Finished):
                choice.finish_reason, choice.stop_reason = str(event.reason), event.stop_reason
            else:
                _append(choice, event, self._text)

    def output(self) -> RequestOutput:
        """What there is so far; its choices grow with the next events."""
        prompt = self._generation.prompt
        return RequestOutput(
            self._generation.request.request_id,
            prompt.text,
            list(prompt.token_ids),
            prompt.logprobs,
            self._choices,
            all(choice.finished() for choice in self._choices),
            prompt.cached_tokens,
        )


async def collect(generation: Answers) -> AsyncIterator[RequestOutput]:
    """RequestOutputs, one after each batch of events, cumulative."""
    collector = _Collector(generation)
    async for events in items(generation):
        collector.take(events)
        yield collector.output()


async def gather(generation: Answers) -> RequestOutput:
    """The finished RequestOutput."""
    collector = _Collector(generation)
    async for events in items(generation):
        collector.take(events)
    return collector.output()


def _append(choice: CompletionOutput, delta: Delta, text: bool) -> None:
    if text and isinstance(delta, TextDelta):
        choice.text += delta.text
    choice.token_ids += delta.token_ids
    if delta.logprobs is not None and choice.logprobs is not None:
        choice.logprobs += delta.logprobs
        ids = zip(delta.token_ids, delta.logprobs, strict=True)
        choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + sum(e[i].logprob for i, e in ids)
