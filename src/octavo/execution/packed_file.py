"""The packed weights of a large model as a file of the cache: written once, checked and mapped by every later start.

The file is the weights' region byte for byte and a trailer with its checksum. It is mapped shared and read-only, so
that replicas share its pages. Measured with Qwen2.5-Coder-1.5B (1.1 GB in the page cache, 2 threads, Linux 6.18, ext4):
packing 0.63 s, mapping 6 ms and checking 40 ms; a decode step 31 to 37 ms mapped and 35 to 39 ms in private huge pages,
in turns, because the kernel maps large folios of the page cache whole. Dropped: reading the file into the region, 0.09
to 0.57 s. Nothing here ever fails a start: a file that is missing, cut, flipped or not ours is told and packed anew. It
knows bytes and places, not how weights are packed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo import logs
from octavo.execution.weights import ALIGN, Place
from octavo.quantization.rounding import VERSION as ROUNDING

VERSION = 1  # of the file; layouts and places are part of its name
LARGE = 512 << 20  # bytes of packed weights from which `auto` keeps a file: below, packing takes under 0.3 s
FREE_SHARE = 2  # times the file's size that the disk must have free: a cache may not fill it
WRITE_BYTES = 8 << 20
STALE_SECONDS = 3600.0  # an unfinished file of a killed process; writing 10 GB takes a minute
LOWEST_PRIORITY = 19
TRAILER = struct.Struct("<8sQ32s")  # magic, bytes of the region, checksum
MAGIC = b"OCTPACK1"
MODEL_DIGITS = 16  # of the weights' digest, before each file's own name: `octavo rm` finds a model's files by it
SUMMED_ROWS = 256  # of ALIGN bytes: 1 MiB at a time stays in a core's cache
log = logs.get("packed")
Region = NDArray[np.uint8]


def wanted(option: str, nbytes: int) -> bool:
    """Whether --packed-cache asks for a file of weights of this size."""
    return option == "on" or (option == "auto" and nbytes >= LARGE)


def kept_of(cache: Path, digest: str) -> list[Path]:
    """All packed files of a model's weights, whatever they were packed for."""
    return sorted((cache / "packed").glob(f"{digest[:MODEL_DIGITS]}-*.weights"))


@dataclass(frozen=True)
class PackedFile:
    """The place of one model's packed weights. nbytes: of the region, a multiple of ALIGN."""

    path: Path
    nbytes: int
    threads: int

    @classmethod
    def of(cls, cache: Path, digest: str, places: Mapping[str, Place], nbytes: int, threads: int) -> PackedFile:
        """Named by the weights' digest and by where and how each weight is packed."""
        lines = [f"{VERSION} {digest} {nbytes}"]
        lines += [f"{name} {each.layout} {each.n} {each.k} {each.offset}" for name, each in sorted(places.items())]
        lines += [f"{name} rounded {ROUNDING}" for name, each in sorted(places.items()) if each.source.rounded]
        name = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
        return cls(cache / "packed" / f"{digest[:MODEL_DIGITS]}-{name}.weights", nbytes, threads)

    @property
    def usable(self) -> bool:
        """Whether a file of the right size is there; its bytes are checked when it is used."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.nbytes + TRAILER.size
        return False

    def use(self, put: Callable[[int, int], None]) -> bool:
        """Makes the file the region's memory by `put(descriptor, bytes)`, after its bytes were checked through a
        mapping of their own; False if the weights must be packed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("cannot open packed weights %s (%s): packing", self.path, error.strerror)
            return False
        try:
            why = self._fault(descriptor)
            if why is None:
                put(descriptor, self.nbytes)
                return True
        except (OSError, RuntimeError) as error:  # RuntimeError: the native library could not map it
            why = str(error)
        finally:
            os.close(descriptor)
        log.warning("packed weights %s are not usable (%s): packing anew", self.path, why)
        return False

    def _fault(self, descriptor: int) -> str | None:
        """What is wrong with an open file, if anything."""
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
            return "not a file of this user alone"
        if about.st_size != self.nbytes + TRAILER.size:
            return f"{about.st_size:,} bytes instead of {self.nbytes + TRAILER.size:,}"
        magic, nbytes, stated = TRAILER.unpack(os.pread(descriptor, TRAILER.size, self.nbytes))
        if magic != MAGIC or nbytes != self.nbytes:
            return "its end is no trailer of ours"
        with open(descriptor, "rb", closefd=False) as file:
            content = np.memmap(file, np.uint8, "r", shape=(self.nbytes,))
            return None if checksum(content, self.threads) == stated else "its checksum is wrong"

    def keep_later(self, region: Region, owner: object) -> threading.Thread:
        """Writes the file in a thread of the lowest priority. owner: of the region's memory, held until the end."""

        def run() -> None:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
            self.keep(region)
            _ = owner

        thread = threading.Thread(target=run, name="octavo-packed", daemon=True)
        thread.start()
        return thread

    def keep(self, region: Region) -> bool:
        """Writes the file, whole or not at all, readable by this user only; False where it could not be."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_unfinished(folder)
            free = shutil.disk_usage(folder).free
            if free < FREE_SHARE * self.nbytes:
                log.warning("packed weights are not kept: %s has %d MiB free", folder, free >> 20)
                return False
            descriptor, name = tempfile.mkstemp(dir=folder, suffix=".tmp")  # mode 0600
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    for at in range(0, self.nbytes, WRITE_BYTES):
                        _write(file.fileno(), region[at : min(at + WRITE_BYTES, self.nbytes)])
                    end = TRAILER.pack(MAGIC, self.nbytes, checksum(region[: self.nbytes], 1))
                    _write(file.fileno(), np.frombuffer(end, np.uint8))
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            log.warning("packed weights are not kept in %s: %s", folder, error.strerror or error)
            return False
        return True


def checksum(region: Region, threads: int) -> bytes:
    """SHA-256 over sums: of each MiB the 512 columns of 64-bit words, modulo 2^64.

    Any one changed word changes its column's sum. What leaves every sum as it was is not noticed: two whole pages of
    one MiB in each other's place. SHA-256 of all bytes would take ten times as long. region: [multiple of ALIGN] uint8.
    """
    rows = region.view(np.uint64).reshape(-1, ALIGN // 8)
    pieces = -(-len(rows) // SUMMED_ROWS)
    sums = np.empty((pieces, ALIGN // 8), np.uint64)

    def add(part: range) -> None:
        for piece in part:
            np.add.reduce(rows[piece * SUMMED_ROWS : (piece + 1) * SUMMED_ROWS], axis=0, out=sums[piece])

    cuts = [pieces * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads, thread_name_prefix="octavo-sum") as pool:
        list(pool.map(add, [range(first, last) for first, last in zip(cuts, cuts[1:], strict=False)]))
    return hashlib.sha256(sums.data).digest()


def _write(descriptor: int, data: Region) -> None:
    view = data.data
    while len(view):
        view = view[os.write(descriptor, view) :]


def _remove_unfinished(folder: Path) -> None:
    for file in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink()
