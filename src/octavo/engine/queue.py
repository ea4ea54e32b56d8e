"""Requests that wait to be admitted: bounded, in classes of priority, each class shared fairly among keys (shares.py).

Where somebody has waited longer than `patience`, every fourth admission is for the class of whoever has waited longest,
so a stream of urgent requests cannot starve the others; within a class shares are kept however long it is. It knows
neither blocks nor slots.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from octavo.engine.sequence import LiveRequest, Sequence
from octavo.engine.shares import Shares
from octavo.errors import QueueFull
from octavo.request import Request

RATE_WEIGHT = 0.1  # of the newest interval in the moving mean of admissions
OVERDUE_TURN = 4  # of so many admissions one is for those who have waited too long
Lines = dict[str, deque[Sequence]]  # tenant -> its waiting sequences, oldest first


class RequestQueue:
    """First sequences of waiting requests. `bound`: how many may wait beyond the free slots."""

    def __init__(self, bound: int, patience: float = 60.0) -> None:
        """patience: seconds."""
        self.bound = bound
        self.patience = patience
        self._lines: dict[int, Lines] = {}  # priority -> those that wait in its class
        self._shares: dict[int, Shares] = {}  # priority -> counters, while a request of the class is open
        self._priorities: list[int] = []  # ascending, those with someone waiting
        self._arrivals: OrderedDict[int, Sequence] = OrderedDict()  # arrival -> sequence, oldest first
        self._waiting: Counter[str] = Counter()  # of each tenant
        self._weights: dict[str, float] = {}  # of those that wait, as their last requests said
        self._admissions = 0
        self._interval = 1.0  # moving mean of seconds between admissions
        self._last_pop: float | None = None

    def __len__(self) -> int:
        return len(self._arrivals)

    def check_room(self, free_slots: int, request: Request) -> None:
        """QueueFull if one more request may not wait; retry_after: until the present ones are admitted. Where it is
        full because of others, a tenant may still have its share of the places waiting."""
        if len(self._arrivals) < self.bound + free_slots:
            return
        weights = {**self._weights, request.tenant: request.weight}
        if self._waiting[request.tenant] < int(self.bound * request.weight / sum(weights.values())):
            return
        wait = min(120.0, max(1.0, len(self._arrivals) * self._interval))
        raise QueueFull(
            f"{len(self._arrivals)} requests wait already (--max-num-queued-reqs {self.bound}). "
            f"Try again in {wait:.0f} seconds.",
            retry_after=wait,
        )

    def push(self, sequence: Sequence) -> None:
        """The first sequence of a new request."""
        live = sequence.live
        priority, tenant = live.request.priority, live.request.tenant
        shares = self._shares.get(priority)
        if shares is None:
            shares = self._shares[priority] = Shares()
        shares.open += 1
        lines = self._lines.get(priority)
        if lines is None:
            lines = self._lines[priority] = {}
            insort(self._priorities, priority)
        if tenant not in lines:
            shares.came(tenant, lines)
            lines[tenant] = deque()
        lines[tenant].append(sequence)
        self._arrivals[live.arrival] = sequence
        self._waiting[tenant] += 1
        self._weights[tenant] = live.request.weight

    def peek(self, now: float, running: Iterable[Sequence]) -> Sequence | None:
        """Who is next. `now`: monotonic seconds. running: what they have been given counts."""
        if not self._arrivals:
            return None
        priority = self._priorities[0]
        if self._admissions % OVERDUE_TURN == 0:
            oldest = next(iter(self._arrivals.values())).live
            if now - oldest.arrived_at > self.patience:
                priority = oldest.request.priority
        lines = self._lines[priority]
        if len(lines) == 1:
            (line,) = lines.values()
            return line[0]
        for sequence in running:
            self.charge(sequence)
        given = self._shares[priority].given
        return lines[min(lines, key=lambda name: (given[name], lines[name][0].live.arrival))][0]

    def best_priority(self) -> int | None:
        return self._priorities[0] if self._priorities else None

    def pop(self, sequence: Sequence, now: float, hit: int) -> None:
        """`sequence` (from peek) is admitted, with so many ids from the prefix cache."""
        self._shares[sequence.live.request.priority].admitted(sequence, hit)
        self._take(sequence)
        self._admissions += 1
        if self._last_pop is not None:
            self._interval += RATE_WEIGHT * (min(60.0, now - self._last_pop) - self._interval)
        self._last_pop = now

    def remove(self, sequence: Sequence) -> None:
        """`sequence` leaves without being served."""
        self._take(sequence)

    def charge(self, sequence: Sequence) -> None:
        """Count what a sequence has been given against its tenant."""
        self._shares[sequence.live.request.priority].charge(sequence)

    def over(self, live: LiveRequest) -> None:
        """A request is done. The last one of its class takes the counters along."""
        priority = live.request.priority
        shares = self._shares[priority]
        shares.open -= 1
        if not shares.open:
            del self._shares[priority]

    def _take(self, sequence: Sequence) -> None:
        live = sequence.live
        priority, tenant = live.request.priority, live.request.tenant
        lines = self._lines[priority]
        line = lines[tenant]
        line.remove(sequence)  # nearly always the first
        del self._arrivals[live.arrival]
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant], self._weights[tenant]
        if not line:
            del lines[tenant]
        if not lines:
            del self._lines[priority]
            self._priorities.remove(priority)
