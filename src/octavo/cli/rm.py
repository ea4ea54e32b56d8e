"""`octavo rm MODEL`: remove a model from octavo's folder or the hub's cache, and what was made of it.

That is its packed weights and its tokenizer. What lies elsewhere is never touched.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from octavo.checkpoints.inventory import Removal, plan_removal
from octavo.cli.flags import OptionCommand
from octavo.cli.listing import hub_folder
from octavo.cli.terminal import say, size
from octavo.config import EngineConfig, LogConfig
from octavo.errors import ConfigError, ModelNotFound, OctavoError
from octavo.settings import Settings


def run(settings: Settings, yes: bool) -> None:
    """Ask, then remove. Raises ModelNotFound, ConfigError where nobody can be asked."""
    engine = settings.engine
    removal = plan_removal(engine.model, engine.cache_path, hub_folder(engine))
    made = made_of(engine)
    freed = removal.nbytes + sum(file.stat().st_size for path in made for file in _files(path))
    what = f"{removal.name}, {size(freed)}"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{what}: to remove it without being asked, add --yes.", flag="--yes")
        if not click.confirm(f"remove {what}?", err=True):
            return
    try:
        removal.carry_out()
        Removal("", made, 0).carry_out()
    except OSError as error:
        raise ModelNotFound(f"cannot remove {error.filename}: {error.strerror}", param="model") from error
    say(f"removed {what}")


def made_of(engine: EngineConfig) -> tuple[Path, ...]:
    """Packed weights and tokenizer in octavo's cache that are of this model and can be made again."""
    from octavo.checkpoints.checkpoint import open_checkpoint
    from octavo.checkpoints.digest import remembered_digest
    from octavo.checkpoints.sources import resolve
    from octavo.execution.packed_file import kept_of
    from octavo.tokenizer import gguf_tokenizer

    cache = engine.cache_path
    try:
        files = resolve(
            engine.model, cache_dir=cache, hub_cache=hub_folder(engine), offline=True, revision=engine.revision
        )
        checkpoint = open_checkpoint(files.path)
    except OctavoError:
        return ()  # not whole, or not one of ours: nothing was made of it
    found = list(kept_of(cache, checkpoint.digest(cache)))
    if checkpoint.kind == "gguf":
        folder = cache / "tokenizer"
        digest = remembered_digest(
            checkpoint.path, None, "vocabulary", lambda: gguf_tokenizer.content_digest(checkpoint.tokenizer_metadata())
        )
        found.append(folder / gguf_tokenizer.entry_name(checkpoint.tokenizer_metadata(arrays=False), digest))
    return tuple(path for path in found if path.exists())


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


command = OptionCommand(
    "rm",
    run,
    "Remove a downloaded model, by its name in `octavo list`, and what was made of it.",
    nouns=(EngineConfig, LogConfig),
    own=[click.Option(["--yes", "-y"], is_flag=True, help="do not ask")],
)
