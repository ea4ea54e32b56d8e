"""Rotary position tables: frequencies in float64 by the scaling that the configuration names, rounded once.

Scalings: default, linear (positions divided by a factor), llama3 (long wavelengths divided, a ramp between). Tables
depend on the configuration and the number of positions alone. It knows the halves style only; checkpoints in another
order are un-permuted when they are bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.rope import rope
from octavo.program.graph import Program, Table, Value

SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """`rotary` of head_dim elements turn; `scaling`: rope_scaling of config.json; tables have `positions` rows."""

    head_dim: int
    rotary: int
    theta: float
    positions: int
    scaling: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Value, positions: Value) -> Value:
        """x [T, heads * head_dim] rotated at positions [T]."""
        cos, sin = self.tables(x.program)
        return rope(x, positions, cos, sin, head_dim=self.head_dim, rotary=self.rotary)

    def tables(self, program: Program) -> tuple[Value, Value]:
        """cos and sin [positions, rotary / 2] as tables of the Program."""
        shape = (self.positions, self.rotary // 2)
        return (
            program.table(Table("rope.cos", shape, lambda: self._table(np.cos))),
            program.table(Table("rope.sin", shape, lambda: self._table(np.sin))),
        )

    def _table(self, function: np.ufunc) -> NDArray[np.float32]:
        angles = np.outer(np.arange(self.positions, dtype=np.float64), self.frequencies())
        return np.asarray(function(angles), np.float32)

    def frequencies(self) -> NDArray[np.float64]:
        """Radians per position, [rotary / 2]. Raises UnsupportedModel for another scaling."""
        plain = self.theta ** (-np.arange(0, self.rotary, 2, dtype=np.float64) / self.rotary)
        kind = str(self.scaling.get("rope_type") or self.scaling.get("type") or "default")
        if kind == "default":
            return plain
        if kind == "linear":
            return plain / self._number("factor")
        if kind == "llama3":
            return self._llama3(plain)
        raise UnsupportedModel(f"rope_scaling type {kind!r} is not supported yet; supported: {', '.join(SCALINGS)}")

    def _llama3(self, plain: NDArray[np.float64]) -> NDArray[np.float64]:
        """Source: Llama 3.1's published apply_scaling; a frequency keeps the more of itself
        the more turns it makes in the original context, from low_freq_factor (none) to high_freq_factor (all)."""
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        turns = self._number("original_max_position_embeddings") * plain / (2 * pi)
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return np.asarray(share * plain + (1 - share) * plain / self._number("factor"), np.float64)

    def _number(self, key: str) -> float:
        value = self.scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config.json: rope_scaling.{key} = {value!r} must be a number", key="rope_scaling")
        return float(value)
