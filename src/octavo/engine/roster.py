"""Who is in the engine and where each waits: requests come, choices are promoted, preempted, finished.

Every sequence is in one place at a time (sequence.Place), and leaves with its slot and its blocks. It does not decide
who runs; the scheduler does.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from octavo.engine.cache_groups import CacheGroups
from octavo.engine.flight_record import request_digest
from octavo.engine.queue import RequestQueue
from octavo.engine.sequence import NO_SLOT, LiveRequest, Place, Sequence
from octavo.errors import ConfigError, InvalidRequest
from octavo.execution.layout import MAX_RUN_AHEAD, MAX_STOP_IDS
from octavo.execution.step import ExecutionFacts
from octavo.request import Request
from octavo.speculation.proposer import Proposer

MIN_PREFILL = 32  # tokens of waiting prefill that every step gets: the chunk at which kernels reach their full rate
BY_ORDER = attrgetter("order")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What start-up decided. step_seconds: time budget of a step. secret: key of the prefix hashes."""

    block_size: int = 16
    step_seconds: float = 0.1
    max_batched_tokens: int = 512
    max_queued: int = 1024
    prefix_caching: bool = True
    secret: bytes = b""
    eos_ids: tuple[int, ...] = ()
    run_ahead: int = MAX_RUN_AHEAD  # most decode steps in a native call; 1: none
    proposer: Callable[[], Proposer] | None = None  # makes the guesses of a sequence; None: no speculation
    draft_tokens: int = 15  # guessed ids of a sequence in a step at most
    patience: float = 60.0  # seconds after which a waiting request goes before every priority


class Roster:
    """Owns every sequence from submit to its end; all blocks come back with it."""

    def __init__(
        self, config: SchedulerConfig, facts: ExecutionFacts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.clock = clock
        self.cache = CacheGroups(facts, config.block_size, config.secret, config.prefix_caching)
        self.max_model_len = self.cache.capacity_tokens(facts.max_model_len)
        self.longest_prompt = self.max_model_len if facts.vector else self.max_model_len - 1
        self.whole = facts.whole
        self.max_rows = min(facts.max_rows, config.max_batched_tokens)
        if self.max_model_len < 2 or self.max_rows < 2:
            raise ConfigError(
                f"{facts.pages} pages and {self.max_rows} rows a step leave no room for a sequence; "
                "raise --kv-cache-memory or --max-num-batched-tokens.",
                flag="--kv-cache-memory",
            )
        # Decodes never crowd out the prefill that every step owes: slots are limited so that both fit.
        self.max_running = min(facts.max_seqs, max(1, self.max_rows - min(MIN_PREFILL, self.max_rows // 2)))
        self.queue = RequestQueue(config.max_queued, config.patience)
        self.running: list[Sequence] = []  # by order
        self.resumable: list[Sequence] = []  # by order
        self.forks: deque[Sequence] = deque()
        self.requests: dict[str, LiveRequest] = {}
        self.free_slots = list(range(self.max_running - 1, -1, -1))
        self.closes: list[int] = []  # slots left since the last step
        self.constrained = 0  # running sequences that need masks
        self.openings = 0  # of slots by such sequences so far
        self.late: set[Sequence] = set()  # of these, whose mask was not there in the last step
        self.over: Callable[[str], None] = lambda request_id: None  # called with every request that is done
        self._arrivals = 0

    def submit(self, request: Request, again: bool = False) -> LiveRequest:
        """Take a request. InvalidRequest, or QueueFull with its retry_after. again: for one that an engine has taken
        before the queue has no bound."""
        if request.request_id in self.requests:
            raise InvalidRequest(f"Request id {request.request_id!r} is in use.", param="request_id")
        longest = max((len(r.emitted_ids) for r in request.resume), default=0)
        if not request.prompt_ids or len(request.prompt_ids) + longest > self.longest_prompt:
            raise InvalidRequest(
                f"The prompt has {len(request.prompt_ids)} tokens; from 1 to {self.longest_prompt} fit.",
                param="prompt",
            )
        over = {resume.choice for resume in request.resume if resume.done}
        if len(over) >= request.params.n:
            raise InvalidRequest("Every choice of the request is over.", param="resume")
        if not again:
            self.queue.check_room(len(self.free_slots), request)
        params = request.params
        stop_ids = (() if params.ignore_eos else self.config.eos_ids) + tuple(params.stop_token_ids)
        stop_ids = tuple(dict.fromkeys(stop_ids))
        if len(stop_ids) > MAX_STOP_IDS:
            raise InvalidRequest(f"At most {MAX_STOP_IDS} stop ids, got {len(stop_ids)}.", param="stop_token_ids")
        limit = self.max_model_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt_ids) + params.max_tokens)
        live = LiveRequest(
            request,
            self._arrivals,
            self.clock(),
            limit,
            frozenset(stop_ids),
            stop_ids,
            request_digest(request.request_id),
        )
        self._arrivals += 1
        groups = len(self.cache.windows)
        live.sequences = [Sequence(live, choice, groups) for choice in range(params.n)]
        first, *others = [sequence for sequence in live.sequences if sequence.choice not in over]
        for sequence in live.sequences:
            sequence.place = Place.DONE if sequence.choice in over else Place.HELD
        live.open = 1 + len(others)
        live.held = bool(others)
        first.place = Place.QUEUED
        self.requests[request.request_id] = live
        self.queue.push(first)
        return live

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done, in whatever place: slot and blocks back. Not while a step is in flight."""
        place, live = sequence.place, sequence.live
        if place is Place.RUNNING:
            self.running.remove(sequence)
            self.leave_slot(sequence)
        elif place is Place.QUEUED:
            self.queue.remove(sequence)
        elif place is Place.RESUMABLE:
            self.resumable.remove(sequence)
        elif place is Place.FORK:
            self.forks.remove(sequence)
        elif place is Place.DONE:
            return
        self.queue.charge(sequence)
        sequence.place = Place.DONE
        sequence.source = None
        live.open -= 1
        if live.open == 0:
            self.queue.over(live)
            del self.requests[live.request.request_id]
            self.over(live.request.request_id)
        elif place is not Place.HELD:
            self._promote(live)

    def _promote(self, live: LiveRequest) -> None:
        """If nobody is left to compute the prompt for the held choices, the first of them does it."""
        held = [s for s in live.sequences if s.place is Place.HELD]
        if held and all(s.place in (Place.HELD, Place.DONE) for s in live.sequences):
            self.make_resumable(held[0])

    def make_resumable(self, sequence: Sequence) -> None:
        sequence.place = Place.RESUMABLE
        sequence.slack_seen = None
        insort(self.resumable, sequence, key=BY_ORDER)

    def leave_slot(self, sequence: Sequence) -> None:
        self.cache.release(sequence)
        self.closes.append(sequence.slot)
        self.free_slots.append(sequence.slot)
        sequence.slot = NO_SLOT
        if sequence.constrained:
            self.constrained -= 1
            self.late.discard(sequence)

    def prompt_done(self, sequence: Sequence) -> None:
        """The prompt of this sequence is in the cache: choices that waited for it may share it."""
        sequence.live.held = False
        for sibling in sequence.live.sequences:
            if sibling.place is Place.HELD:
                sibling.place = Place.FORK
                sibling.source = sequence
                self.forks.append(sibling)

    @property
    def waiting(self) -> int:
        """Sequences that are not running and not done."""
        held = sum(s.place is Place.HELD for live in self.requests.values() for s in live.sequences)
        return len(self.queue) + len(self.resumable) + len(self.forks) + held

    @property
    def idle(self) -> bool:
        return not self.requests
