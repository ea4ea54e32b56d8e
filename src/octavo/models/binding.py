"""Tensors of a checkpoint -> weights of a model: names, order of rows, experts, and what is missing or unexpected.

It knows both naming schemes; it reads no weight bytes and knows no packing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint, TensorInfo
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.models.names import Experts, WeightNames
from octavo.models.registry import Model
from octavo.models.source import Stack, WeightSource
from octavo.quantization import rounding
from octavo.quantization.format import format_named

# tensors that some files carry and that no model reads: computed tables, masks, factors that the configuration holds
IGNORED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rope_freqs\.weight|rope_factors_(long|short)\.weight|attn\.masked_bias|attn\.bias)$"
)


def bind(checkpoint: Checkpoint, model: Model, weights: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Weight name -> its source, for every weight that the traced Programs read (name -> shape).

    Raises CheckpointError that lists what is missing, unexpected, or of another shape.
    """
    names = model.names.rooted(checkpoint.tensors) if checkpoint.kind != "gguf" else model.names
    held = {name: _held(checkpoint, names, name, weights[name]) for name in weights}
    stored = {name: names.stored(name, checkpoint.kind) for name in weights if held[name] is None}
    missing = [name for name, tensor in stored.items() if tensor not in checkpoint.tensors]
    of_experts = [tensor for way in held.values() if way is not None for tensor in way.tensors]
    missing += [tensor for tensor in of_experts if tensor not in checkpoint.tensors]
    known = {*stored.values(), *of_experts, names.stored("lm_head.weight", checkpoint.kind) if model.tied else None}
    ignored = re.compile(f"{IGNORED.pattern}|{names.unused}") if names.unused else IGNORED
    unexpected = [tensor for tensor in checkpoint.tensors if tensor not in known and not ignored.search(tensor)]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} does not hold what its configuration asks for: "
            + "; ".join(filter(None, (_listed("missing", missing), _listed("unexpected", unexpected)))),
            path=str(checkpoint.path),
        )
    found = {}
    for name, shape in weights.items():
        way = held[name]
        if way is None:
            found[name] = _source(checkpoint, names, name, str(stored[name]), shape)
        else:
            found[name] = _stacked(checkpoint, way, shape)
    return found


def _held(checkpoint: Checkpoint, names: WeightNames, name: str, shape: tuple[int, ...]) -> Experts | None:
    """The way in which this file holds a weight of all experts: the first of which it has a tensor, else the first."""
    ways = names.experts_of(name, checkpoint.kind, shape[0])
    found = (way for way in ways if any(tensor in checkpoint.tensors for tensor in way.tensors))
    return next(found, ways[0] if ways else None)


def _stacked(checkpoint: Checkpoint, way: Experts, shape: tuple[int, ...]) -> WeightSource:
    """Checked: shapes of all tensors, and one format for all experts."""
    infos = [checkpoint.tensors[tensor] for tensor in way.tensors]
    for info, expected in zip(infos, way.stored_shapes(shape), strict=True):
        if tuple(info.shape) != expected:
            raise _misshapen(info, expected)
    first, other = infos[0], next((info for info in infos if info.format != infos[0].format), None)
    if other is not None:
        raise UnsupportedModel(
            f"{other.file}: {other.name} is {other.format.upper()} and {first.name} {first.format.upper()}; "
            f"the {shape[0]} experts of a layer must have one format"
        )
    if way.scales is not None and first.format != "u8":
        what = f"{first.name} is {first.format.upper()}, not U8 as MXFP4 is"
        raise CheckpointError(f"{first.file}: {what}", path=str(first.file), key=first.name)
    fmt = format_named(first.format if way.scales is None else "mxfp4")
    fmt.row_bytes(shape[-1])
    if way.transposed and fmt.widen is None:
        raise UnsupportedModel(f"{first.file}: {first.name}: {fmt.name.upper()} by columns is not built")
    stack = Stack(way.matrices, way.every, way.transposed, way.scales, way.halves)
    return WeightSource(first.name, fmt.name, shape, stack=stack)


def _misshapen(info: TensorInfo, wanted: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"{info.file}: {info.name} has the shape {tuple(info.shape)}, the configuration asks for {wanted}",
        path=str(info.file), key=info.name,
    )  # fmt: skip


def _source(checkpoint: Checkpoint, names: WeightNames, name: str, tensor: str, shape: tuple[int, ...]) -> WeightSource:
    info, part = checkpoint.tensors[tensor], names.part_of(name)
    whole = shape if part is None else (part.rows, *shape[1:])
    flat = checkpoint.kind == "gguf" and whole[0] == 1 and tuple(info.shape) == whole[1:]  # files drop a dimension of 1
    if tuple(info.shape) != whole and not flat:
        raise _misshapen(info, whole)
    format_named(info.format).row_bytes(shape[-1])
    rows = None if part is None else np.asarray(part.ids) if part.ids else part.first + np.arange(shape[0])
    gguf = checkpoint.kind == "gguf"
    if gguf and (heads := names.heads_in_pairs(name)):
        rows = unpaired_rows(shape[0], heads)
    offset = 0.0 if gguf or not name.endswith("norm.weight") else names.norm_offset
    return WeightSource(tensor, info.format, shape, rows, offset)


def rounded(
    sources: Mapping[str, WeightSource], quantization: str, outer: Collection[str], kept: Collection[str] = ()
) -> dict[str, WeightSource]:
    """The sources with `--quantization` applied to their float matrices; `outer` are the embedding and the head, `kept`
    stay floats."""
    found = {}
    for name, source in sources.items():
        to = None
        is_matrix = len(source.shape) == (2 if source.stack is None else 3)
        if is_matrix and name not in kept:
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
