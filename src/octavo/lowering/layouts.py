"""Packing ids of weights and layout ids of state: which layout a format gets, and what it takes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from octavo.errors import UnsupportedModel
from octavo.lowering.lowered import GroupLayout, PackedWeight
from octavo.program.graph import Program, StateGroup
from octavo.quantization.format import format_named
from octavo.quantization.kv import KV_DTYPES
from octavo.quantization.panels import FLOAT_LAYOUT, layout_for, layout_named, packed_bytes

PAGE_TOKENS = 16
MATRICES = {"linear": (1,), "embedding": (1,), "moe": (2, 3, 4)}  # op -> its operands that are packed
HEAD_UNIT = 16  # lanes of a vector: attention reads queries whole vectors at a time


@dataclass(frozen=True)
class WeightUse:
    """The weights that Programs read, by what is done with them."""

    packed: Mapping[str, tuple[int, int, int]]  # name -> (experts, n, k): operands of products and of embedding
    vectors: Mapping[str, int]  # name -> elements: everything else


def weight_use(programs: Iterable[Program]) -> WeightUse:
    """What to pack and what to keep as float32 vectors. A tied head and its embedding are one packed weight."""
    packed: dict[str, tuple[int, int, int]] = {}
    vectors: dict[str, int] = {}
    for program in programs:
        for node in program.nodes:
            for at, value in enumerate(node.operands):
                if value.kind != "weight":
                    continue
                sizes = [each.at({}) for each in value.shape]
                if at in MATRICES.get(node.op.name, ()):
                    n, k = sizes[-2:]
                    packed[value.name] = (prod(sizes[:-2]), n, k)
                else:
                    vectors[value.name] = prod(sizes)
    return WeightUse(packed, vectors)


def routing_weights(programs: Iterable[Program]) -> set[str]:
    """Weights of the linears that route rows to experts, or weigh an expert that all rows take."""
    found: set[str] = set()
    for program in programs:
        for node in program.nodes:
            made = node.operands[1].producer if node.op.name in ("moe", "sigmoid_mul") else None
            while made is not None:
                found.update(value.name for value in made.operands if value.kind == "weight")
                made = made.operands[0].producer if made.op.name != "linear" else None
    return found


def outer_weights(programs: Iterable[Program]) -> set[str]:
    """Weights that are looked up or that make logits: operands in the regions `embed` and `head`."""
    return {
        value.name
        for program in programs
        for node in program.nodes
        if node.region in ("embed", "head")
        for value in node.operands
        if value.kind == "weight"
    }


def pack_plan(name: str, format_name: str, shape: tuple[int, int, int], *, widen: bool = False) -> PackedWeight:
    """The layout and bytes of a weight [experts, n, k]; widen: as float32 whatever the format. Raises UnsupportedModel
    for a format that is not built."""
    experts, n, k = shape
    layout = layout_named(FLOAT_LAYOUT) if widen else layout_for(format_named(format_name), k)
    return PackedWeight(name, format_name, layout.id, n, k, experts * packed_bytes(layout, n, k), experts)


def group_layout(group: StateGroup, kv_dtype: str) -> GroupLayout:
    """A page of 16 tokens: for each layer and key head, keys then values."""
    if group.head_dim % HEAD_UNIT:
        raise UnsupportedModel(f"heads of {group.head_dim} are not built: attention takes multiples of {HEAD_UNIT}")
    dtype = KV_DTYPES[kv_dtype]
    page = group.layers * group.kv_heads * PAGE_TOKENS * dtype.token_bytes(group.head_dim)
    return GroupLayout(group, dtype.layout, page)
