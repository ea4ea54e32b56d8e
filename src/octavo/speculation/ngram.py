"""Prompt lookup: what followed when the last n ids stood in prompt or answer before.

Source: A. Saxena, Prompt Lookup Decoding, 2023; N. Yang et al., Inference with Reference, arXiv:2304.04487; `ngram` of
vLLM. The longest n up to a bound wins, then the latest occurrence. It knows nothing of how often a guess was right.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.speculation.occurrences import Occurrences, common
from octavo.speculation.proposer import NOTHING, Proposal

LOOKED_AT = 32  # occurrences compared at most: 0.3 us each


class NgramProposer:
    """Guesses by the longest match of `shortest` to `longest` ids, shortest >= 2."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._shortest, self._longest = shortest, longest
        self._occurrences = Occurrences()

    def propose(self, ids: Sequence[int], limit: int) -> Proposal:
        """The ids after the latest of the longest matches."""
        self._occurrences.extend(ids)
        if len(ids) < 2:
            return NOTHING
        best, matched = 0, self._shortest - 1
        for looked, place in enumerate(self._occurrences.places(ids[-2], ids[-1])):
            if looked == LOOKED_AT:
                break
            count = common(ids, place, ids, self._longest)
            if count > matched:
                best, matched = place, count
                if matched == self._longest:
                    break
        return Proposal(ids[best : best + limit], matched) if best else NOTHING
