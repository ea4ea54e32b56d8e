"""SHA-256 of model files, or of parts of them, remembered by (path, size, mtime, inode). It knows nothing of what is in
them."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from octavo.errors import CheckpointError


def file_digest(path: Path, cache_dir: Path | None = None) -> str:
    """SHA-256 (hex) of one file. A note in `cache_dir`/digests spares reading it again while it is unchanged."""

    def whole() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered_digest(path, cache_dir, "", whole)


def remembered_digest(path: Path, cache_dir: Path | None, part: str, make: Callable[[], str]) -> str:
    """SHA-256 (hex) of a named part of a file ("": all of it), made by `make` where no note of it is kept."""
    try:
        note = _note(path, path.stat(), cache_dir, part)
        if note is not None and note.exists() and re.fullmatch("[0-9a-f]{64}", kept := note.read_text("ascii")):
            return kept
        found = make()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", path=str(path)) from error
    if note is not None:
        remember(note, found)
    return found


def files_digest(paths: Iterable[Path], cache_dir: Path | None = None) -> str:
    """One SHA-256 of several files: that of the file where it is one, else of their names and digests, by name."""
    digests = sorted((path.name, file_digest(path, cache_dir)) for path in paths)
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in digests).encode()).hexdigest()


def remember_digest(path: Path, digest: str, cache_dir: Path) -> None:
    """Notes a digest that was taken on the way, while downloading."""
    note = _note(path, path.stat(), cache_dir)
    if note is not None:
        remember(note, digest)


def _note(path: Path, about: os.stat_result, cache_dir: Path | None, part: str = "") -> Path | None:
    if cache_dir is None:
        return None
    key = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ino}" + (f"\0{part}" if part else "")
    return cache_dir / "digests" / hashlib.sha256(os.fsencode(key)).hexdigest()


def remember(note: Path, text: str) -> None:
    """Writes a note whole or not at all. A folder that cannot be written costs time at the next start, nothing else."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="ascii") as file:
            file.write(text)
        os.replace(file.name, note)
    except OSError:
        return  # a read-only or full disk: the digest is right all the same
