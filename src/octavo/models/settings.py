"""Typed reading of a model's configuration: a wrong or missing key is one error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import CheckpointError

LARGEST = 1 << 24  # far above any model's size, far below what would overflow a product


@dataclass(frozen=True)
class Settings:
    """config.json as a dictionary; null equals absent."""

    config: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number from `least` to `most`; a default is taken as it is. Raises CheckpointError."""
        if default is not None and self.config.get(key) is None:
            return default
        value = self._get(key, None)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "must be a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "must be a string")
        return value

    def rope(self) -> tuple[float, Mapping[str, Any]]:
        """Base and scaling of the rotation: rope_parameters (new), or rope_theta and rope_scaling."""
        both = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(both, Mapping):
            raise self.wrong("rope_scaling", "must be an object")
        theta = both.get("rope_theta") or self.config.get("rope_theta") or 10000.0
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            raise self.wrong("rope_theta", "must be a number")
        return float(theta), both

    def wrong(self, key: str, what: str) -> CheckpointError:
        """The error for a key's value."""
        return CheckpointError(f"config.json: {key} = {self.config.get(key)!r} {what}", key=key)

    def _get(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        if value is None and default is None:
            raise CheckpointError(f"config.json has no {key}", key=key)
        return default if value is None else value
