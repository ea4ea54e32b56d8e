"""A checkpoint -> its model: the family that its configuration names, imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.families import family_of
from octavo.checkpoints.pooling import Pooling
from octavo.models.decoder import Decoder
from octavo.models.embedder import Embedder
from octavo.models.names import WeightNames
from octavo.program.graph import Program


class Model(Protocol):
    """What the rest of Octavo asks of a model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def names(self) -> WeightNames: ...
    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]: ...


def build(checkpoint: Checkpoint, *, positions: int, pooling: Pooling | None = None) -> Model:
    """The model of a checkpoint, for sequences of at most `positions` ids. pooling: where it is to give vectors.

    Raises UnsupportedModel, CheckpointError.
    """
    key = "general.architecture" if checkpoint.kind == "gguf" else "model_type"
    module, _, function = family_of(checkpoint.config.get("model_type"), key, checkpoint.path).partition(":")
    from_config = getattr(importlib.import_module(module), function)
    model: Model = from_config(checkpoint.config, positions=positions)
    return Embedder(model, pooling) if pooling is not None and isinstance(model, Decoder) else model
