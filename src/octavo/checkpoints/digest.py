"""SHA-256 of model files, remembered by (path, size, mtime, inode). It knows nothing of what is in them."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from octavo.errors import CheckpointError


def file_digest(path: Path, cache_dir: Path | None = None) -> str:
    """SHA-256 (hex) of one file. A note in `cache_dir`/digests spares reading it again while it is unchanged."""
    try:
        about = path.stat()
        note = _note(path, about, cache_dir)
        if note is not None and note.exists() and re.fullmatch("[0-9a-f]{64}", remembered := note.read_text("ascii")):
            return remembered
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
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


def _note(path: Path, about: os.stat_result, cache_dir: Path | None) -> Path | None:
    if cache_dir is None:
        return None
    key = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ino}"
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
