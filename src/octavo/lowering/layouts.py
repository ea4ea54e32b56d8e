"""Packing ids of weights and layout ids of state: which layout a format gets, and what it takes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from octavo.errors import UnsupportedModel
from octavo.lowering.lowered import GroupLayout, PackedWeight
from octavo.program.graph import Program, StateGroup
from octavo.quantization.format import format_named
from octavo.quantization.kv import KV_DTYPES
from octavo.quantization.panels import FLOAT_LAYOUT, layout_for, layout_named, packed_bytes

PAGE_TOKENS = 16
HEAD_UNIT = 16  # lanes of a vector: attention reads queries whole vectors at a time


@dataclass(frozen=True)
class WeightUse:
    """The weights that Programs read, by what is done with them."""

    packed: Mapping[str, tuple[int, int]]  # name -> (n, k): operands of linear and embedding
    vectors: Mapping[str, int]  # name -> elements: everything of one dimension


def weight_use(programs: Iterable[Program]) -> WeightUse:
    """What to pack and what to keep as float32 vectors. A tied head and its embedding are one packed weight."""
    packed: dict[str, tuple[int, int]] = {}
    vectors: dict[str, int] = {}
    for program in programs:
        for name, value in program.weights.items():
            sizes = [each.at({}) for each in value.shape]
            if len(sizes) == 2:
                packed[name] = (sizes[0], sizes[1])
            else:
                vectors[name] = sizes[0]
    return WeightUse(packed, vectors)


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


def pack_plan(name: str, format_name: str, n: int, k: int, *, widen: bool = False) -> PackedWeight:
    """The layout and bytes of a weight [n, k]; widen: as float32 whatever the format. Raises UnsupportedModel for a
    format that is not built."""
    layout = layout_named(FLOAT_LAYOUT) if widen else layout_for(format_named(format_name), k)
    return PackedWeight(name, format_name, layout.id, n, k, packed_bytes(layout, n, k))


def group_layout(group: StateGroup, kv_dtype: str) -> GroupLayout:
    """A page of 16 tokens: for each layer and key head, keys then values."""
    if group.head_dim % HEAD_UNIT:
        raise UnsupportedModel(f"heads of {group.head_dim} are not built: attention takes multiples of {HEAD_UNIT}")
    dtype = KV_DTYPES[kv_dtype]
    page = group.layers * group.kv_heads * PAGE_TOKENS * dtype.token_bytes(group.head_dim)
    return GroupLayout(group, dtype.layout, page)
