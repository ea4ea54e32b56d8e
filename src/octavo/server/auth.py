"""Who asks: keys, compared in constant time, and browsers of other origins (CORS).

Which routes are public stands in the table of routes (routes.py); it knows no dialect.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import logs
from octavo.errors import ConfigError, InvalidRequest, Unauthorized
from octavo.server import key_file
from octavo.server.tenants import ANYONE, Tenant

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEADLINE = "x-request-deadline-ms"
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    "authorization", "content-type", "x-api-key", "api-key", "anthropic-version", "anthropic-beta", "openai-beta",
    "anthropic-dangerous-direct-browser-access", "openai-organization", "openai-project", "x-request-id", "user-agent",
    "accept", DEADLINE,
)  # fmt: skip
EXPOSED = (
    "x-request-id, x-octavo-template, x-octavo-seed, retry-after, x-ratelimit-limit-tokens, "
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
PREFLIGHT_SECONDS = 600


class Keys:
    """The keys of --api-key, --admin-api-key and --api-key-file. Only digests are compared, and always all of them."""

    def __init__(self, given: Iterable[str], file: str | None, admins: Iterable[str] = ()) -> None:
        """Raises ConfigError if the file cannot be read."""
        self._given = [key for key in given if key]
        self._admins = [key for key in admins if key]
        self._file = None if file is None else Path(file).expanduser()
        self._known: list[tuple[bytes, Tenant]] = []
        self._names: dict[str, Tenant] = {}
        self.reload()

    @property
    def needed(self) -> bool:
        """Whether a key must be sent at all."""
        return bool(self._given or self._admins) or self._file is not None

    def reload(self) -> None:
        """Read the file again; ConfigError keeps the keys that were known."""
        listed = [] if self._file is None else key_file.read_file(self._file)
        admins = [key_file.nameless(key, admin=True) for key in self._admins]
        # Who starts a server with a key and names nobody to administrate it does so with that key.
        alone = not admins and not any(tenant.admin for _, tenant in listed)
        known = [*admins, *(key_file.nameless(key, admin=alone) for key in self._given), *listed]
        self._names = {tenant.name: tenant for _, tenant in reversed(known)}
        self._known = known

    def check(self, headers: dict[bytes, bytes]) -> Tenant:
        """Whose key one of the headers carries; Unauthorized if none does. Takes the same time for every wrong key."""
        if not self.needed:
            return ANYONE
        sent = sent_key(headers)
        digest = key_file.digest(sent)
        found: Tenant | None = None
        for known, tenant in self._known:
            if hmac.compare_digest(digest, known) and found is None:
                found = tenant
        if found is None:
            problem = "The API key is wrong" if sent else "An API key is needed"
            raise Unauthorized(f"{problem}: send the header 'Authorization: Bearer KEY'.")
        return found

    def named(self, name: str) -> Tenant:
        """The tenant of this name. Unauthorized if its key is gone."""
        if not name or not self.needed:
            return replace(ANYONE, name=name, admin=not self.needed)
        found = self._names.get(name)
        if found is None:
            raise Unauthorized("The key that this was begun with is not accepted any more.")
        return found

    def all(self) -> list[Tenant]:
        """Every tenant, in the order of the options and the file."""
        return list(self._names.values())[::-1]


def sent_key(headers: dict[bytes, bytes]) -> bytes:
    """The key that a call carries, right or wrong; empty if it has none."""
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    sent = bearer.strip() if scheme.lower() == b"bearer" else b""
    return sent or headers.get(b"x-api-key", b"").strip() or headers.get(b"api-key", b"").strip()


def caller(scope: Scope) -> bytes:
    """Who calls, as a digest: calls with the same key are the same caller's."""
    return key_file.digest(sent_key(dict(scope["headers"])))


def deadline_of(scope: Scope, tenant: Tenant) -> float | None:
    """time.monotonic() when the answer must be over: by the call's header, else as the tenant has it."""
    given: str | None = dict(scope["headers"]).get(DEADLINE.encode(), b"").decode("latin-1").strip() or None
    if given is not None and not (given.isdecimal() and len(given) <= 9 and 1 <= int(given) <= key_file.DAY_MS):
        raise InvalidRequest(
            f"{DEADLINE} must be a whole number of milliseconds from 1 to {key_file.DAY_MS:.0f}, got {given[:40]!r}.",
            param=DEADLINE,
        )
    milliseconds = tenant.deadline_ms if given is None else int(given)
    return None if milliseconds is None else time.monotonic() + milliseconds / 1e3


def reload_keys(keys: Keys) -> None:
    """For SIGHUP: read the file again, or say why not."""
    try:
        keys.reload()
    except ConfigError as error:
        logs.get("server").error("keys not reloaded, the old ones stay: %s", error)
    else:
        logs.get("server").info("keys reloaded")


def allows(allowed: Iterable[str], origin: str) -> bool:
    """Whether a page of this origin may read answers."""
    return any(_pattern(each).fullmatch(origin) for each in allowed)


class Origins:
    """ASGI middleware: answers OPTIONS, and marks answers that a page of an allowed origin may read.

    An allowed origin is exact, ends in `:*` (any port or none), or is `*`.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._patterns = [_pattern(each) for each in allowed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        allowed = bool(origin) and any(pattern.fullmatch(origin) for pattern in self._patterns)
        marks = self._marks(origin, allowed)
        if scope["method"] == "OPTIONS":
            asked = headers.get(b"access-control-request-headers", b"").decode("latin-1")
            marks += self._preflight(asked) if allowed else []
            marks.append((b"allow", METHODS.encode()))
            await send({"type": "http.response.start", "status": 204, "headers": marks})
            await send({"type": "http.response.body", "body": b""})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *marks]}
            await send(message)

        await self._app(scope, receive, marked if marks else send)

    def _marks(self, origin: str, allowed: bool) -> list[tuple[bytes, bytes]]:
        if not allowed:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", EXPOSED.encode()),
            (b"vary", b"Origin"),
        ]

    def _preflight(self, asked: str) -> list[tuple[bytes, bytes]]:
        names = [name.strip().lower() for name in asked.split(",")]
        more = [n for n in names if re.fullmatch(r"x-stainless-[a-z0-9-]{1,40}", n) or n in ALLOWED_HEADERS]
        listed = dict.fromkeys([*ALLOWED_HEADERS, *more])
        return [
            (b"access-control-allow-methods", METHODS.encode()),
            (b"access-control-allow-headers", ", ".join(listed).encode()),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]


def _pattern(allowed: str) -> re.Pattern[str]:
    if allowed == "*":
        return re.compile(r".+", re.S)
    if allowed.endswith(":*"):
        return re.compile(re.escape(allowed[:-2]) + r"(:\d+)?")
    return re.compile(re.escape(allowed.rstrip("/")))
