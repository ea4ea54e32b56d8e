"""Where the server listens: an address or a unix socket, taken before the model is loaded, so that a clash is told at
once, with who holds it where /proc tells.

It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from octavo.config import ServerConfig
from octavo.errors import AddressInUse, ConfigError, OctavoError

BACKLOG = 2048
Factory = Callable[[], asyncio.Protocol]
_LISTENING = "0A"  # of the fourth column of /proc/net/tcp


class Listener:
    """A bound address. Nothing is accepted before `answer_with`."""

    def __init__(self, server: asyncio.Server, config: ServerConfig, port: int, path: Path | None) -> None:
        self.server = server
        self._config = config
        self.host = config.host
        self.port = port
        self.path = path
        self._factory: Factory | None = None

    @classmethod
    async def bind_all(cls, config: ServerConfig) -> list[Listener]:
        """The address, and those of --also-listen; all of them or none. Raises as `bind` does."""
        made: list[Listener] = []
        try:
            for each in (config, *also(config)):
                made.append(await cls.bind(each))
        except BaseException:
            for listener in made:
                listener.close()
            raise
        return made

    @classmethod
    async def bind(cls, config: ServerConfig) -> Listener:
        """Take the address. Raises AddressInUse, or ConfigError for one that is not of this machine."""
        made: list[Listener] = []

        def protocol() -> asyncio.Protocol:
            factory = made[0]._factory
            assert factory is not None
            return factory()

        loop = asyncio.get_running_loop()
        path = socket_path(config)
        try:
            if path is not None:
                await _check_socket(path)
                server = await loop.create_unix_server(protocol, str(path), backlog=BACKLOG, start_serving=False)
            else:
                server = await loop.create_server(
                    protocol, config.host or None, config.port, backlog=BACKLOG, start_serving=False
                )
        except OSError as error:
            raise refusal(error, config) from None
        port = 0 if path is not None else server.sockets[0].getsockname()[1]
        made.append(cls(server, config, port, path))
        return made[0]

    async def answer_with(self, factory: Factory) -> None:
        """Accept connections, and give those that come from now on to this protocol."""
        self._factory = factory
        try:
            await self.server.start_serving()
        except OSError as error:  # another process took it between bind and here
            raise refusal(error, self._config) from None

    def close(self) -> None:
        """Give the address back."""
        self.server.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        """As people type it; the unspecified address as the local one."""
        if self.path is not None:
            return f"unix:{self.path}"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    @property
    def where(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def public(self) -> bool:
        """Whether other machines can reach it."""
        return self.path is None and self.host not in ("localhost", "::1") and not self.host.startswith("127.")


def also(config: ServerConfig) -> list[ServerConfig]:
    """The same with each address of --also-listen in the place of its own. Raises ConfigError for one that is none."""
    made = []
    for address in config.also_listen:
        host, colon, port = address.rpartition(":")
        if address.endswith(".sock"):
            made.append(replace(config, host=address, uds=None, also_listen=()))
        elif colon and host and port.isdecimal() and int(port) < 65536:
            made.append(replace(config, host=host.strip("[]"), port=int(port), uds=None, also_listen=()))
        else:
            raise ConfigError(
                f"--also-listen: {address[:60]!r} is no address; expected HOST:PORT, as 127.0.0.1:11434.",
                flag="--also-listen",
            )
    return made


def socket_path(config: ServerConfig) -> Path | None:
    """The unix socket that is asked for, if one is."""
    if config.uds is not None:
        return Path(config.uds).expanduser()
    return Path(config.host).expanduser() if config.host.endswith(".sock") else None


async def _check_socket(path: Path) -> None:
    """A socket that nobody listens on is left behind by a killed server and replaced; anything else stays."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{path} exists and is no socket; give another path.", flag="--uds")
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return
    writer.close()
    raise AddressInUse(f"{path} is in use by another server. Stop it, or give another path.")


def refusal(error: OSError, config: ServerConfig) -> OctavoError:
    """Why an address could not be taken, and what to do."""
    path = socket_path(config)
    where = str(path) if path is not None else f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        known = None if path is not None else holder(config.port)
        by = f" by {known}" if known else ""
        return AddressInUse(f"{where} is in use{by}. Stop it, or: octavo serve --port {config.port + 1}")
    flag = "--uds" if path is not None else "--host"
    if error.errno == errno.EACCES:
        flag = "--uds" if path is not None else "--port"
    return ConfigError(f"{flag}: cannot listen on {where}: {error.strerror or error}.", flag=flag)


def holder(port: int, proc: Path = Path("/proc")) -> str | None:
    """`python (pid 4121, octavo serve)`: who listens on a TCP port, if it may be known."""
    inodes = _listening(port, proc)
    if not inodes:
        return None
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            links = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except OSError:
            continue  # another user's process, or gone
        if any(link in inodes for link in links):
            return _described(folder)
    return "a process of another user"


def _listening(port: int, proc: Path) -> set[str]:
    """`socket:[inode]` of each socket that listens on the port."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            rows = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == _LISTENING and int(columns[1].rsplit(":", 1)[1], 16) == port:
                found.add(f"socket:[{columns[9]}]")
    return found


def _described(folder: Path) -> str:
    try:
        name = (folder / "comm").read_text().strip()
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return f"pid {folder.name}"
    program = " ".join([Path(word).name if word.startswith("/") else word for word in words if word][:4])[:60]
    return f"{name} (pid {folder.name}, {program})" if program else f"{name} (pid {folder.name})"
