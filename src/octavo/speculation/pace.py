"""How many guessed ids are worth their rows: the adaptive length.

A step of 1 + d rows takes longer than one of 1 row, and gives 1 id for sure and each further one with the probability
that all guesses up to it are right. The length with the most expected ids a second wins, 0 if plain decoding has it.
The probability that a guess is right is learned for each sequence, apart for guesses that rest on long and on short
matches (a guess that follows k right ones rests on k more). It knows no method and no model.

On free text guesses are mostly wrong, and few are then made: in answers of 80 ids to five prompts (Qwen2.5-Coder-1.5B,
four turns each beside plain decoding) 1 to 7 of 6 to 35 drafted ids were right, at 0.997 to 1.08 x the plain rate.
"""

from __future__ import annotations

from collections.abc import Sequence

# What is assumed of a guess that rests on 1, 2-3, 4-7, 8-15, 16-31, 32 and more ids.
PRIOR = (0.2, 0.3, 0.5, 0.7, 0.85, 0.9)
WEIGHT = 3.0  # tries that the assumption counts for
MEMORY = 0.97  # of a try, for each later one of its kind: the last 30 or so count
RARELY = 0.995  # of a try, each time that a guess of its kind is passed over: in the end one is tried again
GAIN = 1.04  # expected ids a second over those without: estimates are not that good, and a longer step has other costs


class Pace:
    """What is known of the guesses for one sequence."""

    __slots__ = ("_right", "_tries")

    def __init__(self) -> None:
        self._right = [WEIGHT * share for share in PRIOR]
        self._tries = [WEIGHT] * len(PRIOR)

    def length(self, offered: int, matched: int, expected: float, seconds: Sequence[float]) -> tuple[int, float]:
        """How many of `offered` guesses (at least one) to run, the first of which rests on `matched` ids; and how many
        ids the step is expected to give then.

        It is expected to give `expected` ids without them; seconds[i]: what it takes with i of them.
        """
        best, made, rate = 0, expected, GAIN * expected / seconds[0]
        chance = 1.0
        for taken in range(1, min(offered, len(seconds) - 1) + 1):
            kind = _kind(matched + taken - 1)
            chance *= self._right[kind] / self._tries[kind]
            expected += chance
            if expected > rate * seconds[taken]:
                best, made, rate = taken, expected, expected / seconds[taken]
        if best == 0:
            self._fade(_kind(matched), RARELY)
        return best, made

    def learn(self, drafted: int, matched: int, accepted: int) -> None:
        """Of `drafted` guesses the first `accepted` were right."""
        for place in range(min(accepted + 1, drafted)):
            kind = _kind(matched + place)
            self._fade(kind, MEMORY)
            self._right[kind] += place < accepted
            self._tries[kind] += 1.0

    def _fade(self, kind: int, memory: float) -> None:
        """Tries of a kind count a little less, the assumption as much as before."""
        self._right[kind] = memory * self._right[kind] + (1 - memory) * WEIGHT * PRIOR[kind]
        self._tries[kind] = memory * self._tries[kind] + (1 - memory) * WEIGHT


def _kind(matched: int) -> int:
    return min(matched.bit_length(), len(PRIOR)) - 1
