"""The hub's cache on disk, in the layout that its own library and all others share: what is there, and whole.

models--ORG--NAME/refs/REVISION holds a commit, snapshots/COMMIT/FILE links to blobs/ETAG. It never asks the network, so
that what is cached starts without one.
"""

from __future__ import annotations

import re
from pathlib import Path

from octavo.checkpoints.gguf_shards import part_names
from octavo.checkpoints.hub_names import HubName, choose_gguf, is_vocabulary, weight_names
from octavo.checkpoints.safetensors import INDEX, MAX_INDEX, read_json
from octavo.errors import CheckpointError

COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


class RepoCache:
    """One repository's folder in a cache, there or not."""

    def __init__(self, cache: Path, repo: str) -> None:
        self.repo = repo
        name = f"models--{repo.replace('/', '--')}"
        self.root = cache / name
        self.locks = cache / ".locks" / name

    def blob(self, etag: str) -> Path:
        return self.root / "blobs" / etag

    def snapshot(self, commit: str) -> Path:
        return self.root / "snapshots" / commit

    def commit_of(self, revision: str | None) -> str | None:
        """The commit that a revision stood for when it was last fetched; None where it never was."""
        named = revision or MAIN
        if COMMIT.fullmatch(named):
            return named
        try:
            found = (self.root / "refs" / named).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return found if COMMIT.fullmatch(found) else None

    def remember(self, revision: str | None, commit: str) -> None:
        """A branch or tag stands for this commit."""
        named = revision or MAIN
        if COMMIT.fullmatch(named):
            return
        ref = self.root / "refs" / named
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)

    def link(self, commit: str, name: str, etag: str) -> Path:
        """Puts a blob into a snapshot under its name, as a relative link; returns the link."""
        pointer = self.snapshot(commit) / name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        up = "/".join(".." for _ in pointer.parent.relative_to(self.root).parts)
        if not pointer.exists():
            pointer.unlink(missing_ok=True)  # a link to a blob that is gone
            pointer.symlink_to(f"{up}/blobs/{etag}")
        return pointer

    def find(self, name: HubName) -> Path | None:
        """The folder or .gguf file that a name stands for, if all of it is there."""
        commit = self.commit_of(name.revision)
        if commit is None:
            return None
        return usable(self.snapshot(commit), name.tag)


def usable(snapshot: Path, tag: str | None) -> Path | None:
    """The folder, or the .gguf file in it, when nothing of it is missing."""
    if tag is None and (snapshot / "config.json").exists() and not missing_files(snapshot):
        return snapshot
    present = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.exists()}
    chosen = choose_gguf(present, tag)
    return snapshot / chosen if chosen and present.issuperset(part_names(chosen)) else None


def missing_files(snapshot: Path) -> list[str]:
    """What a folder with config.json lacks of a model: weights that its index names, or any weights; a tokenizer."""
    index = snapshot / INDEX
    if index.exists():
        weights = indexed_weights(index)
    else:
        weights = weight_names(path.name for path in snapshot.glob("*.safetensors")) or ["model.safetensors"]
    missing = [name for name in weights if not (snapshot / name).exists()]
    if not any(is_vocabulary(path.name) for path in snapshot.iterdir() if path.exists()):
        missing.append("tokenizer.json")
    return missing


def indexed_weights(index: Path) -> list[str]:
    """The weight files that an index names, sorted. Raises CheckpointError."""
    weight_map = read_json(index, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: key weight_map is missing", path=str(index), key="weight_map")
    return sorted({str(name) for name in weight_map.values()})
