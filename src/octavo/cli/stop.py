"""`octavo stop [ADDRESS|MODEL]`: end a server of this user as SIGTERM does: what runs is finished first.

Which servers there are is servers.py's.
"""

from __future__ import annotations

import asyncio

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.ps import KEY, known_keys
from octavo.cli.servers import Seen, end, look_at_all, running
from octavo.cli.terminal import say
from octavo.config import LogConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Settings

BESIDE = 10.0  # seconds for the engine's end, beside those that a server gives its requests


def run(settings: Settings, what: str | None, all_: bool, now: bool, timeout: float, api_key: tuple[str, ...]) -> None:
    """End one server, or all; prints which. Raises ConfigError where it is not clear which one is meant."""
    found = asyncio.run(look_at_all(running(), known_keys(settings, api_key)))
    late = []
    for each in chosen(found, what, all_):
        say(f"ending {described(each)} …")
        if end(each.process, 5.0 + BESIDE if now else timeout + BESIDE, now):
            click.echo(f"stopped {described(each)}")
        else:
            late.append(described(each))
    if late:
        raise OctavoError(
            f"still running: {', '.join(late)}\nit finishes its requests; `octavo stop --now` does not wait for them"
        )


def chosen(found: list[Seen], what: str | None, all_: bool) -> list[Seen]:
    """Those that are meant."""
    if all_ and what is not None:
        raise ConfigError("--all and a name: give one of them.", flag="--all")
    if not found:
        raise OctavoError("no server of this user runs.")
    if all_:
        return found
    meant = found if what is None else [each for each in found if each.named(what)]
    known = "\n".join(described(each) for each in found)
    if not meant:
        raise ConfigError(f"no server is called {what!r}. There run:\n{known}")
    if len(meant) > 1:
        raise ConfigError(f"{len(meant)} servers are meant: name an address, or give --all. There run:\n{known}")
    return meant


def described(seen: Seen) -> str:
    """`smollm2:135m at http://127.0.0.1:8000 (pid 4121)`."""
    process = seen.process
    return f"{seen.names[0] if seen.names else 'octavo'} at {process.address} (pid {process.pid})"


command = OptionCommand(
    "stop",
    run,
    "End a server of this user: named by its address, port, model or pid; without a name the only one that runs. "
    "Requests that run are finished first.",
    nouns=(LogConfig,),
    own=[
        click.Argument(["what"], required=False, metavar="[ADDRESS|MODEL]"),
        click.Option(["--all", "all_"], is_flag=True, help="every server of this user"),
        click.Option(["--now"], is_flag=True, help="cut off what runs"),
        click.Option(
            ["--timeout"], type=click.FloatRange(0), default=30.0, metavar="SECONDS",
            help="wait so long for its requests, and 10 s for its end [30]",
        ),
        KEY,
    ],
    model_argument=False,
)  # fmt: skip
