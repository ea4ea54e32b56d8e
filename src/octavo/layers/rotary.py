"""Rotary position tables: frequencies in float64 by the scaling that the configuration names, rounded once.

Scalings: default, linear (positions divided by a factor), dynamic (NTK: another base), yarn (long wavelengths divided,
a ramp between, a magnitude), longrope (a factor for each wavelength, a magnitude), llama3 (as yarn, by wavelength).
Tables depend on the configuration and the number of positions alone, never on a prompt: dynamic takes the base for the
longest sequence, longrope its long factors as soon as a sequence may leave the original context, as vLLM does. It knows
the halves style only; checkpoints in another order are un-permuted when they are bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor, log, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.rope import rope
from octavo.program.graph import Program, Table, Value

Floats = NDArray[np.float64]
ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Rotary:
    """`rotary` of head_dim elements turn; `scaling`: rope_scaling of config.json, with max_position_embeddings.

    Tables have `positions` rows. A model with two kinds of rotation gives each a name.
    """

    head_dim: int
    rotary: int
    theta: float
    positions: int
    scaling: Mapping[str, Any] = field(default_factory=dict)
    name: str = "rope"

    def __call__(self, x: Value, positions: Value) -> Value:
        """x [T, heads * head_dim] rotated at positions [T]."""
        cos, sin = self.tables(x.program)
        return rope(x, positions, cos, sin, head_dim=self.head_dim, rotary=self.rotary)

    def tables(self, program: Program) -> tuple[Value, Value]:
        """cos and sin [positions, rotary / 2] as tables of the Program.

        Where their numbers depend on `positions`, their names do too: the fingerprint holds them.
        """
        shape = (self.positions, self.rotary // 2)
        of = {"dynamic": f"@{self.positions}", "longrope": "@long" if self._is_long else "@short"}.get(self.kind, "")
        return (
            program.table(Table(f"{self.name}.cos{of}", shape, lambda: self._table(np.cos))),
            program.table(Table(f"{self.name}.sin{of}", shape, lambda: self._table(np.sin))),
        )

    def _table(self, function: np.ufunc) -> NDArray[np.float32]:
        angles = np.outer(np.arange(self.positions, dtype=np.float64), self.frequencies())
        return np.asarray(function(angles) * self.magnitude, np.float32)

    @property
    def kind(self) -> str:
        found = str(self.scaling.get("rope_type") or self.scaling.get("type") or "default")
        return "longrope" if found == "su" else found  # the name in the first files of Phi-3

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.scaling.get("attention_factor") is not None:
            return self._number("attention_factor")
        factor = self._factor
        if factor <= 1:
            return 1.0
        if self.kind == "longrope":
            return sqrt(1 + log(factor) / log(self._number(ORIGINAL)))
        if self.scaling.get("mscale") and self.scaling.get("mscale_all_dim"):
            every = 0.1 * self._number("mscale_all_dim") * log(factor) + 1
            return (0.1 * self._number("mscale") * log(factor) + 1) / every
        return 0.1 * log(factor) + 1

    def frequencies(self) -> Floats:
        """Radians per position, [rotary / 2]. Raises UnsupportedModel for another scaling."""
        if self.kind not in SCALINGS:
            known = ", ".join(SCALINGS)
            raise UnsupportedModel(f"rope_scaling type {self.kind!r} is not supported yet; supported: {known}")
        return SCALINGS[self.kind](self)

    def _plain(self, theta: float | None = None) -> Floats:
        exponents = np.arange(0, self.rotary, 2, dtype=np.float64) / self.rotary
        return np.asarray((theta or self.theta) ** -exponents)

    def _linear(self) -> Floats:
        return self._plain() / self._number("factor")

    def _dynamic(self) -> Floats:
        """Source: transformers, _compute_dynamic_ntk_parameters: another base beyond the configuration's context."""
        factor, context = self._number("factor"), self._number("max_position_embeddings")
        longest = max(float(self.positions), context)
        stretch = factor * longest / context - (factor - 1)
        return self._plain(self.theta * stretch ** (self.rotary / (self.rotary - 2)))

    def _yarn(self) -> Floats:
        """Source: Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.2: frequencies that turn more than
        beta_fast times in the original context stay, those that turn less than beta_slow times are divided."""
        low, high = (self._index_of(self._number(key, default)) for key, default in BETAS)
        if self.scaling.get("truncate", True):
            low, high = floor(low), ceil(high)
        low, high = max(low, 0), min(high, self.rotary - 1)
        width = high - low or 0.001
        divided = np.clip((np.arange(self.rotary // 2) - low) / width, 0.0, 1.0)
        plain = self._plain()
        return np.asarray(plain * (1 - divided) + plain / self._factor * divided)

    def _index_of(self, turns: float) -> float:
        """The index of the frequency that turns so often in the original context."""
        return self.rotary * log(self._number(ORIGINAL) / (turns * 2 * pi)) / (2 * log(self.theta))

    @property
    def _is_long(self) -> bool:
        return self.kind == "longrope" and self.positions > self._number(ORIGINAL)

    def _longrope(self) -> Floats:
        """Source: Ding et al. 2024, https://arxiv.org/abs/2402.13753, in the form of Phi-3."""
        key = "long_factor" if self._is_long else "short_factor"
        factors = self.scaling.get(key)
        whole = isinstance(factors, list) and len(factors) == self.rotary // 2
        if not whole or not all(isinstance(each, int | float) and each > 0 for each in factors or ()):
            what = f"must be {self.rotary // 2} positive numbers"
            raise CheckpointError(f"config.json: rope_scaling.{key} {what}", key="rope_scaling")
        return self._plain() / np.asarray(factors, np.float64)

    def _llama3(self) -> Floats:
        """Source: Llama 3.1's published apply_scaling; a frequency keeps the more of itself
        the more turns it makes in the original context, from low_freq_factor (none) to high_freq_factor (all)."""
        plain = self._plain()
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        turns = self._number(ORIGINAL) * plain / (2 * pi)
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return np.asarray(share * plain + (1 - share) * plain / self._number("factor"), np.float64)

    @property
    def _factor(self) -> float:
        """How much longer the context became: as told, else by the two contexts (Phi-3, DeepSeek)."""
        if self.scaling.get("factor") is not None:
            return self._number("factor")
        return self._number("max_position_embeddings") / self._number(ORIGINAL)

    def _number(self, key: str, default: float | None = None) -> float:
        value = default if self.scaling.get(key) is None else self.scaling[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(
                f"config.json: rope_scaling.{key} = {value!r} must be a positive number", key="rope_scaling"
            )
        return float(value)


BETAS = (("beta_fast", 32.0), ("beta_slow", 1.0))
SCALINGS = {
    "default": Rotary._plain, "linear": Rotary._linear, "dynamic": Rotary._dynamic, "yarn": Rotary._yarn,
    "longrope": Rotary._longrope, "llama3": Rotary._llama3,
}  # fmt: skip
