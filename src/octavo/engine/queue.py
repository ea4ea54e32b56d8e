"""Requests that wait to be admitted: bounded, in classes of priority, each class shared fairly among keys.

Within a class the tenant with the least virtual time is next (start-time fair queueing, Goyal, Vin and Cheng 1996): its
virtual time grows by the cost of a request over the tenant's weight. Whoever has waited longer than `patience` goes
before every class, so a stream of urgent requests cannot starve the others. It knows neither blocks nor slots.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Mapping

from octavo.engine.sequence import LiveRequest, Sequence
from octavo.errors import QueueFull

DEFAULT_OUTPUT = 256  # tokens that a request without max_tokens is taken to cost
RATE_WEIGHT = 0.1  # of the newest interval in the moving mean of admissions


class _Class:
    """Waiting sequences of one priority: a FIFO for each tenant and its virtual time."""

    def __init__(self) -> None:
        self.tenants: dict[str, deque[Sequence]] = {}
        self.virtual: dict[str, float] = {}
        self.now = 0.0  # virtual time of the class: that of the tenant served last


class RequestQueue:
    """First sequences of waiting requests. `bound`: how many may wait beyond the free slots."""

    def __init__(self, bound: int, weights: Mapping[str, float] | None = None, patience: float = 60.0) -> None:
        """weights: share of a tenant against others of its class, 1 where absent. patience: seconds."""
        self.bound = bound
        self.patience = patience
        self._weights = dict(weights or {})
        self._classes: dict[int, _Class] = {}
        self._priorities: list[int] = []  # ascending, those with someone waiting
        self._arrivals: OrderedDict[int, Sequence] = OrderedDict()  # arrival -> sequence, oldest first
        self._interval = 1.0  # moving mean of seconds between admissions
        self._last_pop: float | None = None

    def __len__(self) -> int:
        return len(self._arrivals)

    def check_room(self, free_slots: int) -> None:
        """QueueFull if one more request may not wait; retry_after: until the present ones are admitted."""
        if len(self._arrivals) >= self.bound + free_slots:
            wait = min(120.0, max(1.0, len(self._arrivals) * self._interval))
            raise QueueFull(
                f"{len(self._arrivals)} requests wait already (--max-num-queued-reqs {self.bound}). "
                f"Try again in {wait:.0f} seconds.",
                retry_after=wait,
            )

    def push(self, sequence: Sequence) -> None:
        live = sequence.live
        priority, tenant = live.request.priority, live.request.tenant
        own = self._classes.get(priority)
        if own is None:
            own = self._classes[priority] = _Class()
            insort(self._priorities, priority)
        line = own.tenants.get(tenant)
        if line is None:
            line = own.tenants[tenant] = deque()
            # A tenant that was away gets no credit for its absence.
            own.virtual[tenant] = max(own.virtual.get(tenant, 0.0), own.now)
        line.append(sequence)
        self._arrivals[live.arrival] = sequence

    def peek(self, now: float) -> Sequence | None:
        """Who is next; nothing changes. `now`: monotonic seconds."""
        if not self._arrivals:
            return None
        oldest = next(iter(self._arrivals.values()))
        if now - oldest.live.arrived_at > self.patience:
            return oldest
        own = self._classes[self._priorities[0]]
        tenant = min(own.tenants, key=lambda name: (own.virtual[name], own.tenants[name][0].live.arrival))
        return own.tenants[tenant][0]

    def best_priority(self) -> int | None:
        return self._priorities[0] if self._priorities else None

    def pop(self, sequence: Sequence, now: float) -> None:
        """`sequence` (from peek) is admitted: its tenant pays for it."""
        live = sequence.live
        own = self._classes[live.request.priority]
        tenant = live.request.tenant
        own.now = max(own.now, own.virtual[tenant])
        own.virtual[tenant] += self._cost(live) / self._weights.get(tenant, 1.0)
        self._take(sequence)
        if self._last_pop is not None:
            self._interval += RATE_WEIGHT * (min(60.0, now - self._last_pop) - self._interval)
        self._last_pop = now

    def remove(self, sequence: Sequence) -> None:
        """`sequence` leaves without being served."""
        self._take(sequence)

    def _take(self, sequence: Sequence) -> None:
        live = sequence.live
        priority, tenant = live.request.priority, live.request.tenant
        own = self._classes[priority]
        line = own.tenants[tenant]
        line.remove(sequence)  # nearly always the first
        del self._arrivals[live.arrival]
        if not line:
            del own.tenants[tenant]
            # Debts are remembered while the class has anyone waiting; a tenant at or below its time owes nothing.
            if own.virtual[tenant] <= own.now:
                del own.virtual[tenant]
        if not own.tenants:
            del self._classes[priority]
            self._priorities.remove(priority)

    @staticmethod
    def _cost(live: LiveRequest) -> float:
        params = live.request.params
        output = DEFAULT_OUTPUT if params.max_tokens is None else params.max_tokens
        return float(len(live.request.prompt_ids) + output * params.n)
