"""What was measured of a model on a processor, kept: OCTAVO_CACHE/autotune/<processor>/<shapes>.json, mode 0600.

It holds values of native/tuning.h, which change no bit. A file that is missing, damaged, of others or of another
version is as good as none: nothing here ever fails a start. It knows no kernels and measures nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from octavo.execution.layout import ABI
from octavo.lowering.lowered import PackedWeight

VERSION = 3  # of what is measured and how; another one is measured anew
MOST_BYTES = 1 << 16
MOST_VALUES = 64
COSTS = ("phase_ns", "bytes_us", "operations_us")
NAME = re.compile(r"[a-z_]+(\.[\w.]+)?")


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. figures: what the values were chosen from, for people: nanoseconds, relative times."""

    version: int
    key: str
    seconds: float
    values: dict[str, int]
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Tuned:
    """values: names of native/tuning.h -> values; only those that differ from the built-in ones, and the costs."""

    values: Mapping[str, int]
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0  # that measuring took

    def __str__(self) -> str:
        """The values that are not built in; the costs are measured everywhere."""
        chosen = [f"{name} {value}" for name, value in self.values.items() if name not in COSTS]
        return ", ".join(chosen) or "built-in values are the best"


@dataclass(frozen=True)
class TunedFile:
    """The place for one processor, and models whose weights have the same shapes and layouts."""

    path: Path
    key: str

    @classmethod
    def of(cls, cache: Path, cpu_id: str, isa: str, threads: int, weights: Mapping[str, PackedWeight]) -> TunedFile:
        shapes = sorted({(each.layout, each.n, each.k) for each in weights.values()})
        key = hashlib.sha256(repr((VERSION, ABI, cpu_id, isa, threads, shapes)).encode()).hexdigest()[:32]
        folder = re.sub(r"[^\w-]", "_", cpu_id) or "unknown"
        return cls(cache / "autotune" / folder / f"{key}.json", key)

    def read(self) -> Tuned | None:
        """None where there is nothing to trust."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return None
            kept = msgspec.json.decode(os.read(descriptor, MOST_BYTES), type=Kept)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        finally:
            os.close(descriptor)
        names = all(NAME.fullmatch(name) for name in kept.values)
        if kept.version != VERSION or kept.key != self.key or len(kept.values) > MOST_VALUES or not names:
            return None
        return Tuned(kept.values, kept.figures, kept.seconds)

    def keep(self, tuned: Tuned) -> bool:
        """Writes the file, whole or not at all; False where it could not be."""
        figures = {name: dict(each) for name, each in tuned.figures.items()}
        kept = Kept(VERSION, self.key, tuned.seconds, dict(tuned.values), figures)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")  # mode 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
                os.replace(name, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError:
            return False
        return True
