"""A request while it lives in the engine: one Sequence per choice, and what they share.

Plain state with names; the scheduler moves it, cache_groups owns its blocks. It knows neither time nor other requests.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from octavo.engine.block_pool import NO_BLOCK
from octavo.engine.prefix_cache import PrefixNode
from octavo.execution.step import TokenLogprobs
from octavo.request import Request, Resume
from octavo.speculation.drafter import Drafter

NO_SLOT = -1


class Place(enum.Enum):
    """Where a sequence is. HELD: waits for choice 0 to compute the prompt. FORK: the prompt is there to be shared.
    RESUMABLE: was admitted before (preempted, or a choice that lost the one to share from) and waits again."""

    QUEUED = enum.auto()
    HELD = enum.auto()
    FORK = enum.auto()
    RESUMABLE = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True, eq=False)
class LiveRequest:
    """What the choices of one request share. `order`: lower is served first (priority, then arrival)."""

    request: Request
    arrival: int  # a counter, not a clock
    arrived_at: float  # monotonic seconds, for patience and statistics
    length_limit: int
    stop_ids: frozenset[int]
    slot_stop_ids: tuple[int, ...]
    digest: int  # 64 bits of the request id, for the flight record
    sequences: list[Sequence] = field(default_factory=list)
    open: int = 0  # choices that are not done
    held: bool = False  # choices wait until one of them has computed the prompt
    cached_tokens: int = -1  # prompt tokens found in the prefix cache when first admitted; -1: not admitted yet
    prompt_told: bool = False  # PromptOutput has been sent
    queued: float = 0.0  # seconds until it was first admitted

    @property
    def order(self) -> tuple[int, int]:
        return (self.request.priority, self.arrival)


class Sequence:
    """One choice. `ids` are the prompt's and the emitted ones; KV exists for positions below `computed`."""

    __slots__ = (
        "live", "choice", "order", "ids", "prompt_len", "length_limit", "place", "slot", "computed", "emitted",
        "blocks", "first_block", "keys", "tail", "hashed", "generation", "source", "prompt_logprobs", "next_logprob",
        "slack_seen", "stop_ids", "drafter", "request_id", "silent", "room", "mu", "constrained", "opening",
        "charged",
    )  # fmt: skip

    def __init__(self, live: LiveRequest, choice: int, groups: int) -> None:
        request = live.request
        resume = next((r for r in request.resume if r.choice == choice), Resume(choice, ()))
        emitted = resume.emitted_ids
        self.live = live
        self.request_id = request.request_id
        self.choice = choice
        self.order = (*live.order, choice)
        self.ids = [*request.prompt_ids, *emitted]
        self.prompt_len = len(request.prompt_ids)
        self.length_limit = live.length_limit
        self.stop_ids = live.stop_ids
        self.place = Place.QUEUED
        self.slot = NO_SLOT
        self.computed = 0
        self.emitted = len(emitted)  # ids that the front has been sent
        self.charged = len(self.ids)  # of `ids` that count in its tenant's share (shares.py)
        self.silent = True  # no step has given an output yet
        self.blocks: list[list[int]] = [[] for _ in range(groups)]  # per group; NO_BLOCK where freed or never needed
        self.room = 0  # tokens that the blocks of every group are known to hold
        self.first_block = [0] * groups  # first entry of blocks[g] that is held
        self.keys: list[bytes] = []  # chained keys: root, then one a block, made when first asked for
        self.tail: PrefixNode | None = None  # pinned: the node of the last block in the prefix cache
        self.hashed = 0  # blocks that the prefix cache has been told of
        self.generation = -1  # of the prefix cache, when tail was taken; -1: no longer hashed
        self.source: Sequence | None = None  # choice to share the prompt's blocks with
        wants = request.params.prompt_logprobs is not None and choice == 0 and not emitted and self.prompt_len > 1
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if wants else None
        self.next_logprob = 1 if wants else self.prompt_len  # first position whose prompt logprob is still to come
        self.opening = 0  # tells its masks apart from those of who was in the slot before
        self.constrained = request.params.structured_outputs is not None  # each id needs a mask (grammars.py)
        self.mu = resume.mu  # Mirostat's state after `ids`; None: at its beginning, or none
        self.drafter: Drafter | None = None  # made when it may first speculate
        self.slack_seen: int | None = None  # free blocks when admission failed last: no new try before there are more

    @property
    def remaining(self) -> int:
        """Known ids whose KV is not there; 1 is a decode row."""
        return len(self.ids) - self.computed

    @property
    def hit_limit(self) -> int:
        """At most this many tokens may come from the prefix cache: a row is left to sample from, and every row that a
        prompt logprob is asked of is computed."""
        limit = len(self.ids) - 1
        return min(limit, self.next_logprob - 1) if self.next_logprob < self.prompt_len else limit

    def held_blocks(self) -> int:
        return sum(len(blocks) - first for blocks, first in zip(self.blocks, self.first_block, strict=True))

    def owned(self) -> list[int]:
        """Every block held, over all groups."""
        return [block for blocks in self.blocks for block in blocks if block != NO_BLOCK]
