"""Which family builds which checkpoint: a literal table, imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.program.graph import Program
from octavo.quantization.format import format_named

# model_type of config.json (GGUF files get theirs from general.architecture) -> module:function
FAMILIES = {
    "llama": "octavo.models.llama:from_config",
    "mistral": "octavo.models.llama:from_config",
    "qwen2": "octavo.models.llama:from_config",
}
ROPE_FACTORS = "rope_freqs.weight"  # GGUF: divisor of each frequency


class Model(Protocol):
    """What the rest of Octavo asks of a model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]: ...
    def gguf_names(self) -> dict[str, str]: ...
    def paired_heads(self, name: str) -> int: ...


def build(checkpoint: Checkpoint, *, positions: int) -> Model:
    """The model of a checkpoint, for sequences of at most `positions` ids. Raises UnsupportedModel, CheckpointError."""
    config: dict[str, Any] = dict(checkpoint.config)
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{checkpoint.path}: model_type {model_type!r} is not supported yet; supported: {', '.join(FAMILIES)}",
            param="model_type",
        )
    module, _, function = FAMILIES[model_type].partition(":")
    from_config = getattr(importlib.import_module(module), function)
    if checkpoint.kind == "gguf":
        config["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    model: Model = from_config(config, positions=positions, rope_factors=_rope_factors(checkpoint))
    return model


def _rope_factors(checkpoint: Checkpoint) -> tuple[float, ...] | None:
    info = checkpoint.tensors.get(ROPE_FACTORS)
    if info is None or checkpoint.kind != "gguf":
        return None
    values = format_named(info.format).dequantize(checkpoint.read(ROPE_FACTORS), info.shape).reshape(-1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise CheckpointError(f"{info.file}: {ROPE_FACTORS} must be positive numbers", key=ROPE_FACTORS)
    return tuple(float(value) for value in values)
