"""Which family builds which checkpoint: a literal table, imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.errors import UnsupportedModel
from octavo.program.graph import Program

# model_type of config.json (GGUF files get theirs from general.architecture) -> module:function
FAMILIES = {
    "llama": "octavo.models.llama:from_config",
    "mistral": "octavo.models.llama:from_config",
    "qwen2": "octavo.models.llama:from_config",
}


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
    model_type = checkpoint.config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{checkpoint.path}: model_type {model_type!r} is not supported yet; supported: {', '.join(FAMILIES)}",
            param="model_type",
        )
    module, _, function = FAMILIES[model_type].partition(":")
    from_config = getattr(importlib.import_module(module), function)
    model: Model = from_config(checkpoint.config, positions=positions)
    return model
