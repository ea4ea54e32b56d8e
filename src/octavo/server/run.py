"""The life of a server: take the address, load, serve, drain, end. It owns the signals.

While the model loads, the address says so (loading.py) and the HTTP application is imported: the engine's process does
not wait for it. One SIGINT or SIGTERM: no new work, the open requests are finished within --shutdown-timeout, exit 0. A
second one: end now, exit 130. SIGHUP: keys are read again. It does not know how a model is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import uvloop

from octavo import logs
from octavo.config import ServerConfig
from octavo.errors import INTERRUPTED, OctavoError
from octavo.server.address import Listener
from octavo.server.auth import Keys, reload_keys
from octavo.server.health import Health
from octavo.server.loading import Loading
from octavo.server.tracing import Tracing

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.server.submit import Front
    from octavo.shelf import Shelf

LAST_WORDS_SECONDS = 2.0  # for answers that were cut off to reach their clients
STOP_SECONDS = 5.0  # for the engine to end by itself
SWITCH_SECONDS = 1e-4  # a thread that comes back from native code waits so long for the interpreter at most
log = logs.get("server")


@dataclass(frozen=True)
class Backend:
    """A loaded model as the server needs it.

    names: what requests may call it, the first one stands in answers; aliases: more names, not listed. shelf: files.
    healthy: the engine makes progress. stop: ends the engine within so many seconds. failure: waits for the day when no
    engine will be started any more.
    """

    llm: AsyncLLM
    names: tuple[str, ...]
    shelf: Shelf
    healthy: Callable[[], bool]
    stop: Callable[[float], Awaitable[None]]
    failure: Callable[[], Awaitable[OctavoError]]
    aliases: tuple[str, ...] = ()


Load = Callable[[Callable[[], object]], Awaitable[Backend]]  # is given what to do in a thread while the engine loads


def run_server(load: Load, config: ServerConfig, since: float | None = None) -> int:
    """Serve until a signal; the exit code. since: time.monotonic() of the process's start, for the summary.

    Raises what loading raised, AddressInUse, ConfigError, or the error after which no engine is started again.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _raise_file_limit()
    begin = time.monotonic() if since is None else since
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Life(load, config, begin).run())


def _raise_file_limit() -> None:
    """A connection is a descriptor: the soft limit of 1,024 would end at a thousand clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not allowed: the limit stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Life:
    """One run of a server."""

    def __init__(self, load: Load, config: ServerConfig, begin: float) -> None:
        self._load = load
        self._config = config
        self._begin = begin
        self._signals: list[int] = []
        self._first, self._second = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        config = self._config
        keys = Keys(config.api_key, config.api_key_file, config.admin_api_key)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, reload_keys, keys)
        listeners = await Listener.bind_all(self._config)
        try:
            for listener in listeners:
                await listener.answer_with(Loading)
            tracing = None
            if config.otlp_traces_endpoint is not None:
                tracing = await asyncio.to_thread(Tracing, config.otlp_traces_endpoint)
            backend = await self._loaded()
            if backend is None:
                return INTERRUPTED if self._signals[0] == signal.SIGINT else 0
            return await self._serve(backend, listeners, keys, tracing)
        finally:
            for listener in listeners:
                listener.close()

    def _signalled(self, number: int) -> None:
        self._signals.append(number)
        (self._second if self._first.is_set() else self._first).set()

    async def _loaded(self) -> Backend | None:
        """The backend, or None if a signal came first."""
        load = asyncio.ensure_future(self._load(lambda: import_module("octavo.server.http_server")))
        stop = asyncio.create_task(self._first.wait())
        try:
            await asyncio.wait({load, stop}, return_when=asyncio.FIRST_COMPLETED)
            if load.done():
                return load.result()
            load.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await load
            return None
        finally:
            stop.cancel()

    async def _serve(self, backend: Backend, listeners: list[Listener], keys: Keys, tracing: Tracing | None) -> int:
        from octavo.server.http_server import http_server
        from octavo.server.metrics import Metrics
        from octavo.server.submit import Front

        engine = backend.shelf.engine
        metrics = Metrics(
            backend.names[0],
            {
                "block_size": engine.block_size,
                "cache_dtype": engine.kv_cache_dtype,
                "enable_prefix_caching": engine.enable_prefix_caching,
            },
        )
        health = Health(backend.healthy)
        front = Front(
            backend.llm, backend.names, self._config, health, metrics, backend.shelf, backend.aliases, tracing=tracing
        )
        server = http_server(front, keys, self._config, listeners)
        clock = asyncio.create_task(server.main_loop())
        try:
            await server.begin()
            gc.collect()
            gc.freeze()  # what start-up made stays: later collections need not look at it
            self._say_ready(listeners, keys)
            for listener in listeners:
                if listener.public and not keys.needed:
                    log.warning("anybody who reaches %s:%d may use it: no --api-key is set", *listener.where)
            ended = await self._until_end(backend)
            if ended is None:
                await self._drain(front)
            server.force_exit = self._second.is_set()
            await server.shutdown()
        finally:
            server.should_exit = True
            clock.cancel()
            if backend.llm.renderer is not None:
                backend.llm.renderer.close()
            await backend.stop(0.0 if self._second.is_set() else STOP_SECONDS)
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
        if ended is not None:
            raise ended
        if self._second.is_set():
            return INTERRUPTED
        logs.say(f"done. Served {front.metrics.served:,} requests, {front.metrics.tokens:,} tokens.")
        return 0

    async def _until_end(self, backend: Backend) -> OctavoError | None:
        """Waits for a signal (None) or the engine's final failure."""
        stop = asyncio.create_task(self._first.wait())
        failure = asyncio.ensure_future(backend.failure())
        try:
            await asyncio.wait({stop, failure}, return_when=asyncio.FIRST_COMPLETED)
            return failure.result() if failure.done() else None
        finally:
            stop.cancel()
            failure.cancel()

    async def _drain(self, front: Front) -> None:
        """No new requests; the open ones get --shutdown-timeout, with a countdown; then they are told."""
        front.health.draining = True
        client = front.llm.client
        idle = asyncio.create_task(client.drain())
        force = asyncio.create_task(self._second.wait())
        deadline = time.monotonic() + self._config.shutdown_timeout
        step = 1.0 if sys.stderr.isatty() else 5.0
        try:
            while not idle.done() and not force.done() and (left := deadline - time.monotonic()) > 0:
                if client.open_requests:
                    logs.say(f"Draining: {client.open_requests} requests left, {left:.0f} s …")
                await asyncio.wait({idle, force}, timeout=min(step, left), return_when=asyncio.FIRST_COMPLETED)
            if client.open_requests:
                log.warning("%d requests are cut off", client.open_requests)
                await client.close()
                if not force.done():
                    await asyncio.wait({idle}, timeout=LAST_WORDS_SECONDS)
        finally:
            idle.cancel()
            force.cancel()

    def _say_ready(self, listeners: list[Listener], keys: Keys) -> None:
        listener, *others = listeners
        url, option = listener.url, ""
        if listener.path is not None:
            url, option = "http://localhost", f"--unix-socket {listener.path} "
        key = ' -H "Authorization: Bearer $OCTAVO_API_KEY"' if keys.needed else ""
        logs.say(f"Ready: {listener.url}   OpenAI /v1   Anthropic /v1/messages   Ollama /api")
        for each in others:
            logs.say(f"  also: {each.url}")
        logs.say(f"  try: curl {option}{url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\")
        logs.say(
            '         -d \'{"messages":[{"role":"user","content":"Hello"}]}\''
            f"            ({time.monotonic() - self._begin:.1f} s since start)"
        )
