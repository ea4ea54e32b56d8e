"""Tensors of a checkpoint -> weights of a model: names, order of rows, and what is missing or unexpected.

It knows both naming schemes; it reads no weight bytes and knows no packing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.errors import CheckpointError
from octavo.models.registry import Model
from octavo.quantization.format import Floats, format_named

# tensors that some files carry and that no model reads: computed tables, masks
IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|rope_freqs\.weight|attn\.masked_bias|attn\.bias)$")


@dataclass(frozen=True, eq=False)
class WeightSource:
    """Where a weight comes from: tensor `name` of the checkpoint, its rows in the order `rows` (None: as they are)."""

    name: str
    format: str
    shape: tuple[int, ...]
    rows: NDArray[np.int64] | None = None


def bind(checkpoint: Checkpoint, model: Model, weights: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Weight name -> its source, for every weight that the traced Programs read (name -> shape).

    Raises CheckpointError that lists what is missing, unexpected, or of another shape.
    """
    names = _file_names(checkpoint, model)
    present = {name: tensor for tensor, name in names.items() if tensor in checkpoint.tensors}
    missing = [name for name in weights if name not in present]
    known = set(weights) | ({"lm_head.weight"} if model.tied else set())
    unexpected = [
        tensor for tensor in checkpoint.tensors if names.get(tensor) not in known and not IGNORED.search(tensor)
    ]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} does not hold what its configuration asks for: "
            + "; ".join(filter(None, (_listed("missing", missing), _listed("unexpected", unexpected)))),
            path=str(checkpoint.path),
        )
    return {name: _source(checkpoint, model, name, present[name], shape) for name, shape in weights.items()}


def _file_names(checkpoint: Checkpoint, model: Model) -> dict[str, str]:
    """Tensor name in the file -> weight name of the model."""
    if checkpoint.kind != "gguf":
        return {name: name for name in checkpoint.tensors}
    stems = model.gguf_names()
    found = {}
    for tensor in checkpoint.tensors:
        stem, _, kind = tensor.rpartition(".")
        if stem in stems:
            found[tensor] = f"{stems[stem]}.{kind}"
    return found


def _source(checkpoint: Checkpoint, model: Model, name: str, tensor: str, shape: tuple[int, ...]) -> WeightSource:
    info = checkpoint.tensors[tensor]
    if tuple(info.shape) != shape:
        raise CheckpointError(
            f"{info.file}: {tensor} has the shape {tuple(info.shape)}, the configuration asks for {shape}",
            path=str(info.file), key=tensor,
        )  # fmt: skip
    format_named(info.format).row_bytes(shape[-1])
    heads = model.paired_heads(name) if checkpoint.kind == "gguf" else 0
    return WeightSource(tensor, info.format, shape, unpaired_rows(shape[0], heads) if heads else None)


def unpaired_rows(count: int, heads: int) -> NDArray[np.int64]:
    """Row order that turns GGUF's pairs (2i, 2i + 1 of a head) into halves (i, i + half)."""
    return np.arange(count).reshape(heads, count // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _listed(what: str, names: Iterable[str], limit: int = 8) -> str:
    every = list(names)
    if not every:
        return ""
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return f"{len(every)} {what}: {', '.join(every[:limit])}{more}"


def read_floats(checkpoint: Checkpoint, source: WeightSource) -> Floats:
    """A whole weight as float32 in the model's row order (norms, biases, tests; the packer streams instead)."""
    values = format_named(source.format).dequantize(checkpoint.read(source.name), source.shape)
    return values if source.rows is None else np.ascontiguousarray(values[source.rows])
