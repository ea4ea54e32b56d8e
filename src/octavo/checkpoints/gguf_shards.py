"""A GGUF model that lies in several files (llama.cpp's gguf-split): any one of them names them all.

Every part is a whole GGUF file with a header of its own; the first holds the keys of the model, tensors keep the file
they are in. A set that is not complete and of one mould is refused by the file that does not fit. It knows nothing of
what tensors are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from octavo.checkpoints.checkpoint import TensorInfo
from octavo.checkpoints.gguf import MAX_TENSORS, GGUFFile, read_gguf
from octavo.errors import CheckpointError

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
MAX_PARTS = 4096  # far above any model: the largest in use have 130 parts


def part_names(name: str) -> list[str]:
    """All file names of the model that `name` is a part of, in order; [name] for a file that is no part."""
    found = PART.match(name)
    if found is None:
        return [name]
    count = min(int(found["count"]), MAX_PARTS + 1)  # a name may say 99999; that many are refused before this matters
    return [f"{found['stem']}-{number:05}-of-{found['count']}.gguf" for number in range(1, count + 1)]


def read_model(path: Path) -> tuple[GGUFFile, tuple[Path, ...]]:
    """The model in `path` and in its other parts: the first part's keys with the tensors of all, and the files.

    Raises CheckpointError naming the part that is missing, of another count, in another's place, or that repeats a
    tensor; whatever `read_gguf` raises about one of them.
    """
    named = read_gguf(path)
    count = _count(named)
    if count == 1:
        return named, (path,)
    found = PART.match(path.name)
    if found is None or int(found["count"]) != count:
        _fail(path, "split.count", f"is {count}, so the file must be called NAME-00001-of-{count:05}.gguf or the like")
    files = tuple(path.with_name(name) for name in part_names(path.name))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(
            f"{path} is one of {count} parts and {path.parent} lacks {shown}: fetch them too", path=str(path)
        )
    parts = [named if file == path else read_gguf(file) for file in files]
    for number, part in enumerate(parts):
        _check_place(part, number, count)
    tensors = _joined(parts)
    _check_total(parts, len(tensors))
    return replace(parts[0], tensors=tensors), files


def _count(part: GGUFFile) -> int:
    value = part.metadata.get("split.count", 1)
    if type(value) is not int or not 0 <= value <= MAX_PARTS:
        _fail(part.path, "split.count", f"is {str(value)[:40]}, not a number up to {MAX_PARTS:,}")
    return max(value, 1)  # gguf-split --merge leaves 0


def _check_place(part: GGUFFile, number: int, count: int) -> None:
    """Counted from 0, as the files do."""
    if _count(part) != count:
        _fail(part.path, "split.count", f"is {_count(part)}, the other parts say {count}")
    found = part.metadata.get("split.no")
    if type(found) is not int or found != number:
        _fail(part.path, "split.no", f"is {str(found)[:40]}, by its name it is {number}: two files were exchanged")


def _joined(parts: Iterable[GGUFFile]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"broken GGUF {part.path}: tensor '{name[:100]}' is also in {tensors[name].file.name} "
                    f"(offset {tensor.offset:#x})",
                    path=str(part.path),
                    key=name,
                )
            tensors[name] = tensor
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"broken GGUF {part.path}: more than {MAX_TENSORS:,} tensors in its parts")
    return tensors


def _check_total(parts: list[GGUFFile], total: int) -> None:
    for part in parts:
        stated = part.metadata.get("split.tensors.count", total)
        if stated != total:
            _fail(part.path, "split.tensors.count", f"is {str(stated)[:40]}, the parts have {total} tensors")


def _fail(path: Path, key: str, why: str) -> NoReturn:
    raise CheckpointError(f"broken GGUF {path}: key '{key}' {why}", path=str(path), key=key)
