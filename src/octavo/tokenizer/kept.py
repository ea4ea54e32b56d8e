"""Built tokenizers, kept as tokenizer.json in a folder each, with a checksum.

Building one takes seconds (merges are sorted, pieces cut), reading one a tenth of that. It knows folders and files; it
does not know what a tokenizer was built from.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import tokenizers

log = logging.getLogger(__name__)


def kept_or_built(entry: Path | None, build: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """The tokenizer that the folder `entry` keeps, else a built one, which is kept. A damaged one is built again."""
    if entry is None:
        return build()
    kept = _read(entry)
    if kept is not None:
        return kept
    built = build()
    _write(entry, built)
    return built


def _read(entry: Path) -> tokenizers.Tokenizer | None:
    """The kept tokenizer; None if there is none or its checksum does not hold."""
    try:
        content = (entry / "tokenizer.json").read_bytes()
        stated = (entry / "sha256").read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() != stated:
        log.warning("tokenizer cache %s is damaged and is built again", entry)
        return None
    return tokenizers.Tokenizer.from_buffer(content)


def _write(entry: Path, tokenizer: tokenizers.Tokenizer) -> None:
    content = tokenizer.to_str().encode()
    try:
        entry.mkdir(parents=True, exist_ok=True)
        _replace(entry / "tokenizer.json", content)
        _replace(entry / "sha256", hashlib.sha256(content).hexdigest().encode())
    except OSError as error:  # a read-only cache costs time at every start, not the start itself
        log.warning("cannot keep the tokenizer in %s: %s", entry, error)


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, also when two processes write at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
