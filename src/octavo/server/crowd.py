"""A queue that is known to be full: requests of the same tenant are refused at once, before a prompt is made of them.

The engine alone decides who may wait (engine/queue.py), but asking it takes a template, a tokenization and a turn of
its loop, at five times the capacity a tenth of a core. What it has refused is refused again as long as as many requests
are open as then, and for KNOWN_SECONDS at most, because a request may give up places before it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import QueueFull

KNOWN_SECONDS = 0.25


class KnownFull(QueueFull):
    """The engine was not asked."""


@dataclass(frozen=True)
class _Refusal:
    error: QueueFull
    open: int  # requests, when the engine refused one more
    until: float


class Crowd:
    """What is known of the engine's queue. One event loop uses it."""

    def __init__(self, open_requests: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._open, self._clock = open_requests, clock
        self._refusals: dict[str, _Refusal] = {}  # of tenants

    def refused(self, tenant: str, error: QueueFull) -> None:
        """A request of the tenant was."""
        if error.code == QueueFull.code and not isinstance(error, KnownFull):
            self._refusals[tenant] = _Refusal(error, self._open(), self._clock() + KNOWN_SECONDS)

    def check(self, tenant: str) -> None:
        """QueueFull if one more request of the tenant would be refused."""
        known = self._refusals.get(tenant)
        if known is None:
            return
        if self._clock() >= known.until or self._open() < known.open:
            del self._refusals[tenant]
            return
        raise KnownFull(known.error.message, retry_after=known.error.retry_after or 1.0)
