"""Both directions of a request, once for all dialects: a conversation or a prompt in, events out.

Template -> ids -> Request -> engine; ids -> detokenizer -> stop strings -> events. It knows no HTTP and no kernel: the
server's dialects translate to and from it, `LLM` is its synchronous face.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from octavo.checkpoints.pooling import Pooling
from octavo.engine.client import EngineClient
from octavo.errors import ContextLengthExceeded, InvalidRequest
from octavo.flow import items
from octavo.generation import Generation
from octavo.request import (
    ChatRequest,
    CompletionOutput,
    Request,
    RequestOutput,
    Terms,
)
from octavo.sampling_params import SamplingParams, pack_bad_words
from octavo.text.best_of import Answers, BestOf
from octavo.text.breakers import Breakers
from octavo.text.conversation import ReadyPrompt
from octavo.text.events import Delta, Event, Finished, PromptFacts, TextDelta
from octavo.text.fim import FillIn
from octavo.tokenizer.tokenizer import LONG_TEXT, Tokenizer
from octavo.vectors import Vectors

INLINE_CHARACTERS = LONG_TEXT  # a longer text is tokenized in a thread: 2 MB/s would hold the event loop for 4 ms
INLINE_MESSAGES = 16  # rendering takes about 10 us a message
NO_TERMS = Terms()
PromptIds = Sequence[int]
Prompt = str | PromptIds | ReadyPrompt  # the last of prepare(): with it comes how the answer is to be read


class Renderer(Protocol):
    """The chat template and its family's ways (text/conversation.py)."""

    @property
    def kind(self) -> str | None:
        """Whose template it is: `model`, `default`, or None."""

    @property
    def summary(self) -> str:
        """How functions and reasoning are dealt with, in a line."""

    def prepare(self, chat: ChatRequest) -> ReadyPrompt:
        """The prompt's text, and how its answer is to be read."""

    def close(self) -> None:
        """End the worker process of request-supplied templates."""


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
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        add_special_tokens: bool = True,
        terms: Terms = NO_TERMS,
        seed_bits: int = 64,
    ) -> Answers:
        """A Generation of a text or of ids. Raises InvalidRequest or ContextLengthExceeded before anything runs.

        seed_bits: of a seed that is made here, because the parameters have none."""
        parsing = None
        if isinstance(prompt, ReadyPrompt):
            parsing = prompt.parsing
            if prompt.constraint is not params.structured_outputs:
                params = replace(params, structured_outputs=prompt.constraint)
        best_of = params.best_of
        every = params
        if best_of is not None:
            every = replace(params, n=best_of, best_of=None, logprobs=params.logprobs or 0)
        request, facts = await self.request_of(
            prompt, every, request_id=request_id, add_special_tokens=add_special_tokens, terms=terms,
            seed_bits=seed_bits,
        )  # fmt: skip
        generation = Generation(self.client, self.tokenizer, request, facts, parsing)
        return generation if best_of is None else BestOf(generation, params.n, params.logprobs)

    async def request_of(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        add_special_tokens: bool = True,
        terms: Terms = NO_TERMS,
        seed_bits: int = 64,
    ) -> tuple[Request, PromptFacts]:
        """What the engine would be told of a text or of ids. Raises InvalidRequest or ContextLengthExceeded."""
        if isinstance(prompt, ReadyPrompt):
            prompt = prompt.text
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
            breaker_bits=breakers, **vars(terms),
        )  # fmt: skip
        return request, facts

    async def submit_chat(self, chat: ChatRequest, *, raw: bool = False) -> Answers:
        """A Generation of a conversation, through the model's chat template. raw: reasoning and calls come as the text
        that the model writes."""
        ready = await self.prepare(chat)
        ready = replace(ready, parsing=None) if raw else ready
        return await self.submit(ready, chat.params, add_special_tokens=False)

    async def render(self, chat: ChatRequest) -> str:
        """The prompt that the chat template makes of a conversation."""
        return (await self.prepare(chat)).text

    async def prepare(self, chat: ChatRequest) -> ReadyPrompt:
        """The same, and how its answer is to be read."""
        if self.renderer is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions or --chat-template.")
        if _is_short(chat):
            return self.renderer.prepare(chat)
        return await asyncio.to_thread(self.renderer.prepare, chat)

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
        if params.min_tokens > limit - count:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}, but only {limit - count} tokens fit after the prompt.",
                param="min_tokens",
            )
        changed: dict[str, Any] = {}
        if params.max_tokens is None or params.max_tokens > limit - count:
            changed["max_tokens"] = limit - count  # clamped, never refused: clients ask for 64,000
        if params.structured_outputs is not None:  # its end is an end id
            changed["ignore_eos"] = False
        if not params.ignore_eos or params.structured_outputs is not None:  # ends of turn that only the tokenizer knows
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
