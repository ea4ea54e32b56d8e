"""Configuration of other programs, put beside the user's own so that it can be taken back.

A file of ours alone is written only where none is, or where the one that is there is ours. Into a file that has to be
shared one entry is put; what was there before is remembered to the byte. It knows no client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError

BEGIN, END = "# octavo launch: begin", "# octavo launch: end"
_BLOCK = re.compile(rf"{BEGIN}.*?{END}\n", re.DOTALL)


@dataclass(frozen=True)
class File:
    """What a client is to read. shared: None for a file of ours alone; "yaml" for a list to which `text` is added;
    else the keys, between dots, under which `text` (JSON) stands in a JSON object."""

    path: Path
    text: str
    shared: str | None = None


@dataclass(frozen=True)
class Written:
    """A record of one file. ours: SHA-256 of what was written; before: what was there (base64), None for nothing."""

    path: str
    ours: str
    before: str | None
    shared: str | None


def planned(file: File, current: bytes | None) -> bytes:
    """What the whole file would be. Raises OctavoError where the user's own cannot be read."""
    if file.shared is None:
        return file.text.encode()
    kept = without(file.shared, current or b"", file.path)
    made = _with_block(kept, file) if file.shared == "yaml" else _with_key(kept, file)
    return made.encode()


def without(shared: str, current: bytes, path: Path) -> str:
    """The user's part of a shared file."""
    try:
        text = current.decode()
    except UnicodeDecodeError:
        raise OctavoError(f"{path} is not UTF-8; nothing was changed.") from None
    if shared == "yaml":
        return _BLOCK.sub("", text)
    made = _object(text, path)
    *folders, last = shared.split(".")
    at: Any = made
    for folder in folders:
        at = at.get(folder) if isinstance(at, dict) else None
    if not isinstance(at, dict) or last not in at:
        return text
    del at[last]
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _with_key(text: str, file: File) -> str:
    made = _object(text, file.path)
    *folders, last = (file.shared or "").split(".")
    at: Any = made
    for folder in folders:
        at = at.setdefault(folder, {})
        if not isinstance(at, dict):
            raise OctavoError(f"{file.path}: {folder} is no object; nothing was changed.")
    at[last] = json.loads(file.text)
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        made = json.loads(text or "{}")
    except ValueError as error:
        raise OctavoError(
            f"{path} is no plain JSON ({error}); nothing was changed. --print shows what to add"
        ) from None
    if not isinstance(made, dict):
        raise OctavoError(f"{path} is no JSON object; nothing was changed. --print shows what to add")
    return made


def _with_block(text: str, file: File) -> str:
    import yaml

    made = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{BEGIN}\n{file.text}{END}\n"
    try:
        right = isinstance(yaml.safe_load(made), list)
    except yaml.YAMLError:
        right = False
    if not right:
        raise OctavoError(f"{file.path} is no list at the left margin; nothing was changed. --print shows what to add")
    return made


class Ledger:
    """What was written for one client, in the state folder."""

    def __init__(self, folder: Path, client: str) -> None:
        self._path = folder / "launch" / f"{client}.json"

    def write(self, files: Sequence[File]) -> None:
        """Put all files in their places. Raises OctavoError before anything is written where one may not be."""
        known = {each.path: each for each in self._read()}
        made: list[tuple[File, bytes, Written]] = []
        for file in files:
            current, old = _content(file.path), known.get(str(file.path))
            ours = old is not None and current is not None and _digest(current) == old.ours
            if file.shared is None and current is not None and not ours:
                raise OctavoError(f"{file.path} is there and not octavo's: move it, or --print shows what to set")
            new = planned(file, current)
            made.append((file, new, Written(str(file.path), _digest(new), self._before(file, old, ours), file.shared)))
        records = known | {each.path: each for _, _, each in made}
        self._save(list(records.values()))  # first: what is not recorded could not be taken back
        for file, new, _ in made:
            _replace(file.path, new)

    def _before(self, file: File, old: Written | None, ours: bool) -> str | None:
        if old is not None and ours:
            return old.before
        current = _content(file.path)
        if current is None:
            return None
        kept = current if file.shared is None else without(file.shared, current, file.path).encode()
        return base64.b64encode(kept).decode()

    def restore(self, say: Callable[[str], object]) -> int:
        """Take back what was written; how many files. A file that changed since keeps those changes."""
        records = self._read()
        for each in records:
            path = Path(each.path)
            current = _content(path)
            if current is None:
                say(f"{path} is gone already")
            elif _digest(current) == each.ours and each.before is None:
                path.unlink()
                say(f"removed {path}")
            elif _digest(current) == each.ours:
                _replace(path, base64.b64decode(each.before or ""))
                say(f"restored {path}")
            elif each.shared is not None:
                _replace(path, without(each.shared, current, path).encode())
                say(f"{path} has changed since: octavo's entry is out, the rest stays")
            else:
                say(f"{path} has changed since and stays; remove it by hand")
        self._path.unlink(missing_ok=True)
        return len(records)

    def _read(self) -> list[Written]:
        try:
            return [Written(**each) for each in json.loads(self._path.read_bytes())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise OctavoError(f"{self._path} cannot be read: {error}") from None

    def _save(self, records: list[Written]) -> None:
        _replace(self._path, json.dumps([asdict(each) for each in records], indent=1).encode())


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OctavoError(f"{path} cannot be read: {error.strerror}; nothing was changed.") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user's eyes where it is new: it may hold a key."""
    try:
        real = path.resolve()  # a link stays one
        real.parent.mkdir(parents=True, exist_ok=True)
        mode = real.stat().st_mode & 0o777 if real.exists() else 0o600
        with tempfile.NamedTemporaryFile(dir=real.parent, delete=False) as file:
            file.write(data)
        os.chmod(file.name, mode)
        os.replace(file.name, real)
    except OSError as error:
        raise OctavoError(f"{path} cannot be written: {error.strerror}") from None
