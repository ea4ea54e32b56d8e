"""Tensors of a checkpoint -> weights of a model: names, order of rows, and what is missing or unexpected.

It knows both naming schemes; it reads no weight bytes and knows no packing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.errors import CheckpointError
from octavo.models.names import WeightNames
from octavo.models.registry import Model
from octavo.quantization import rounding
from octavo.quantization.format import Bytes, Floats, Format, format_named

# tensors that some files carry and that no model reads: computed tables, masks, factors that the configuration holds
IGNORED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rope_freqs\.weight|rope_factors_(long|short)\.weight|attn\.masked_bias|attn\.bias)$"
)


@dataclass(frozen=True, eq=False)
class WeightSource:
    """Where a weight comes from: tensor `name` of the checkpoint, of whose rows `rows` in this order (None: all).

    shape: of the weight. offset: added to every value; only of float vectors. rounded: the format that its floats are
    rounded to while they are loaded; None: the file's values.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    rows: NDArray[np.int64] | None = None
    offset: float = 0.0
    rounded: str | None = None

    @property
    def held(self) -> str:
        """The format that is packed."""
        return self.rounded or self.format

    def blocks(self, raw: Bytes, shape: tuple[int, int]) -> tuple[Format, Bytes]:
        """Rows of the file -> what is packed: a format and its bytes. Raises CheckpointError for weights that cannot be
        rounded."""
        fmt = format_named(self.format)
        if self.rounded is None:
            return fmt, raw
        try:
            return format_named(self.rounded), rounding.encode(self.rounded, fmt.dequantize(raw, shape))
        except ValueError as error:
            raise CheckpointError(
                f"tensor '{self.name}' cannot be rounded to {self.rounded}: {error}", key=self.name
            ) from None


def bind(checkpoint: Checkpoint, model: Model, weights: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Weight name -> its source, for every weight that the traced Programs read (name -> shape).

    Raises CheckpointError that lists what is missing, unexpected, or of another shape.
    """
    names = model.names.rooted(checkpoint.tensors) if checkpoint.kind != "gguf" else model.names
    stored = {name: names.stored(name, checkpoint.kind) for name in weights}
    missing = [name for name, tensor in stored.items() if tensor not in checkpoint.tensors]
    known = {*stored.values(), names.stored("lm_head.weight", checkpoint.kind) if model.tied else None}
    ignored = re.compile(f"{IGNORED.pattern}|{names.unused}") if names.unused else IGNORED
    unexpected = [tensor for tensor in checkpoint.tensors if tensor not in known and not ignored.search(tensor)]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} does not hold what its configuration asks for: "
            + "; ".join(filter(None, (_listed("missing", missing), _listed("unexpected", unexpected)))),
            path=str(checkpoint.path),
        )
    return {name: _source(checkpoint, names, name, str(stored[name]), weights[name]) for name in weights}


def _source(checkpoint: Checkpoint, names: WeightNames, name: str, tensor: str, shape: tuple[int, ...]) -> WeightSource:
    info, part = checkpoint.tensors[tensor], names.part_of(name)
    whole = shape if part is None else (part.rows, *shape[1:])
    if tuple(info.shape) != whole:
        raise CheckpointError(
            f"{info.file}: {tensor} has the shape {tuple(info.shape)}, the configuration asks for {whole}",
            path=str(info.file), key=tensor,
        )  # fmt: skip
    format_named(info.format).row_bytes(shape[-1])
    rows = None if part is None else part.first + np.arange(shape[0])
    gguf = checkpoint.kind == "gguf"
    if gguf and (heads := names.heads_in_pairs(name)):
        rows = unpaired_rows(shape[0], heads)
    offset = 0.0 if gguf or not name.endswith("norm.weight") else names.norm_offset
    return WeightSource(tensor, info.format, shape, rows, offset)


def rounded(sources: Mapping[str, WeightSource], quantization: str, outer: Collection[str]) -> dict[str, WeightSource]:
    """The sources with `--quantization` applied to their float matrices; `outer` are the embedding and the head."""
    found = {}
    for name, source in sources.items():
        to = None
        if len(source.shape) > 1:
            to = rounding.target(quantization, source.format, source.shape[-1], outer=name in outer)
        found[name] = replace(source, rounded=to)
    return found


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
    """A whole weight as float32 in the model's row order, as it is held (norms, biases, tests; the packer streams)."""
    info, fmt = checkpoint.tensors[source.name], format_named(source.format)
    raw = checkpoint.read(source.name)
    if len(source.shape) > 1 and (source.rows is not None or source.rounded is not None):
        if source.rows is not None:
            raw = raw.reshape(-1, fmt.row_bytes(source.shape[-1]))[source.rows].reshape(-1)
        fmt, raw = source.blocks(raw, (prod(source.shape[:-1]), source.shape[-1]))
        return fmt.dequantize(raw, source.shape)
    values = fmt.dequantize(raw, tuple(info.shape))
    values = values if source.rows is None else np.ascontiguousarray(values[source.rows])
    return values + np.float32(source.offset) if source.offset else values
