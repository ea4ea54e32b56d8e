"""Constrained sequences in the engine's turn: which requests wait for their grammars, which rows for their masks.

EngineCore calls it between and around its steps; grammars.py is made with the first request that needs it, so that
others pay nothing. It knows no process and no pipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.engine.grammars import Grammars, GrammarSetup
from octavo.engine.messages import ChoiceOutput
from octavo.engine.roster import Roster
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Sequence
from octavo.errors import InvalidRequest, OctavoError
from octavo.execution.step import ExecutionFacts, Step
from octavo.request import FinishReason, Request


@dataclass
class Settled:
    """What became of requests and sequences since the last turn."""

    refused: list[tuple[str, OctavoError]] = field(default_factory=list)  # by request
    failed: list[tuple[Sequence, str]] = field(default_factory=list)  # why they cannot go on


class Constraints:
    """All of one engine. Its one thread uses it."""

    def __init__(self, setup: GrammarSetup | None, facts: ExecutionFacts, roster: Roster, scheduler: Scheduler) -> None:
        self._setup, self._facts = setup, facts
        self._roster, self._scheduler = roster, scheduler
        self._grammars: Grammars | None = None

    @property
    def waits(self) -> bool:
        """Whether a request waits for its grammar."""
        return self._grammars is not None and self._grammars.busy

    @property
    def cost(self) -> tuple[int, int]:
        """Masks made so far, and nanoseconds that they took."""
        return (0, 0) if self._grammars is None else self._grammars.cost

    # Requests

    def ask(self, request: Request, again: bool = False) -> None:
        """Take a request; it joins the roster once its grammar is compiled. Raises what is known of it already.
        again: see Roster.submit."""
        if self._grammars is None:
            if self._setup is None:
                raise InvalidRequest("This model has no structured output.", param="structured_outputs")
            self._grammars = Grammars(self._setup, self._facts.max_seqs, self._facts.vocab_size)
            self._roster.over = self._grammars.over
            self._scheduler.mask_there = self._mask_there
        self._grammars.ask(request, again)

    def cancel(self, request_id: str) -> list[ChoiceOutput]:
        """Forget a request that waits; its last outputs."""
        request = None if self._grammars is None else self._grammars.cancel(request_id)
        choices = 0 if request is None else request.params.n
        return [ChoiceOutput(request_id, choice, 0, [], finish=FinishReason.ABORT) for choice in range(choices)]

    def settle(self) -> Settled:
        """Between steps: requests whose grammars are compiled join the roster."""
        settled = Settled()
        if self._grammars is None:
            return settled
        answered, settled.failed = self._grammars.settle()
        for request, again, error in answered:
            try:
                if error is not None:
                    raise error
                self._roster.submit(request, again)
            except OctavoError as refusal:
                self._grammars.over(request.request_id)
                settled.refused.append((request.request_id, refusal))
        return settled

    # Sequences

    def before(self, step: Step, members: list[Sequence]) -> None:
        """Masks are wanted of sequences that enter slots, and no longer of those that have left them."""
        if self._grammars is None:
            return
        for slot in step.closes:
            self._grammars.closed(slot)
        if step.opens and self._roster.constrained:
            opened = {each.slot for each in step.opens}
            for sequence in members:
                if sequence.constrained and sequence.slot in opened:
                    self._grammars.opened(sequence)

    def learn(self, members: list[Sequence], ids: list[int]) -> None:
        """The next id of each."""
        if self._grammars is not None:
            for sequence, token in zip(members, ids, strict=True):
                if sequence.constrained:
                    self._grammars.feed(sequence.slot, token)

    def late(self, sequence: Sequence) -> bool:
        """Its mask was not there when the sampler came to it: its last row is computed again. True if there will be
        none, ever."""
        assert self._grammars is not None
        sequence.computed = len(sequence.ids) - 1
        if self._grammars.late(sequence):
            return True
        self._roster.late.add(sequence)
        return False

    def after(self) -> None:
        """A step's results have been taken in."""
        if self._grammars is not None:
            self._grammars.flush()

    def close(self) -> None:
        """End the process."""
        if self._grammars is not None:
            self._grammars.close()
            self._grammars = None

    def _mask_there(self, sequence: Sequence) -> bool:
        """Whether a sequence that lacked its mask may run again."""
        assert self._grammars is not None
        if not self._grammars.there(sequence):
            return False
        self._grammars.came(sequence)
        self._roster.late.discard(sequence)
        return True
