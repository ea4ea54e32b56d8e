"""The drafts of one sequence: what its proposer guesses, cut to what its pace believes; and what became of them.

It knows ids, and the predicted seconds of steps; it does not know blocks, other sequences or the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.speculation.pace import Pace
from octavo.speculation.proposer import Proposer

SMOOTHING = 0.2  # weight of the newest draft in `copies`
COPYING = 1.0  # accepted ids a draft from which on plain steps are rather looked at one by one


class Drafter:
    """One sequence's guesses. At most one draft is open."""

    __slots__ = ("_matched", "_pace", "_proposer", "copies", "off")

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self._pace = Pace()
        self._matched = 0  # ids that the open draft rests on
        self.copies = 0.0  # accepted ids a draft, smoothed
        self.off = False

    def draft(
        self, ids: Sequence[int], limit: int, expected: float, seconds: Sequence[float]
    ) -> tuple[tuple[int, ...], float]:
        """At most `limit` ids that are worth a step's longer time, and how many ids the step is expected to give then.

        It is expected to give `expected` ids without them; seconds[i]: what it takes with i of them.
        """
        offered, self._matched = self._proposer.propose(ids, limit)
        if not offered:
            return (), expected
        length, expected = self._pace.length(len(offered), self._matched, expected, seconds)
        return tuple(offered[:length]), expected

    def learn(self, drafted: int, accepted: int) -> None:
        """The open draft of `drafted` ids was run, and its first `accepted` ids were sampled."""
        self._pace.learn(drafted, self._matched, accepted)
        self.copies += SMOOTHING * (accepted - self.copies)

    @property
    def copying(self) -> bool:
        """The text is being copied: a guess is likely to come back soon where there is none now."""
        return self.copies > COPYING
