"""The routes without an address: requests that a command asks itself (`octavo run-batch`).

They pass limits, dialects and errors as those of a client do; no key is asked for and nothing listens.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from octavo.config import ServerConfig
from octavo.server.app import answer_inside, build_app
from octavo.server.auth import Keys
from octavo.server.health import Health
from octavo.server.metrics import Metrics
from octavo.server.run import Backend
from octavo.server.submit import Front
from octavo.server.tenants import ANYONE

Answer = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]  # path, body -> status, body


def answerer(backend: Backend, config: ServerConfig) -> Answer:
    """What answers a path and a body."""
    front = Front(
        backend.llm, backend.names, config, Health(backend.healthy), Metrics(backend.names[0]), backend.shelf,
        backend.aliases,
    )  # fmt: skip
    keys = Keys((), None)
    return functools.partial(answer_inside, build_app(front, keys), front, keys, ANYONE.name)
