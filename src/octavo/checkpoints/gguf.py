"""Our own reader of GGUF v2 and v3 (format: ggml's docs/gguf.md): the checked header, and where tensors' bytes are.

Every count, length, offset and product is compared with the file's size before anything is allocated, because files
are hostile until read. Large arrays are stepped over; `read_arrays` fetches them when the tokenizer is built. It knows
no architecture.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from octavo.checkpoints.checkpoint import GIT_LFS, LFS_POINTER, TensorInfo
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.quantization.format import FORMATS, GGML_TYPES, format_named, unsupported

T = TypeVar("T")

MAGIC = b"GGUF"
STRING, ARRAY, BOOL = 8, 9, 7
# value type -> struct code (little-endian)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
PLAIN_SIZES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f64": 8}  # types without a Format, but of known size

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17  # DeepSeek-V3 unpacked has 91,000
MAX_KEY_BYTES = (1 << 16) - 1  # the format's own limit
MAX_NAME_BYTES = 1 << 10
MAX_TEXT_BYTES = 1 << 24  # a chat template, a licence
MAX_TOTAL_TEXT = 1 << 26  # all keys, strings and names together
MAX_SMALL_ARRAY = 1 << 12  # numbers read at once: per-layer settings
MAX_ARRAY = 1 << 21  # entries of a vocabulary; the largest in use have 600,000 merges
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
WINDOW = 1 << 20  # bytes of the header held at a time


@dataclass(frozen=True)
class ArrayRef:
    """An array left in the file: its elements' value type, their number, and where the first one starts."""

    type: int
    count: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """A parsed header. `metadata` values are int, float, bool, str, a list of numbers, or an ArrayRef."""

    path: Path
    size: int
    version: int
    metadata: dict[str, Any]
    key_offsets: dict[str, int]  # where each key stands, for errors
    tensors: dict[str, TensorInfo]


class _Cursor:
    """Reads a file forward through a window, with bounds; every failure is one CheckpointError."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self.descriptor, self.size = path, descriptor, size
        self.offset = 0  # of the next byte
        self.subject = "header"  # the key or tensor being read, for errors
        self.text_left = MAX_TOTAL_TEXT
        self._window, self._start = b"", 0

    def fail(self, why: str, offset: int | None = None) -> NoReturn:
        where = self.offset if offset is None else offset
        raise CheckpointError(
            f"broken GGUF {self.path}: {self.subject} {why} (offset {where:#x})", path=str(self.path), key=self.subject
        )

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.offset:
            self.fail(
                f"needs {count:,} bytes for {what} but the file ends at byte {self.size:,}. "
                "The download is probably incomplete: fetch it again"
            )

    def take(self, count: int, what: str) -> bytes:
        at = self.offset - self._start
        if at < 0 or at + count > len(self._window):
            self.need(count, what)
            self._window, self._start = os.pread(self.descriptor, max(count, WINDOW), self.offset), self.offset
            at = 0
            if len(self._window) < count:
                self.fail(f"ended while {what} was read; the file changed")
        self.offset += count
        return self._window[at : at + count]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, limit: int, what: str) -> str:
        at = self.offset
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            self.fail(f"says that {what} has {length:,} bytes, the limit is {limit:,}", at)
        self.text_left -= length
        if self.text_left < 0:
            self.fail(f"brings the text of the header over {MAX_TOTAL_TEXT:,} bytes", at)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has {what} that is not UTF-8", at)

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.offset += count

    def skip_texts(self, count: int) -> None:
        """Steps over an array of strings: 300,000 of them in a large vocabulary, so their lengths are read in place."""
        length_at = struct.Struct("<Q").unpack_from
        window, start = self._window, self._start
        at, last = self.offset - start, len(window) - 8
        for _ in range(count):
            if at > last:
                self._jump(start + at)
                self.take(8, "a string's length")
                window, start = self._window, self._start
                at, last = self.offset - 8 - start, len(window) - 8
            at += 8 + length_at(window, at)[0]
        self._jump(start + at)

    def _jump(self, end: int) -> None:
        """Go on after a string that ends at byte `end`."""
        if end > self.size:
            self.fail(f"has a string that ends at byte {end:,} but the file has {self.size:,}")
        self.offset = end


def read_gguf(path: Path) -> GGUFFile:
    """Parses the header of one file, which may be one of several (see gguf_shards.py). Raises CheckpointError naming
    file, key or tensor, and byte offset; UnsupportedModel for a tensor type that is not built."""
    return _with_cursor(path, _read)


def read_arrays(file: GGUFFile, prefix: str) -> dict[str, Any]:
    """All metadata whose key starts with `prefix`, arrays as lists of str, int, float or bool."""

    def read(cursor: _Cursor) -> dict[str, Any]:
        found = {}
        for key, value in file.metadata.items():
            if key.startswith(prefix):
                cursor.subject = f"key '{key}'"
                found[key] = _read_array(cursor, value) if isinstance(value, ArrayRef) else value
        return found

    return _with_cursor(file.path, read)


def scalars(file: GGUFFile, prefix: str) -> dict[str, Any]:
    """All metadata whose key starts with `prefix` but for the arrays left in the file."""
    found = {key: value for key, value in file.metadata.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if not isinstance(value, ArrayRef)}


def _with_cursor(path: Path, read: Callable[[_Cursor], T]) -> T:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", path=str(path)) from error
    try:
        return read(_Cursor(path, descriptor, os.fstat(descriptor).st_size))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    finally:
        os.close(descriptor)


def _read(cursor: _Cursor) -> GGUFFile:
    if cursor.size < 24:
        cursor.fail(f"needs 24 bytes, the file has {cursor.size}. The download is probably incomplete: fetch it again")
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        cursor.fail(f"does not start with 'GGUF': {_instead(cursor)}", 0)
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        if version and version & 0xFFFF == 0:
            cursor.fail("is big-endian, which is not supported: convert it with gguf-convert-endian FILE little", 4)
        cursor.fail(f"has version {version}; supported: 2, 3. Convert the model anew with a current llama.cpp", 4)
    tensor_count = cursor.number("Q", "the number of tensors")
    key_count = cursor.number("Q", "the number of keys")
    # the smallest key takes 8 + 1 + 4 + 1 bytes, the smallest tensor 8 + 1 + 4 + 8 + 4 + 8
    for count, least, limit, what, at in (
        (tensor_count, 33, MAX_TENSORS, "tensors", 8), (key_count, 14, MAX_KEYS, "keys", 16)
    ):  # fmt: skip
        if count > limit or count * least > cursor.size:
            cursor.fail(f"announces {count:,} {what}, more than the file or the limit of {limit:,} allows", at)
    metadata: dict[str, Any] = {}
    offsets: dict[str, int] = {}
    for _ in range(key_count):
        at = cursor.offset
        key, value = _read_key(cursor, metadata)
        metadata[key], offsets[key] = value, at
    cursor.subject = "header"
    tensors = _read_tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GGUFFile(cursor.path, cursor.size, version, metadata, offsets, tensors)


def _instead(cursor: _Cursor) -> str:
    """What a file that is no GGUF is, where its first bytes tell."""
    head = os.pread(cursor.descriptor, 64, 0).lstrip().lower()
    if head.startswith(GIT_LFS):
        return LFS_POINTER
    if head.startswith((b"<!doctype", b"<html")):
        return "it is a web page: the download went wrong, fetch it again"
    return "this is not a GGUF file"


def _read_key(cursor: _Cursor, metadata: dict[str, Any]) -> tuple[str, Any]:
    at = cursor.offset
    cursor.subject = f"key {len(metadata) + 1}"
    key = cursor.text(MAX_KEY_BYTES, "its name")
    if not key:
        cursor.fail("has an empty name", at)
    cursor.subject = f"key '{key[:100]}'"
    if key in metadata:
        cursor.fail("stands in the file twice", at)
    return key, _read_value(cursor, cursor.number("I", "its type"))


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind == STRING:
        return cursor.text(MAX_TEXT_BYTES, "its text")
    if kind in SCALARS:
        value = cursor.number(SCALARS[kind], "its value")
        return bool(value) if kind == BOOL else value
    if kind != ARRAY:
        cursor.fail(f"has the unknown value type {kind}", cursor.offset - 4)
    at = cursor.offset
    element = cursor.number("I", "its element type")
    count = cursor.number("Q", "its number of elements")
    if element not in SCALARS and element != STRING:
        cursor.fail(f"is an array of the unsupported type {element}", at)
    size = 8 if element == STRING else struct.calcsize("<" + SCALARS[element])
    if count > MAX_ARRAY or count * size > cursor.size - cursor.offset:
        cursor.fail(f"announces {count:,} elements, more than the file or the limit of {MAX_ARRAY:,} allows", at)
    reference = ArrayRef(element, count, cursor.offset)
    if element != STRING and count <= MAX_SMALL_ARRAY:
        return _read_array(cursor, reference)
    if element == STRING:
        cursor.skip_texts(count)
    else:
        cursor.skip(count * size, "its elements")
    return reference


def _read_array(cursor: _Cursor, array: ArrayRef) -> list[Any]:
    cursor.offset = array.offset
    if array.type == STRING:
        return [cursor.text(MAX_TEXT_BYTES, "a string of its array") for _ in range(array.count)]
    code = f"<{array.count}{SCALARS[array.type]}"
    values = struct.unpack(code, cursor.take(struct.calcsize(code), "its elements"))
    return [bool(value) for value in values] if array.type == BOOL else list(values)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        cursor.subject = "key 'general.alignment'"
        cursor.fail(f"is {str(value)[:40]}, not a power of two up to {MAX_ALIGNMENT:,}")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    found: list[tuple[TensorInfo, int]] = []  # offset still relative to the data; where its info stands
    names = set()
    for index in range(count):
        at = cursor.offset
        cursor.subject = f"tensor {index + 1}"
        tensor = _read_tensor(cursor, at, alignment)
        if tensor.name in names:
            cursor.fail("stands in the file twice", at)
        names.add(tensor.name)
        found.append((tensor, at))
    data = -(-cursor.offset // alignment) * alignment
    tensors = {}
    end, before = data, ""
    for tensor, at in sorted(found, key=lambda entry: entry[0].offset):
        cursor.subject = f"tensor '{tensor.name}'"
        start = data + tensor.offset
        if start < end:
            cursor.fail(f"overlaps tensor '{before}': it starts at byte {start:,}, which ends at {end:,}", at)
        end, before = start + tensor.nbytes, tensor.name
        if end > cursor.size:
            cursor.fail(
                f"ends at byte {end:,} but the file has {cursor.size:,}. "
                "The download is probably incomplete: fetch it again",
                at,
            )
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.format, tensor.shape, tensor.nbytes, tensor.file, start)
    return {tensor.name: tensors[tensor.name] for tensor, _ in found}  # in the file's order


def _read_tensor(cursor: _Cursor, at: int, alignment: int) -> TensorInfo:
    name = cursor.text(MAX_NAME_BYTES, "its name")
    if not name:
        cursor.fail("has an empty name", at)
    cursor.subject = f"tensor '{name[:100]}'"
    dims = cursor.number("I", "its number of dimensions")
    if not 1 <= dims <= MAX_DIMS:
        cursor.fail(f"has {dims:,} dimensions, not 1 to {MAX_DIMS}", cursor.offset - 4)
    shape = tuple(reversed(struct.unpack(f"<{dims}Q", cursor.take(8 * dims, "its dimensions"))))
    kind = cursor.number("I", "its type")
    offset = cursor.number("Q", "its offset")
    if min(shape) == 0 or prod(shape) >= 1 << 62:
        cursor.fail(f"has the impossible shape {list(shape)}", at)
    if kind not in GGML_TYPES:
        cursor.fail(f"has the unknown type {kind}", at)
    format_name = GGML_TYPES[kind]
    nbytes = _nbytes(cursor, format_name, shape, at)
    if offset % alignment:
        cursor.fail(f"starts at {offset:,}, not a multiple of the alignment {alignment}", at)
    return TensorInfo(name, format_name, shape, nbytes, cursor.path, offset)


def _nbytes(cursor: _Cursor, format_name: str, shape: tuple[int, ...], at: int) -> int:
    if format_name in PLAIN_SIZES:
        return prod(shape) * PLAIN_SIZES[format_name]
    if format_name not in FORMATS:
        raise UnsupportedModel(f"{cursor.path}: {cursor.subject} (offset {at:#x}): {unsupported(format_name)}")
    fmt = format_named(format_name)
    if shape[-1] % fmt.block:
        cursor.fail(f"has rows of {shape[-1]:,} elements, not a multiple of {fmt.name}'s block of {fmt.block}", at)
    return fmt.nbytes(shape)
