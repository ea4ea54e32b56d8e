"""Models as files on this machine: what one is, have another, remove one. For the server's management routes and for
the command line.

It knows the caches and what is made of a model in them; it loads nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from octavo.checkpoints.describe import Description as Description
from octavo.checkpoints.describe import describe
from octavo.checkpoints.inventory import Removal, plan_removal
from octavo.config import EngineConfig
from octavo.errors import ModelNotFound, OctavoError
from octavo.settings import hub_cache

LONGEST_NAME = 256


@dataclass
class Shelf:
    """path: the served model's file or folder; engine: how it was asked for, and where the caches are."""

    path: Path
    engine: EngineConfig
    _description: Description | None = field(default=None, repr=False)

    async def description(self) -> Description:
        """Of the served model; read in a thread, once: the vocabulary of a GGUF file takes up to 0.3 s."""
        if self._description is None:
            self._description = await asyncio.to_thread(describe, self.path)
        return self._description

    async def modified(self) -> str:
        """When its files were written, in RFC 3339."""
        files = (await self.description()).files
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC).isoformat()

    async def digest(self) -> str:
        """64 hex digits that stand for its files, by names and sizes: reading a model's bytes takes minutes."""
        files = (await self.description()).files
        named = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        return hashlib.sha256(named.encode()).hexdigest()

    def fetch(self, name: str, progress: Callable[[str, int, int], None]) -> None:
        """Have the files of another model. Raises ModelNotFound, also for paths: what lies elsewhere on this machine is
        no client's business."""
        from octavo.start import find_model

        path_like = name.startswith(("/", ".", "~")) or "\0" in name or len(name) > LONGEST_NAME
        if path_like or Path(name).expanduser().exists():
            raise ModelNotFound(f"no model named '{name[:LONGEST_NAME]}'", param="model")
        find_model(replace(self.engine, model=name, revision=None), progress)

    def remove(self, name: str) -> None:
        """Remove another model's files and what was made of them. Raises ModelNotFound."""
        for removal in removals(replace(self.engine, model=name, revision=None)):
            removal.carry_out()


def hub_folder(engine: EngineConfig) -> Path:
    """--download-dir, else the hub's cache."""
    return Path(engine.download_dir).expanduser() if engine.download_dir else hub_cache()


def removals(engine: EngineConfig) -> tuple[Removal, Removal]:
    """The files of --model, and what was made of them. Raises ModelNotFound; what lies outside of octavo's folder and
    the hub's cache is never among them."""
    removal = plan_removal(engine.model, engine.cache_path, hub_folder(engine))
    made = _made_of(engine)
    return removal, Removal("", made, sum(file.stat().st_size for path in made for file in _files(path)))


def _made_of(engine: EngineConfig) -> tuple[Path, ...]:
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
