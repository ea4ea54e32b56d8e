"""What a request gives back while it runs: text, reasoning and tool calls that are final, and its end.

Nouns only; they know no wire format. One is made for every token: a struct of msgspec takes 0.1 us, a frozen dataclass
0.8 us.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from octavo.request import FinishReason, Logprob

LogprobEntry = dict[int, Logprob]  # token id -> Logprob: the chosen token and the asked-for alternatives


@dataclass
class PromptFacts:
    """What is known of a prompt; the last three fields come with the first output. queued: seconds
    that it waited in the engine."""

    token_ids: tuple[int, ...]
    text: str | None = None
    cached_tokens: int = 0
    logprobs: list[LogprobEntry | None] | None = None
    queued: float = 0.0


class TextDelta(msgspec.Struct, frozen=True):
    """Text of one choice that will not change, and the tokens that it ends.

    Over a whole choice every counted token stands in exactly one delta of whatever kind, in order: those of a removed
    marker stand in the next one. `text` is empty only in a last delta that brings tokens without text (an eos id, a
    removed stop string). logprobs: one entry for each of token_ids, or None when none were asked for.
    """

    index: int  # the choice
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[LogprobEntry, ...] | None = None


class ReasoningDelta(msgspec.Struct, frozen=True):
    """The same for what the model thinks before it answers, without the markers around it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[LogprobEntry, ...] | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a call. The first one of a call has id and name and may have no arguments; later ones only add to
    them. The pieces of `arguments` joined are a JSON text: an object, unless the model broke it off."""

    index: int  # the choice
    call: int  # its place among the choice's calls
    id: str | None
    name: str | None
    arguments: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobEntry, ...] | None = None


class Finished(msgspec.Struct, frozen=True):
    """The end of one choice; nothing follows. stop_reason: the stop string or stop id that ended it, None otherwise."""

    index: int
    reason: FinishReason
    stop_reason: str | int | None = None


Delta = TextDelta | ReasoningDelta | ToolCallDelta
Event = Delta | Finished
