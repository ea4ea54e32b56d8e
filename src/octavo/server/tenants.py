"""Whose a call is: the tenant behind its key, what that one is owed, and when the answer must be over.

The key check (app.py) says it once for a call; whatever the call does, in tasks of its own too, can ask. It knows
neither keys nor counters.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from octavo.errors import InvalidRequest
from octavo.request import Terms


@dataclass(frozen=True)
class Tenant:
    """What a key stands for. admin: may call administrative routes and sees what belongs to others. weight: share of
    the engine against other keys when requests wait. concurrent, tokens_per_minute, tokens_per_day: limits, None where
    there is none. deadline_ms: of requests that bring none. shares_cache: finds the prefixes of others that share.
    priority: the most urgent one that its requests may have, None for any."""

    name: str
    admin: bool = False
    weight: float = 1.0
    concurrent: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    deadline_ms: float | None = None
    shares_cache: bool = False
    priority: int | None = None

    def sees(self, owner: str) -> bool:
        """Whether a thing that this tenant made is shown."""
        return self.admin or self.name == owner


ANYONE = Tenant("", admin=True)  # of a server without keys


@dataclass(frozen=True)
class Call:
    """One HTTP call, or a line of a batch. deadline: time.monotonic() when its answer must be over."""

    tenant: Tenant
    deadline: float | None = None

    def terms(self, salt: str | None, priority: int | None, shared: bool) -> Terms:
        """On what terms its requests run; InvalidRequest for a priority that it may not have. shared: every key finds
        the prefixes of every other."""
        first = self.tenant.priority
        if priority is not None and first is not None and priority < first:
            raise InvalidRequest(f"priority must be at least {first} for this key, got {priority}.", param="priority")
        whose = "" if shared or self.tenant.shares_cache else self.tenant.name  # a name has no NUL
        return Terms(
            f"{whose}\0{salt or ''}",
            self.tenant.name,
            self.tenant.weight,
            priority or max(0, first or 0),
            self.deadline,
        )


NOBODY = Call(ANYONE)
_CALL: ContextVar[Call] = ContextVar("call", default=NOBODY)


def current() -> Call:
    """The call that this code runs for."""
    return _CALL.get()


def enter(call: Call) -> None:
    """From now on the running task, and those that it makes, work for this call."""
    _CALL.set(call)
