"""What each key has been given in a class of priority: who of those that wait is served next.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024), which are start-time fair
queueing (Goyal, Vin and Cheng 1996) where nobody knows how long an answer will be: a counter grows by every token that
its tenant was given, over the tenant's weight, and the least one is next. Prompt tokens count when a request is let
in, unless the prefix cache had them; an answer's as they come; what is computed again because the engine took its
blocks away counts once. It decides about nobody who runs, and changes no token.
"""

from __future__ import annotations

from collections.abc import Iterable

from octavo.engine.sequence import Sequence


class Shares:
    """The counters of one class. They live as long as a request of the class is open."""

    def __init__(self) -> None:
        self.given: dict[str, float] = {}  # tenant -> tokens over its weight
        self.open = 0  # requests of the class in the engine
        self._floor = 0.0  # the counter of whoever was let in last

    def came(self, tenant: str, waiting: Iterable[str]) -> None:
        """A tenant of whom nobody waited begins to wait. It gets no credit for its absence: its counter is the least
        of those that wait at least."""
        floor = min((self.given[other] for other in waiting), default=self._floor)
        self.given[tenant] = max(self.given.get(tenant, floor), floor)

    def admitted(self, sequence: Sequence, hit: int) -> None:
        """The first sequence of a request is let in, with so many ids from the prefix cache."""
        self._floor = max(self._floor, self.given[sequence.live.request.tenant])
        if not sequence.emitted:  # else an engine before this one has computed the prompt, too
            sequence.charged = min(hit, sequence.prompt_len)
        self.charge(sequence)

    def charge(self, sequence: Sequence) -> None:
        """Count what the sequence has been given since the last time."""
        known = len(sequence.ids)
        if known > sequence.charged:
            request = sequence.live.request
            self.given[request.tenant] += (known - sequence.charged) / request.weight
            sequence.charged = known
