"""The nouns of a request, each complete when made: ChatRequest, Request, and what users get back.

ChatRequest is what every HTTP dialect means; Request is what the engine runs (ids, parameters, seed); RequestOutput has
vLLM's names and shapes. Nothing here knows how a request is carried out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.sampling_params import SamplingParams


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an eos id, a stop id or a stop string
    LENGTH = "length"  # max_tokens or the context's end
    TOOL_CALLS = "tool_calls"  # the model called functions and waits for their results
    ABORT = "abort"  # the client left or asked for it
    ERROR = "error"  # this request failed; others go on


TOOL_CHOICES = ("auto", "required", "none")  # and names of functions


@dataclass(frozen=True)
class Reasoning:
    """What a request asks of the model's reasoning.

    enabled: None is the model's own way. effort: a word that some templates read (minimal, low, medium, high, ...).
    budget: tokens after which the end of reasoning is forced; None is no limit, 0 no reasoning. exclude: it is left out
    of the answer, though its tokens count.
    """

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    exclude: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """A conversation as the user sent it. `messages`: dicts with role and content in the shape of the OpenAI API.

    chat_template: a name among the model's, or one that was sent along (rendered in a killable worker only).
    tool_choice: `auto`, `required`, `none`, or the name of the function that must be called.
    """

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()  # functions the model may call, as in the OpenAI API
    documents: Sequence[Mapping[str, Any]] = ()  # what to answer from: objects with title and text
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True  # False: one call an answer at most
    reasoning: Reasoning = Reasoning()


@dataclass(frozen=True)
class Terms:
    """On what terms a request runs. salt: parts the caches of tenants. tenant: whose share of the engine it counts
    against, of this weight. priority: lower runs first, as in vLLM. deadline: time.monotonic() when it must be over."""

    salt: str = ""
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline: float | None = None


@dataclass(frozen=True)
class Resume:
    """What a new engine needs to go on with a choice: the ids that the front has already seen, and Mirostat's mu after
    them. done: nothing more of it is wanted."""

    choice: int
    emitted_ids: tuple[int, ...]
    mu: float | None = None
    done: bool = False


@dataclass(frozen=True)
class Request:
    """What the engine runs: one prompt, params.n choices.

    seed: 64-bit key of the sampler, made in the front when the user gave none. terms: flat, as the engine reads them at
    every step; it leaves the deadline to the front. resume: one entry per choice that had emitted ids, or was over,
    when an engine died.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # params.bad_words, tokenized by the front
    breaker_bits: bytes = b""  # params.dry_sequence_breakers as a mask of ids, bit id % 8 of byte id / 8
    salt: str = ""
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline: float | None = None
    resume: tuple[Resume, ...] = ()
    second: int | None = None  # position at which the second text of a pair begins; for encoders

    @property
    def terms(self) -> Terms:
        return Terms(self.salt, self.tenant, self.weight, self.priority, self.deadline)


@dataclass(frozen=True, slots=True)
class Logprob:
    """vLLM's Logprob: raw log-probability, rank in the vocabulary (1 = most likely), text of the token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of completion_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class CompletionOutput:
    """One choice of a RequestOutput; vLLM's names."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """What LLM.generate returns for a prompt; vLLM's names."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
