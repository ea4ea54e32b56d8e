"""Whether requests would be served: /health asks the engine's progress, /live only says that the process is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import Unavailable


@dataclass
class Health:
    """healthy: whether the engine is there and makes progress (the supervisor's word)."""

    healthy: Callable[[], bool]
    draining: bool = False

    def check(self) -> None:
        """Unavailable, with the time after which to ask again, unless a request would be served now."""
        if self.draining:
            raise Unavailable("The server is shutting down.", retry_after=10.0)
        if not self.healthy():
            raise Unavailable("The engine is not ready: it loads, restarts or makes no progress.", retry_after=2.0)
