"""Typed reading of an architecture's keys in a GGUF file: every complaint names file and key."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from octavo.checkpoints.gguf import GGUFFile
from octavo.errors import CheckpointError, UnsupportedModel

LARGEST = 1 << 24  # far above any model, far below what would overflow a product


class Keys:
    """Reads `<architecture>.<name>` with its type and range."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def fail(self, key: str, why: str) -> NoReturn:
        offset = self.file.key_offsets.get(key)
        where = "" if offset is None else f" (offset {offset:#x})"
        raise CheckpointError(
            f"broken GGUF {self.file.path}: key '{key}' {why}{where}", path=str(self.file.path), key=key
        )

    def get(self, name: str) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{name}")

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` to LARGEST; a list of equal ones (per layer) counts as one."""
        key, value = f"{self.architecture}.{name}", self.get(name)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, list) and value:
            if len(set(value)) > 1:
                raise UnsupportedModel(f"{self.file.path}: key '{key}' differs from layer to layer, which is not built")
            value = value[0]
        if type(value) is not int or not least <= value <= LARGEST:
            self.fail(key, f"is {str(value)[:40]}, not an integer from {least} to {LARGEST:,}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A positive finite number, as the shortest decimal that rounds to the float32 of the file."""
        key, value = f"{self.architecture}.{name}", self.get(name)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            self.fail(key, f"is {str(value)[:40]}, not a positive number")
        return float(str(np.float32(value)))
