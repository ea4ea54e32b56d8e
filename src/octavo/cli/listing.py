"""`octavo list`: the models on this machine, as Ollama's columns show them. It opens no model and asks no network."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime

import click

from octavo.checkpoints.catalogue import CATALOGUE
from octavo.checkpoints.inventory import listed, unfinished
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import columns, say
from octavo.config import EngineConfig
from octavo.settings import Settings
from octavo.shelf import hub_folder


def ago(seconds: float) -> str:
    """`5 minutes ago`."""
    for unit, length in (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def run(settings: Settings, as_json: bool) -> None:
    """Print the table, or a JSON list."""
    cache, hub = settings.engine.cache_path, hub_folder(settings.engine)
    models = listed(cache, hub)
    if as_json:
        rows = [
            asdict(each) | {"modified": datetime.fromtimestamp(each.modified, UTC).isoformat(timespec="seconds")}
            for each in models
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    now = time.time()
    table = [("NAME", "ID", "SIZE", "MODIFIED")]
    table += [(each.name, each.id, f"{each.size / 1e6:,.0f} MB", ago(now - each.modified)) for each in models]
    for line in columns(table):
        click.echo(line.rstrip())
    for what, files, then in (
        (
            "packed weights",
            [*(cache / "packed").glob("*.weights")],
            "made again when needed; octavo rm NAME frees them",
        ),
        ("unfinished downloads", unfinished(hub), "octavo pull goes on where they ended"),
    ):
        if files:
            total = sum(each.stat().st_size for each in files)
            say(f"{what}: {len(files)} {'file' if len(files) == 1 else 'files'}, {total / 1e6:,.0f} MB ({then})")
    if not models:
        say(f"no models yet; octavo pull MODEL, MODEL being a hub id or one of: {', '.join(CATALOGUE)}")


command = OptionCommand(
    "list",
    run,
    "The models on this machine: octavo's own folder and the hub's cache.",
    nouns=(EngineConfig,),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="a JSON list with sizes in bytes and paths")],
    model_argument=False,
)
