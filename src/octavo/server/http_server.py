"""uvicorn around the application of one front, on addresses that are bound already.

It takes 0.2 s to import, so run.py does that while the engine loads. It knows no signals and no model.
"""

from __future__ import annotations

import asyncio
import logging

import uvicorn

from octavo.config import ServerConfig
from octavo.errors import OctavoError
from octavo.server.address import Listener
from octavo.server.app import build_app
from octavo.server.auth import Keys
from octavo.server.connection import Connection
from octavo.server.submit import Front

KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they never write into a closing one


def http_server(front: Front, keys: Keys, config: ServerConfig, listeners: list[Listener]) -> HttpServer:
    """A server that has not begun."""
    made = uvicorn.Config(
        build_app(front, keys), http=Connection, ws="none", lifespan="on", log_config=None,
        access_log=not config.disable_access_log, server_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return HttpServer(made, listeners)


class HttpServer(uvicorn.Server):
    """uvicorn on addresses that are bound already; signals are not its business."""

    def __init__(self, config: uvicorn.Config, listeners: list[Listener]) -> None:
        super().__init__(config)
        self._listeners = listeners

    async def begin(self) -> None:
        """Start the application, then accept."""
        config = self.config
        if not config.loaded:
            config.load()
        self.lifespan = config.lifespan_class(config)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise OctavoError("The HTTP application did not start; the log says why.")
        await self.on_tick(0)  # the date header
        for listener in self._listeners:
            await listener.answer_with(self._protocol)
            logging.getLogger("uvicorn.error").info("Uvicorn running on %s (Press CTRL+C to quit)", listener.url)
        self.servers = [listener.server for listener in self._listeners]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
