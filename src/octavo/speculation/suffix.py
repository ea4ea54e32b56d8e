"""Suffix decoding: what most often followed where the longest suffix of the ids stood in prompt or answer before.

Source: G. Oliaro et al., SuffixDecoding, arXiv:2411.04975. There a suffix tree of earlier answers counts continuations;
here the places in the sequence's own ids at which its longest suffix stands vote, found by hash chains. The guess goes
on while enough of the votes agree. It knows nothing of how often a guess was right.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.speculation.occurrences import Occurrences, common
from octavo.speculation.proposer import NOTHING, Proposal

LONGEST = 64  # a longer match says nothing more
LOOKED_AT = 32  # occurrences compared at most: 0.3 us each, more where matches are long
LEAST_SHARE = 0.3  # of the votes, for the id that is guessed next


class SuffixProposer:
    """Guesses by the votes of the places where the longest suffix stands."""

    def __init__(self) -> None:
        self._occurrences = Occurrences()

    def propose(self, ids: Sequence[int], limit: int) -> Proposal:
        """The ids that most places agree on."""
        self._occurrences.extend(ids)
        if len(ids) < 2:
            return NOTHING
        best = 1
        votes: list[int] = []
        for looked, place in enumerate(self._occurrences.places(ids[-2], ids[-1])):
            if looked == LOOKED_AT:
                break
            count = common(ids, place, ids, LONGEST)
            if count > best:
                best, votes = count, []
            if count == best:
                votes.append(place)
        return Proposal(_agreed(ids, votes, limit), best) if votes else NOTHING


def _agreed(ids: Sequence[int], votes: list[int], limit: int) -> list[int]:
    """The continuation of the places that agree, id by id; among equals the latest place wins."""
    made: list[int] = []
    least = LEAST_SHARE * len(votes)
    while len(made) < limit:
        if len(votes) == 1:
            return made + list(ids[votes[0] : votes[0] + limit - len(made)])
        counts: dict[int, int] = {}
        for place in votes:
            if place < len(ids):
                counts[ids[place]] = counts.get(ids[place], 0) + 1
        chosen = max(counts, key=counts.__getitem__, default=-1)
        if chosen < 0 or counts[chosen] < least:
            break
        made.append(chosen)
        votes = [place + 1 for place in votes if place < len(ids) and ids[place] == chosen]
    return made
