"""Our own safetensors reader (format: huggingface/safetensors): headers, checked, and where the tensors' bytes are.

It accepts what the reference library accepts: tensors that fill the file from the header to its end without hole or
overlap. It reads no tensor and knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from octavo.checkpoints.checkpoint import GIT_LFS, LFS_POINTER, PICKLED, TensorInfo, refuse_pickle
from octavo.errors import CheckpointError

MAX_HEADER = 100_000_000  # the reference library's limit
INDEX = "model.safetensors.index.json"
MAX_INDEX = 64 << 20
UNREADABLE = {".onnx": "ONNX", ".xml": "OpenVINO", ".h5": "TensorFlow", ".msgpack": "Flax", ".tflite": "TFLite"}
# dtype -> (our name, bits of an element); those without a Format can be listed but not loaded
DTYPES = {
    "F32": ("f32", 32), "F16": ("f16", 16), "BF16": ("bf16", 16), "F64": ("f64", 64),
    "I64": ("i64", 64), "I32": ("i32", 32), "I16": ("i16", 16), "I8": ("i8", 8), "U64": ("u64", 64),
    "U32": ("u32", 32), "U16": ("u16", 16), "U8": ("u8", 8), "BOOL": ("bool", 8), "C64": ("c64", 64),
    "F8_E4M3": ("f8_e4m3", 8), "F8_E5M2": ("f8_e5m2", 8), "F8_E8M0": ("f8_e8m0", 8),
    "F8_E4M3FNUZ": ("f8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("f8_e5m2fnuz", 8),
    "F6_E2M3": ("f6_e2m3", 6), "F6_E3M2": ("f6_e3m2", 6), "F4": ("f4", 4),
}  # fmt: skip


def broken(path: Path, what: str, key: str | None = None, offset: int = 8) -> CheckpointError:
    """The error of a broken safetensors file; the header's JSON starts at byte 8."""
    return CheckpointError(f"broken safetensors {path}: {what} (offset {offset:#x})", path=str(path), key=key)


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The safetensors files of a model folder, and the index (tensor -> file name) where it has one.

    Order: the index, model.safetensors, the only *.safetensors. Raises CheckpointError, also for a folder that has
    only pickles.
    """
    index = folder / INDEX
    if index.exists():
        weight_map = _read_index(index)
        return tuple(folder / name for name in sorted(set(weight_map.values()))), weight_map
    single = folder / "model.safetensors"
    if single.exists():
        return (single,), None
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return tuple(found), None
    if found:
        raise CheckpointError(f"{folder} has {len(found)} .safetensors files but no {INDEX}", path=str(folder))
    pickles = sorted(entry for entry in folder.iterdir() if entry.suffix in PICKLED)
    if pickles:
        raise CheckpointError(refuse_pickle(pickles[0]), path=str(pickles[0]))
    others = sorted({UNREADABLE[entry.suffix] for entry in folder.iterdir() if entry.suffix in UNREADABLE})
    has = f"; it has files for {' and '.join(others)}, which octavo does not read" if others else ""
    raise CheckpointError(f"{folder} has no weights: no model.safetensors, no {INDEX}{has}", path=str(folder))


def read_tensors(files: Iterable[Path], weight_map: dict[str, str] | None) -> dict[str, TensorInfo]:
    """The tensors of all files. Raises CheckpointError for a tensor in two files, or not where the index says."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                raise broken(file, f"tensor '{name}' is also in {tensors[name].file.name}", name)
            tensors[name] = tensor
    for name, file_name in (weight_map or {}).items():
        if name not in tensors or tensors[name].file.name != file_name:
            where = f"in {tensors[name].file.name}" if name in tensors else "in no file"
            raise CheckpointError(
                f"{INDEX} says that tensor '{name}' is in {file_name}, it is {where}", path=file_name, key=name
            )
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    document = read_json(index, MAX_INDEX)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: key weight_map is missing or empty", path=str(index), key="weight_map")
    for name, file_name in weight_map.items():
        plain = isinstance(file_name, str) and file_name == os.path.basename(file_name) and "\0" not in file_name
        if not plain or not file_name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor '{name}' is said to be in {str(file_name)[:100]!r}, "
                "which is not a .safetensors file of this folder",
                path=str(index),
                key=name,
            )
        if not (index.parent / file_name).is_file():
            raise CheckpointError(
                f"{index}: file {file_name} of tensor '{name}' is missing; the download is probably incomplete",
                path=str(index),
                key=name,
            )
    return weight_map


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of a model folder, at most `limit` bytes. Raises CheckpointError naming file and place."""
    return parse_json(read_small(path, limit), path)


def read_small(path: Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"{path} has {size:,} bytes, the limit is {limit:,}", path=str(path))
            return file.read(size)  # not read(limit): that allocates the limit first
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """JSON bytes -> object; refuses duplicate keys, NaN, Infinity and nesting beyond Python's own limit."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise ValueError(f"key '{twice[:100]}' stands twice in one object")
        return found

    def constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"broken JSON in {path}: {why}", path=str(path)) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"broken JSON in {path}: not an object", path=str(path))
    return document


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, by name. Raises CheckpointError naming file, tensor and offset."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            if len(head) < 8:
                raise broken(path, f"needs 8 bytes of header length, the file has {size}", offset=0)
            length = int.from_bytes(head, "little")
            if GIT_LFS.startswith(head):
                raise broken(path, LFS_POINTER, offset=0)
            if length > MAX_HEADER:
                raise broken(path, f"header of {length:,} bytes, the limit is {MAX_HEADER:,}", offset=0)
            if length > size - 8:
                raise broken(path, f"header of {length:,} bytes in a file of {size:,}; incomplete download?", offset=0)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    entries = parse_json(raw, path)
    _check_metadata(path, entries.pop("__metadata__", None))
    data = 8 + length
    tensors = {name: _tensor(path, name, entry, data) for name, entry in entries.items()}
    _check_cover(path, tensors, data, size)
    return tensors


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(path, "__metadata__ is not an object of strings", "__metadata__")


def _tensor(path: Path, name: str, entry: object, data: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise broken(path, f"tensor '{name[:100]}' is not an object", name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise broken(path, f"tensor '{name[:100]}' has the unknown dtype {str(dtype)[:40]!r}", name)
    if not is_counts(shape):
        raise broken(path, f"tensor '{name[:100]}' has the impossible shape {str(shape)[:100]}", name)
    if not is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(path, f"tensor '{name[:100]}' has impossible data_offsets {str(offsets)[:100]}", name)
    our_name, bits = DTYPES[dtype]
    size = 1
    for count in (*shape, bits):
        size *= count
        if size >= 1 << 64:  # as the reference's checked products, even where a zero follows
            raise broken(path, f"tensor '{name[:100]}' has the impossible shape {str(shape)[:100]}", name)
    start, end = offsets
    if size % 8 or size // 8 != end - start:
        raise broken(
            path,
            f"tensor '{name[:100]}' of dtype {dtype} and shape {str(shape)[:100]} does not take {end - start:,} bytes",
            name,
            data + start,
        )
    return TensorInfo(name, our_name, tuple(shape), end - start, path, data + start)


def is_counts(value: object) -> TypeGuard[list[int]]:
    """Whether the value is a list of integers from 0 to 2^64 - 1."""
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry < 1 << 64 for entry in value)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], data: int, size: int) -> None:
    """The tensors fill the file from the header to its end, in some order."""
    end, before = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a hole after"
            raise broken(path, f"tensor '{tensor.name[:100]}' {what} '{before[:100]}'", tensor.name, tensor.offset)
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if end != size:
        what = "incomplete download?" if end > size else "bytes beyond the last tensor"
        raise broken(path, f"the tensors end at byte {end:,} but the file has {size:,}: {what}", before, end)
