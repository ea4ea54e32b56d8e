"""Which models lie on this machine, and what goes when one is removed: octavo's own folder and the hub's cache.

It looks at names, links and sizes; it opens no model and asks no network. Nothing outside the two folders is ever
removed: a link goes, not what it points to, unless that is a blob of the same repository.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoints.catalogue import CATALOGUE, entry_named
from octavo.checkpoints.digest import file_digest
from octavo.checkpoints.gguf_shards import part_names
from octavo.checkpoints.hub_cache import COMMIT, RepoCache
from octavo.checkpoints.hub_names import HubName, choose_gguf, gguf_models, parse, stem, weight_names
from octavo.errors import ModelNotFound

ID_LENGTH = 12
QUANTIZATION = re.compile(r"(?:^|[/._-])((?:UD-)?(?:I?Q\d\w*|TQ\d_0|BF16|F16|F32|MXFP4))$", re.IGNORECASE)
REPO_FOLDER = "models--"
PARTIAL = ".incomplete"


@dataclass(frozen=True)
class Listed:
    """A model on this machine. id: of its file's SHA-256, or of the hub's commit."""

    name: str
    id: str
    size: int  # bytes
    modified: float  # seconds since 1970
    path: str


@dataclass(frozen=True)
class Removal:
    """What goes with a model: files and whole folders, and the bytes that this frees on the disk."""

    name: str
    paths: tuple[Path, ...]
    nbytes: int

    def carry_out(self) -> None:
        """Raises OSError."""
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def listed(cache: Path, hub: Path) -> list[Listed]:
    """Models of octavo's own folder (`cache`/models) and of the hub's cache, newest first."""
    return sorted([*_own(cache), *_of_hub(hub)], key=lambda each: -each.modified)


def unfinished(hub: Path) -> list[Path]:
    """Partial files of the hub's cache."""
    return sorted(hub.glob(f"{REPO_FOLDER}*/blobs/*{PARTIAL}"))


def _own(cache: Path) -> list[Listed]:
    names = {entry.file: entry.name for entry in CATALOGUE.values() if entry.file}
    found = []
    for file in sorted((cache / "models").glob("*.gguf")):
        about, name = file.stat(), names.get(file.name, str(file))
        found.append(Listed(name, file_digest(file, cache)[:ID_LENGTH], about.st_size, about.st_mtime, str(file)))
    return found


def _of_hub(hub: Path) -> list[Listed]:
    """Of each repository's newest snapshot with weights: the folder, and each GGUF model."""
    short = {entry.hub.lower(): entry.name for entry in CATALOGUE.values() if entry.hub}
    found = []
    for root in sorted(hub.glob(f"{REPO_FOLDER}*")):
        repo = root.name.removeprefix(REPO_FOLDER).replace("--", "/")
        snapshots = [each for each in root.glob("snapshots/*") if _models(each)]
        if not snapshots:
            continue
        newest = max(snapshots, key=lambda each: each.stat().st_mtime)
        for model, files in _models(newest).items():
            tag = QUANTIZATION.search(stem(model)) if model else None
            name = repo + (f":{tag[1]}" if tag else f":{model}" if model else "")
            blob = files[0].resolve().name
            size, modified = sum(each.stat().st_size for each in files), max(each.stat().st_mtime for each in files)
            mark = blob if model and len(blob) == 64 else newest.name
            path = newest / model if model else newest
            found.append(Listed(short.get(name.lower(), name), mark[:ID_LENGTH], size, modified, str(path)))
    return found


def _models(snapshot: Path) -> dict[str, list[Path]]:
    """GGUF model (first part) -> its files; '' -> all files of a folder with safetensors weights."""
    present = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    found = {model: [present[part] for part in part_names(model) if part in present] for model in gguf_models(present)}
    if weight_names(present):
        found[""] = [path for name, path in present.items() if not name.endswith(".gguf")]
    return {model: files for model, files in found.items() if files}


def plan_removal(name: str, cache: Path, hub: Path) -> Removal:
    """What `octavo rm NAME` would remove. Raises ModelNotFound for what is not here, or lies outside both folders."""
    entry = entry_named(name)
    if entry is not None and entry.file:
        folder = cache / "models"
        own = [folder / entry.file, folder / f".{entry.file}.lock", folder / f".{entry.file}.download"]
        return _removal(entry.name, [path for path in own if path.is_symlink() or path.exists()], folder)
    path = Path(name).expanduser()
    if path.exists():
        return _of_path(path, cache, hub)
    named = parse(entry.hub if entry is not None else name)
    if named is None:
        raise ModelNotFound(f"no model named '{name}' is here; `octavo list` shows the names", param="model")
    return _of_repo(entry.name if entry else name, named, hub)


def _of_path(path: Path, cache: Path, hub: Path) -> Removal:
    """A path as `octavo list --json` gives it."""
    whole = path.absolute()
    if whole.parent == (cache / "models").absolute():
        return _removal(str(path), [whole], cache / "models")
    try:
        root, where, commit, *rest = whole.relative_to(hub.absolute()).parts
    except ValueError:
        root, where, commit, rest = "", "", "", []
    if where != "snapshots" or not root.startswith(REPO_FOLDER) or ".." in whole.parts:
        raise ModelNotFound(
            f"{path} is neither in {cache / 'models'} nor in the hub's cache {hub}: octavo removes only what it or the "
            "hub put there",
            param="model",
        )
    repo = root.removeprefix(REPO_FOLDER).replace("--", "/")
    return _of_repo(str(path), HubName(repo, "/".join(rest) or None, commit), hub)


def _of_repo(name: str, wanted: HubName, hub: Path) -> Removal:
    """A whole repository; of it one revision, one GGUF model, or both."""
    repo = RepoCache(hub, wanted.repo)
    if wanted.tag is None and wanted.revision is None:
        whole = [path for path in (repo.root, repo.locks) if path.exists()]
        return _removal(name, whole, hub)
    snapshots = [path for path in (repo.root / "snapshots").glob("*") if path.is_dir()]
    if wanted.revision is not None:
        commit = wanted.revision if wanted.revision in {each.name for each in snapshots} else None
        commit = commit or repo.commit_of(wanted.revision)
        chosen = [each for each in snapshots if each.name == commit]
    else:
        chosen = snapshots
    pointers = [pointer for each in chosen for pointer in _pointers(each, wanted.tag)]
    kept = {path for each in snapshots for path in _files(each)} - set(pointers)
    if not any(path.name.endswith((".gguf", ".safetensors")) for path in kept):
        return _removal(name, [path for path in (repo.root, repo.locks) if path.exists()] if pointers else [], hub)
    still = {path.resolve() for path in kept}
    blobs = {path.resolve() for path in pointers} - still
    inside = [path for path in sorted(blobs) if path.parent == (repo.root / "blobs").resolve()]
    empty = [each for each in chosen if wanted.tag is None]
    refs = [ref for ref in (repo.root / "refs").rglob("*") if ref.is_file() and _stands_for(ref, empty)]
    return _removal(name, [*inside, *(empty or pointers), *refs], hub)


def _pointers(snapshot: Path, tag: str | None) -> list[Path]:
    files = _files(snapshot)
    if tag is None:
        return files
    present = {path.relative_to(snapshot).as_posix() for path in files}
    model = choose_gguf(present, tag)
    return [snapshot / part for part in part_names(model) if part in present] if model else []


def _files(snapshot: Path) -> list[Path]:
    return [path for path in snapshot.rglob("*") if path.is_symlink() or path.is_file()]


def _stands_for(ref: Path, snapshots: Iterable[Path]) -> bool:
    return ref.read_text(errors="replace").strip() in {each.name for each in snapshots if COMMIT.fullmatch(each.name)}


def _removal(name: str, paths: list[Path], looked_in: Path) -> Removal:
    if not paths:
        raise ModelNotFound(f"{name} is not in {looked_in}; `octavo list` shows what is here", param="model")
    files = [file for path in paths for file in ([path] if not path.is_dir() else path.rglob("*"))]
    return Removal(name, tuple(paths), sum(file.lstat().st_size for file in files if not file.is_dir()))
