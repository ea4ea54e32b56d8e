"""Named points where a test build can make the engine fail: `point("core.before_run")`.

Armed only through the boot record of an engine process that a test starts; otherwise a point looks at an empty table.
A plan says what happens at the k-th visit: `kill@3`, `raise@1`, `hang@2`, `sleep:0.5@4`, `exit:7@1`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from octavo.errors import ConfigError

_plans: dict[str, tuple[str, int]] = {}  # point -> action, visit at which it happens
_visits: dict[str, int] = {}


class InjectedFault(RuntimeError):
    """Raised by a point whose plan says `raise`."""


def arm(plans: Mapping[str, str]) -> None:
    """Replace all plans; an empty mapping disarms."""
    _plans.clear()
    _visits.clear()
    for name, plan in plans.items():
        action, _, visit = plan.partition("@")
        if action.partition(":")[0] not in ("kill", "raise", "hang", "sleep", "exit") or not visit.isdigit():
            raise ConfigError(f"fault {name}: expected ACTION@VISIT as in kill@3, got {plan!r}.", flag="faults")
        _plans[name] = (action, int(visit))


def point(name: str) -> None:
    """A place where a fault may be injected."""
    if not _plans or name not in _plans:
        return
    action, visit = _plans[name]
    _visits[name] = _visits.get(name, 0) + 1
    if _visits[name] != visit:
        return
    verb, _, value = action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "raise":
        raise InjectedFault(name)
    elif verb == "hang":
        time.sleep(1e6)
    elif verb == "sleep":
        time.sleep(float(value))
    else:
        os._exit(int(value))
