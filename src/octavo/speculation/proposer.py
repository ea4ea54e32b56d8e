"""What a speculative method is: a guess at the next ids of one sequence, made from ids alone.

A guess costs rows, never a token: the model samples every position itself, and guessed ids only decide how many
positions one step may compute (execution/step.py, RowRun.draft). A method knows no model, no scheduler, and not how far
its guesses will be believed (pace.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Proposal(NamedTuple):
    """Ids that may come next, and how many known ids before them a guess rests on (0: there is none)."""

    ids: Sequence[int]
    matched: int


NOTHING = Proposal((), 0)


class Proposer(Protocol):
    """The state of a method for one sequence."""

    def propose(self, ids: Sequence[int], limit: int) -> Proposal:
        """At most `limit` ids to come after `ids`, all known ids of the sequence: the same list at every call, which
        only grows. Takes time in the ids that are new since the last call."""
