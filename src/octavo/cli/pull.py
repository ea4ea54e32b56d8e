"""`octavo pull MODEL`: have the files of a model on this machine, whole and verified, without opening them."""

from __future__ import annotations

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, say, size
from octavo.config import EngineConfig, LogConfig, Settings, client_environment
from octavo.errors import ConfigError


def run(settings: Settings, force: bool) -> None:
    """Fetch what is missing; the path is the result."""
    from octavo.start import find_model

    if force:
        _forget(settings.engine)
    progress = Progress(client_environment().plain)
    try:
        files = find_model(settings.engine, progress.report)
    finally:
        progress.close()
    whole = [files.path] if files.path.is_file() else [each for each in files.path.rglob("*") if each.is_file()]
    say(f"{files.names[0]} · {size(sum(each.stat().st_size for each in whole))} · from {files.source}")
    click.echo(files.path)


def _forget(engine: EngineConfig) -> None:
    """Remove the catalogue's file, so that it is fetched again."""
    from octavo.checkpoints.catalogue import entry_named

    entry = entry_named(engine.model)
    if entry is None or entry.wheel is None:
        raise ConfigError(
            f"--force: {engine.model} does not come from octavo's own folder; files of the hub are removed with "
            "`hf cache rm`.",
            flag="--force",
        )
    (engine.cache_path / "models" / entry.file).unlink(missing_ok=True)


command = OptionCommand(
    "pull",
    run,
    "Download a model: a catalogue name or a hub id. Prints where it is.",
    nouns=(EngineConfig, LogConfig),
    own=[click.Option(["--force"], is_flag=True, help="fetch it again although it is there")],
)
