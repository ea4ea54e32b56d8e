"""`octavo list`: the models on this machine, as Ollama's columns show them. It opens no model and asks no network."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from octavo.checkpoints.catalogue import CATALOGUE
from octavo.checkpoints.digest import file_digest
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import columns, say
from octavo.config import EngineConfig, Settings, hub_cache

ID_LENGTH = 12
WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Listed:
    """A model on this machine. id: of its file's SHA-256, or of the hub's commit."""

    name: str
    id: str
    size: int  # bytes
    modified: float  # seconds since 1970
    path: str


def listed(engine: EngineConfig) -> list[Listed]:
    """Models of octavo's own folder and of the hub's cache, newest first."""
    hub = Path(engine.download_dir).expanduser() if engine.download_dir else hub_cache()
    return sorted([*_own(engine.cache_path), *_of_hub(hub)], key=lambda each: -each.modified)


def _own(cache: Path) -> list[Listed]:
    names = {entry.file: entry.name for entry in CATALOGUE.values() if entry.file}
    found = []
    for file in sorted((cache / "models").glob("*.gguf")):
        about, name = file.stat(), names.get(file.name, str(file))
        digest = file_digest(file, cache)
        found.append(Listed(name, digest[:ID_LENGTH], about.st_size, about.st_mtime, str(file)))
    return found


def _of_hub(cache: Path) -> list[Listed]:
    """One entry for each repository's newest snapshot that has weights."""
    found = []
    for folder in sorted(cache.glob("models--*")):
        snapshots = [each for each in folder.glob("snapshots/*") if _weights(each)]
        if not snapshots:
            continue
        newest = max(snapshots, key=lambda each: each.stat().st_mtime)
        nbytes = sum(each.stat().st_size for each in newest.rglob("*") if each.is_file())
        name = folder.name.removeprefix("models--").replace("--", "/")
        found.append(Listed(name, newest.name[:ID_LENGTH], nbytes, newest.stat().st_mtime, str(newest)))
    return found


def _weights(snapshot: Path) -> list[Path]:
    return [each for each in snapshot.glob("*") if each.suffix in WEIGHTS and each.is_file()]


def ago(seconds: float) -> str:
    """`5 minutes ago`."""
    for unit, length in (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def run(settings: Settings, as_json: bool) -> None:
    """Print the table, or a JSON list."""
    models = listed(settings.engine)
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
    packed = [each.stat().st_size for each in (settings.engine.cache_path / "packed").glob("*.weights")]
    if packed:
        say(
            f"packed weights: {len(packed)} files, {sum(packed) / 1e6:,.0f} MB (made again when needed: --packed-cache)"
        )
        say(f"  to remove: rm -r {settings.engine.cache_path / 'packed'}")
    if not models:
        say(f"no models yet; octavo pull MODEL, or one of: {', '.join(CATALOGUE)}")


command = OptionCommand(
    "list",
    run,
    "The models on this machine: octavo's own folder and the hub's cache.",
    nouns=(EngineConfig,),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="a JSON list with sizes in bytes and paths")],
    model_argument=False,
)
