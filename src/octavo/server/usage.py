"""/v1/usage: what a key has used; an administrator's key sees those of all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo import logs
from octavo.server.auth import Keys
from octavo.server.quota import Accounts
from octavo.server.submit import Front
from octavo.server.tenants import current

SAVE_SECONDS = 10.0


async def usage(request: Request) -> Response:
    """Requests and tokens of the key, today and in all."""
    front: Front = request.app.state.front
    keys: Keys = request.app.state.keys
    tenant = current().tenant
    known = keys.all() if tenant.admin and keys.needed else [tenant]
    data = front.accounts.told(known, tenant.admin)
    return Response(msgspec.json.encode({"object": "list", "data": data}), media_type="application/json")


@contextlib.asynccontextmanager
async def saved(accounts: Accounts) -> AsyncIterator[None]:
    """Keeps the file of accounts: every ten seconds, and at the end."""

    async def clock() -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await _save(accounts)

    task = asyncio.create_task(clock(), name="octavo-usage")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await _save(accounts)


async def _save(accounts: Accounts) -> None:
    try:
        await accounts.save()
    except OSError as error:
        logs.get("server").error("usage is not kept: %s", error)
