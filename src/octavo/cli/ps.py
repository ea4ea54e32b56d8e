"""`octavo ps`: the servers of this user that run, what they serve, since when, and how busy they are."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.listing import ago
from octavo.cli.servers import Seen, look_at_all, running
from octavo.cli.terminal import columns, say
from octavo.config import LogConfig
from octavo.settings import Settings, client_environment

HEAD = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "ADDRESS", "PID", "SINCE", "LOAD")
KEY = click.Option(["--api-key"], multiple=True, metavar="KEY", help="key of a server that needs one; may be repeated")


def known_keys(settings: Settings, given: tuple[str, ...]) -> list[str]:
    """Keys that may open a server of this user: those named, OCTAVO_API_KEY's, OPENAI_API_KEY's."""
    own = client_environment().api_key
    return list(dict.fromkeys([*given, *settings.server.api_key, *([own] if own else [])]))


def run(settings: Settings, as_json: bool, api_key: tuple[str, ...]) -> None:
    """Print the table, or a JSON list."""
    found = asyncio.run(look_at_all(running(), known_keys(settings, api_key)))
    if as_json:
        click.echo(json.dumps([as_data(each) for each in found], indent=2, ensure_ascii=False))
        return
    now = time.time()
    for line in columns([HEAD, *(row(each, now) for each in found)], right=frozenset({7})):
        click.echo(line.rstrip())
    if not found:
        say("no server of this user runs; octavo serve starts one")


def row(seen: Seen, now: float) -> tuple[str, ...]:
    """A line of the table."""
    process = seen.process
    ready = seen.state == "ready"
    asked = process.words[0] if process.words and not process.words[0].startswith("-") else "?"
    busy = "?" if seen.running is None else f"{seen.running} running, {seen.waiting} waiting"
    return (
        seen.names[0] if seen.names else Path(asked).name,
        seen.id.removeprefix("sha256:")[:12] or "-",
        f"{seen.nbytes / 1e6:,.0f} MB" if ready else "-",
        "100% CPU",
        str(seen.context) if ready else "-",
        "Forever",
        " ".join(map(str, process.addresses)),
        str(process.pid),
        ago(now - process.since),
        busy if ready else seen.state,
    )


def as_data(seen: Seen) -> dict[str, Any]:
    """For --json: sizes in bytes."""
    process = seen.process
    return {
        "names": seen.names,
        "id": seen.id,
        "size": seen.nbytes,
        "context": seen.context,
        "state": seen.state,
        "addresses": [str(each) for each in process.addresses],
        "pid": process.pid,
        "since": datetime.fromtimestamp(process.since, UTC).isoformat(timespec="seconds"),
        "running": seen.running,
        "waiting": seen.waiting,
        "command": ["octavo", "serve", *_without_keys(process.words)],
    }


def _without_keys(words: tuple[str, ...]) -> list[str]:
    """A command line as it may be shown."""
    made, hide = [], False
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        made.append("***" if hide else f"{name}=***" if name.endswith("api-key") and equals else word)
        hide = name.endswith("api-key") and not equals
    return made


command = OptionCommand(
    "ps",
    run,
    "The octavo servers of this user that run: what they serve, where, since when, and how busy they are.",
    nouns=(LogConfig,),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="a JSON list, sizes in bytes"), KEY],
    model_argument=False,
)
