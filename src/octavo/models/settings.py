"""Typed reading of a model's configuration: a wrong or missing key is one error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.attention import Heads
from octavo.layers.rotary import ORIGINAL, Rotary
from octavo.ops.moe import MOST_CHOSEN, MOST_EXPERTS

LARGEST = 1 << 24  # far above any model's size, far below what would overflow a product
MOST_LAYERS = 4096  # a configuration with more is broken: tracing it would take minutes
LENGTHENED = ("yarn", "dynamic")  # scalings whose factor is not in max_position_embeddings yet


@dataclass(frozen=True)
class Sizes:
    """What every decoder has."""

    vocab: int
    width: int
    inner: int
    layers: int
    heads: Heads


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

    def cap(self, key: str, default: float = 0.0) -> float:
        """A positive number; 0 where the key is null, and the default where it is absent."""
        if key in self.config and self.config[key] is None:
            return 0.0
        value = self.number(key, default)
        if value < 0:
            raise self.wrong(key, "must not be negative")
        return value

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

    def only(self, key: str, *supported: str) -> str:
        """One of the values that are built; the first where the key is absent. Raises UnsupportedModel."""
        value = self.text(key, supported[0])
        if value not in supported:
            raise UnsupportedModel(f"{key} {value!r} is not supported; supported: {', '.join(supported)}", param=key)
        return value

    def without(self, *keys: str) -> None:
        """Raises UnsupportedModel for a feature that is switched on and not built for this family."""
        for key in keys:
            if self.config.get(key):
                raise UnsupportedModel(f"{key} = {self.config[key]!r} is not built for this family", param=key)

    def sizes(self) -> Sizes:
        """Vocabulary, widths, layers and heads, checked against each other."""
        heads, width = self.integer("num_attention_heads"), self.integer("hidden_size")
        kv_heads = self.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.wrong("num_key_value_heads", f"must divide num_attention_heads = {heads}")
        head_dim = self.integer("head_dim", width // heads)
        if head_dim % 2:
            raise self.wrong("head_dim", "must be even")
        return Sizes(
            vocab=self.integer("vocab_size"),
            width=width,
            inner=self.integer("intermediate_size"),
            layers=self.integer("num_hidden_layers", most=MOST_LAYERS),
            heads=Heads(heads, kv_heads, head_dim),
        )

    def experts(self, count: int, chosen: int) -> tuple[int, int]:
        """Experts of a layer, and how many of them a row takes; the defaults where the keys are absent."""
        key = "num_experts" if self.config.get("num_local_experts") is None else "num_local_experts"
        experts = self.integer(key, count, most=MOST_EXPERTS)
        taken = self.integer("num_experts_per_tok", chosen, most=MOST_CHOSEN)
        if taken > experts:
            raise self.wrong("num_experts_per_tok", f"must be at most {key} = {experts}")
        return experts, taken

    def rotary(self, head_dim: int, positions: int) -> Rotary:
        """The rotation of all layers: rope_parameters (new), or rope_theta, rope_scaling and partial_rotary_factor."""
        both = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(both, Mapping):
            raise self.wrong("rope_scaling", "must be an object")
        theta = both.get("rope_theta") or self.config.get("rope_theta") or 10000.0
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            raise self.wrong("rope_theta", "must be a number")
        share = both.get("partial_rotary_factor") or self.number("partial_rotary_factor", 1.0)
        rotary = int(head_dim * share)
        if not 2 <= rotary <= head_dim or rotary % 2:
            raise self.wrong("partial_rotary_factor", f"must leave an even number of {head_dim} elements")
        context = self.integer("max_position_embeddings", 2048)
        original = both.get(ORIGINAL) or self.config.get(ORIGINAL) or context
        scaling = {**both, ORIGINAL: original, "max_position_embeddings": context}
        return Rotary(head_dim, rotary, float(theta), positions, scaling)

    def context(self, rotary: Rotary) -> int:
        """The longest sequence that the model was made for: max_position_embeddings, or what its rotation reaches.

        YaRN and dynamic NTK lengthen the original context by their factor, as vLLM has it.
        """
        context = self.integer("max_position_embeddings", 2048)
        if rotary.kind not in LENGTHENED:
            return context
        factor = rotary.scaling.get("factor") or 1.0
        start = context if rotary.kind == "dynamic" else rotary.scaling[ORIGINAL]
        return max(context, min(int(start * factor), LARGEST))

    def windows(self, layers: int, window: int, *, every: int = 0) -> tuple[int, ...]:
        """The window of each layer, 0 for none: by layer_types, else all slide but each `every`-th (0: all do)."""
        kinds = self.config.get("layer_types")
        if kinds is None:
            return tuple(0 if every and (i + 1) % every == 0 else window for i in range(layers))
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {SLIDING, FULL}:
            raise self.wrong("layer_types", f"must be {layers} times {SLIDING} or {FULL}")
        return tuple(window if kind == SLIDING else 0 for kind in kinds)

    def wrong(self, key: str, what: str) -> CheckpointError:
        """The error for a key's value."""
        return CheckpointError(f"config.json: {key} = {self.config.get(key)!r} {what}", key=key)

    def _get(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        if value is None and default is None:
            raise CheckpointError(f"config.json has no {key}", key=key)
        return default if value is None else value


SLIDING, FULL = "sliding_attention", "full_attention"
