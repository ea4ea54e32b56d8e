"""What every request passes, in this order, outermost first: CORS -> the record of the call (request id, path, errors,
count) -> key -> route. Limits stand where bodies are read.

The routes are those of routes.py; it knows no body.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import AsyncIterator

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo import logs
from octavo.errors import Forbidden, MethodNotAllowed, NotFound, OctavoError, QueueFull
from octavo.server import metrics as measured
from octavo.server.auth import Keys, Origins, allows, deadline_of
from octavo.server.dialect import Said, dialect_of
from octavo.server.openai.batch_run import Batches
from octavo.server.openai.files import FileStore
from octavo.server.openai.response_store import ResponseStore
from octavo.server.routes import ROUTES, canonical, entry_of, metrics
from octavo.server.sse import ClientGone
from octavo.server.submit import Front
from octavo.server.tenants import Call, Tenant, current, enter
from octavo.server.usage import saved

log = logs.get("server")


class Record:
    """Gives the call its id, finds the path that is meant, turns errors into bodies, counts the answer."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = canonical(scope["path"])
        scope["raw_path"] = scope["path"].encode()
        id_ = _call_id(dict(scope["headers"]).get(b"x-request-id", b""))
        entry, dialect = entry_of(scope["path"]), dialect_of(scope["path"])
        logs.enter(id_.decode("latin-1"))
        if self._front.tracing is not None:
            label = "other" if entry is None else entry.label
            self._front.tracing.enter(scope["headers"], id_.decode("latin-1"), label)
        status = 499  # the client left before an answer
        began = False

        async def tell(error: OctavoError) -> None:
            if isinstance(error, QueueFull):
                self._front.metrics.refused()
                self._front.crowd.refused(current().tenant.name, error)
            if began:  # nothing can be said any more; the connection ends unfinished
                log.error("an answer broke off: %s", error)
            else:
                said = dialect.said(error, id_.decode("latin-1"))
                await error_response(error, said, self._front.health.draining)(scope, receive, marked)

        async def marked(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
                ids = [(b"x-request-id", id_), *([(dialect.id_header, id_)] if dialect.id_header else [])]
                message = {**message, "headers": [*message.get("headers", []), *ids]}
            await send(message)

        try:
            await self._app(scope, receive, marked)
        except (ClientGone, ClientDisconnect):
            status = 499
        except OctavoError as error:
            await tell(error)
        except Exception:
            log.exception("%s %s failed", scope["method"], entry.label if entry else "?")
            await tell(OctavoError("The server failed; its log says why."))
        finally:
            label = "other" if entry is None else entry.label
            self._front.metrics.called(label, scope["method"], status)
            if self._front.config.enable_log_requests:
                log.info("request %s %s %s: %d", id_.decode("latin-1"), scope["method"], label, status)


def _call_id(given: bytes) -> bytes:
    """The client's id if it is short and printable, else a new one."""
    if given and len(given) <= 128 and all(33 <= byte < 127 for byte in given):
        return given
    return secrets.token_hex(12).encode()


def error_response(error: OctavoError, said: Said, closing: bool = False) -> Response:
    """An error as a dialect says it."""
    status, body = said
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if closing or error.status in (408, 413):
        headers["connection"] = "close"
    return Response(msgspec.json.encode(body), status, headers, "application/json")


class KeyCheck:
    """Every route but the public ones of the table needs a key, and so does every path that is no route."""

    def __init__(self, app: ASGIApp, keys: Keys, front: Front) -> None:
        self._app = app
        self._keys = keys
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            entry = entry_of(scope["path"])
            public = entry is not None and (
                entry.public or (self._front.config.public_metrics and entry.handler is metrics)
            )
            if not public:
                tenant = self._keys.check(dict(scope["headers"]))
                if entry is not None and entry.admin:
                    self._check_admin(tenant, dict(scope["headers"]).get(b"origin", b"").decode("latin-1"))
                enter(Call(tenant, deadline_of(scope, tenant)))
                if tenant.tokens_per_minute is not None:
                    send = self._told(tenant, send)
        await self._app(scope, receive, send)

    def _check_admin(self, tenant: Tenant, origin: str) -> None:
        """Forbidden for others, and for pages of other origins: a browser would send their POST without asking."""
        if not tenant.admin:
            raise Forbidden("This route is for the administrator's key alone.")
        if origin and not allows(self._front.config.allowed_origins, origin):
            raise Forbidden(f"Pages of {origin[:100]} may not administrate this server.", code="origin_not_allowed")

    def _told(self, tenant: Tenant, send: Send) -> Send:
        """Answers tell what is left of a limit."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = self._front.accounts.of(tenant).headers(tenant)
                more = [(name.encode(), value.encode()) for name, value in told.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return marked


class Dispatch:
    """Calls the handler of the path. Starlette's own router tries one pattern after the other, for 5 us each."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        entry = entry_of(path)
        if entry is None:
            known = ", ".join(entry.label for entry in ROUTES if entry.path.startswith("/v1"))
            raise NotFound(f"There is no route {path[:100]!r}. Routes: {known}.", code="not_found")
        if method not in entry.methods and not (method == "HEAD" and "GET" in entry.methods):
            raise MethodNotAllowed(method, entry.methods)
        scope["path_params"] = entry.parameters(path)
        response = await entry.handler(Request(scope, receive, send))
        await response(scope, receive, send)


async def answer_inside(
    app: Starlette, front: Front, keys: Keys, owner: str, path: str, body: bytes
) -> tuple[int, bytes]:
    """A request of the server to itself for this tenant: status and body of the answer."""
    asked, status, parts = False, 500, []

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()  # this client stays
        asked = True
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    scope: Scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "app": app,
    }  # fmt: skip

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        enter(Call(keys.named(owner)))
        await Dispatch(app)(scope, receive, send)

    await Record(known, front)(scope, receive, send)
    return status, b"".join(parts)


def build_app(front: Front, keys: Keys) -> Starlette:
    """The ASGI application of one front."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = None
        if not front.config.disable_log_stats:
            task = asyncio.create_task(measured.log_statistics(front.metrics, front.llm), name="octavo-statistics")
        async with saved(front.accounts):
            app.state.batches.resume()
            yield
            await app.state.batches.stop()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    app = Starlette(
        middleware=[
            Middleware(Origins, allowed=front.config.allowed_origins),
            Middleware(Record, front=front),
            Middleware(KeyCheck, keys=keys, front=front),
            Middleware(Dispatch),
        ],
        lifespan=lifespan,
    )
    app.state.front = front
    app.state.keys = keys
    app.state.responses = ResponseStore()
    state = front.shelf.engine.state_path
    app.state.files = FileStore(state / "files")
    answer = functools.partial(answer_inside, app, front, keys)
    app.state.batches = Batches(state / "batches", app.state.files, answer)
    return app
