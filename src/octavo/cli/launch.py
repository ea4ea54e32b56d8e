"""`octavo launch CLIENT [ARGS]`: start another program on the server that runs; --restore takes back what that wrote.

What each client is told stands in launch_clients.py; launch_files.py writes it beside the user's own.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.launch_clients import ALSO, CLIENTS, Client, Setup, Target
from octavo.cli.launch_files import Ledger
from octavo.cli.servers import look_at_all, running
from octavo.cli.terminal import columns, say
from octavo.cli.web import Address, Unreachable, ask
from octavo.config import LogConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Settings, client_environment, client_folders, nearest

AGENT_CONTEXT = 16_384  # tokens that coding agents send before the first question
DEFAULT_URL = "http://127.0.0.1:8000"


def run(
    settings: Settings,
    client: str | None,
    words: tuple[str, ...],
    model: str | None,
    url: str | None,
    only_print: bool,
    config_only: bool,
    restore: bool,
) -> None:
    """Write, then become the client; or print; or take back."""
    if client is None:
        for line in columns([(name, each.title) for name, each in CLIENTS.items()]):
            click.echo(f"octavo launch {line}".rstrip())
        return
    name, chosen = _client(client)
    ledger = Ledger(settings.engine.state_path, name)
    if restore:
        if not ledger.restore(say):
            say(f"nothing was written for {name}")
        return
    target = _target(settings, url, model)
    setup = chosen.make(target)
    if only_print or not setup.command:
        _show(setup, words, bare=not setup.command and not only_print)
        return
    if not config_only and shutil.which(setup.command[0]) is None:
        raise OctavoError(f"{setup.command[0]} is not installed: {chosen.install}\nnothing was written")
    ledger.write(setup.files)
    for file in setup.files:
        say(
            f"wrote {'an entry into ' if file.shared else ''}{file.path} (octavo launch {name} --restore takes it back)"
        )
    _warn(chosen, target)
    if config_only:
        _show(setup, words, bare=False, files=False)
        return
    say(f"{chosen.title}: {target.model} at {target.url}")
    sys.stdout.flush()
    command = [*setup.command, *words]
    os.execvp("env", ["env", *(f"{key}={value}" for key, value in setup.variables.items()), *command])


def _client(word: str) -> tuple[str, Client]:
    name = ALSO.get(word, word)
    if name not in CLIENTS:
        known = {*CLIENTS, *ALSO}
        raise ConfigError(
            f"no client is called {word}; there are {', '.join(CLIENTS)}.", flag=word, nearest=nearest(word, known)
        )
    return name, CLIENTS[name]


def _target(settings: Settings, url: str | None, model: str | None) -> Target:
    """The server that is named, or runs. Raises OctavoError where none does."""
    client = client_environment()
    keys = [*([client.api_key] if client.api_key else []), *settings.server.api_key]
    where = url or client.base_url
    if where is None:
        seen = asyncio.run(look_at_all(running(), keys))
        found = [each for each in seen if each.state == "ready" and (model is None or model in each.names)]
        http = [each.process.address for each in found if each.process.address.socket is None]
        where = str(http[0]) if http else DEFAULT_URL
    address = Address.of(where)
    if address.socket is not None:
        raise ConfigError("--url: clients need an address, not a unix socket.", flag="--url")
    key = keys[0] if keys else "none"
    name, context = asyncio.run(_served(address, model, keys[0] if keys else None))
    return Target(str(address), name, context, key, client_folders())


async def _served(address: Address, model: str | None, key: str | None) -> tuple[str, int]:
    """The model's name and its context."""
    try:
        answer = await ask(address, "GET", "/v1/models", key=key, seconds=10.0)
    except Unreachable as error:
        raise OctavoError(f"{error.message}. Start one: octavo serve MODEL") from None
    if answer.status != 200:
        raise OctavoError(f"{address} answers {answer.status}: {answer.message}")
    models = answer.json()["data"]
    chosen = next((each for each in models if each["id"] == model), None if model else models[0])
    if chosen is None:
        raise ConfigError(
            f"{address} serves {', '.join(each['id'] for each in models)}, not {model}.", flag="--model"
        )  # fmt: skip
    return str(chosen["id"]), int(chosen.get("max_model_len") or 8192)


def _warn(client: Client, target: Target) -> None:
    """What will not go well."""
    if client.agent and target.context < AGENT_CONTEXT:
        say(
            f"notice: the context is {target.context:,} tokens; coding agents send more than {AGENT_CONTEXT:,} before "
            "the first question. octavo serve MODEL --max-model-len 32768"
        )
    if client is CLIENTS["claude"] and "/" in target.model:
        say(f"notice: {target.model} has a slash in it, which this client may refuse: octavo serve --served-model-name")


def _show(setup: Setup, words: tuple[str, ...], bare: bool, files: bool = True) -> None:
    """Files, variables and the command, as a shell would take them. bare: variables to be evaluated."""
    for file in setup.files if files else ():
        where = {None: "", "yaml": " (an entry of the list)"}.get(file.shared, f" (under {file.shared})")
        click.echo(f"# {file.path}{where}\n{file.text}")
    for key, value in setup.variables.items():
        click.echo(f"export {key}={shlex.quote(value)}")
    if setup.command and not bare:
        click.echo(shlex.join([*setup.command, *words]))


class Launch(OptionCommand):
    """Options of the client, behind its name, are the client's own."""

    words = tuple(CLIENTS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes = {name for name, (_, value) in self.table.spellings.items() if value}
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "--":
            at += 2 if args[at].replace("_", "-") in takes else 1
        at += 1  # the client
        while at < len(args) and args[at].partition("=")[0] in self.table.spellings:
            at += 2 if args[at] in takes else 1
        rest = args[at:]
        made = [*args[:at], *(["--", *(rest[1:] if rest[:1] == ["--"] else rest)] if rest else [])]
        return super().parse_args(ctx, made)


command = Launch(
    "launch",
    run,
    "Start a client on the server that runs here. Without CLIENT: the list. What it needs is written beside your own "
    "configuration; options of octavo come before the client's own.",
    nouns=(LogConfig,),
    own=[
        click.Argument(["client"], required=False, metavar="[CLIENT]"),
        click.Argument(["words"], nargs=-1, metavar="[ARGS]"),
        click.Option(["--model", "-m"], metavar="NAME", help="which model (default: the first that is served)"),
        click.Option(["--url"], metavar="URL", help="which server (default: OPENAI_BASE_URL, or the one that runs)"),
        click.Option(["--print", "only_print"], is_flag=True, help="show what would be written and set; write nothing"),
        click.Option(["--config-only"], is_flag=True, help="write, and do not start it"),
        click.Option(["--restore"], is_flag=True, help="take back what was written for it"),
    ],
    model_argument=False,
)
