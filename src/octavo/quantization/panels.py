"""Packed weights as the native kernels read them: panels of 32 output columns, k ascending.

A quantized panel is a run of blocks of 32 columns x 32 k (256 for GGML's super-blocks), a float panel a run of rows of
32 columns. Lanes are output columns; a lane holds four consecutive k, the operand of `vpdpbusd`. Columns beyond N are
zero bytes of the source format: their scales are zero. It knows nothing of models or files, nor of the bytes inside a
quantized block (panel_blocks.py); the caller hands it rows [columns, row_bytes].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.quantization.format import Bytes, Codes, Floats, Format
from octavo.quantization.kv import round_to_bf16
from octavo.quantization.panel_blocks import ELEMENTS
from octavo.quantization.panel_lanes import PANEL as PANEL


@dataclass(frozen=True)
class PackedLayout:
    """One packed layout. `block_bytes` are those of 32 columns x `k_block` elements."""

    id: str
    elements: str  # f32, f16, bf16, or a name of panel_blocks.ELEMENTS
    k_block: int
    block_bytes: int
    group: int = 0  # k that share a scale; 0 for floats
    zero_point: int = 0  # value = d * (code - zero_point) + m
    span: int = 32  # values of a row of activations that may share a scale where kernels sum super-blocks in integers


SUPER = 256  # of groups with whole numbers as scales below one float (native/kernels/super_tile.h)

# id -> layout; each takes the bytes of the file but those of i-quants and TQ1_0. A kernel knows the layout alone, so
# zero points belong to it.
LAYOUTS = {
    "q4_1.p32.k4.1": PackedLayout("q4_1.p32.k4.1", "u4", 32, 640, 32),
    "q4_0.p32.k4.1": PackedLayout("q4_0.p32.k4.1", "u4", 32, 576, 32, 8),
    "q5_0.p32.k4.1": PackedLayout("q5_0.p32.k4.1", "u5", 32, 704, 32, 16),
    "q5_1.p32.k4.1": PackedLayout("q5_1.p32.k4.1", "u5", 32, 768, 32),
    "q8_0.p32.k4.1": PackedLayout("q8_0.p32.k4.1", "u8", 32, 1088, 32, 128),
    "int8.p32.k4.1": PackedLayout("int8.p32.k4.1", "u8", 32, 1152, 32, 128),
    "q2_k.p32.k4.1": PackedLayout("q2_k.p32.k4.1", "q2_k", 256, 2688, 16, 0, SUPER),
    "q3_k.p32.k4.1": PackedLayout("q3_k.p32.k4.1", "q3_k", 256, 3520, 16, 4, SUPER),
    "q4_k.p32.k4.1": PackedLayout("q4_k.p32.k4.1", "q4_k", 256, 4608, 32, 0, SUPER),
    "q5_k.p32.k4.1": PackedLayout("q5_k.p32.k4.1", "q5_k", 256, 5632, 32, 0, SUPER),
    "q6_k.p32.k4.1": PackedLayout("q6_k.p32.k4.1", "q6_k", 256, 6720, 16, 32, SUPER),
    "iq4_nl.p32.k4.1": PackedLayout("iq4_nl.p32.k4.1", "iq4_nl", 32, 576, 32, 128),
    "iq4_xs.p32.k4.1": PackedLayout("iq4_xs.p32.k4.1", "iq4_xs", 256, 4352, 32, 128, SUPER),
    "mxfp4.p32.k4.1": PackedLayout("mxfp4.p32.k4.1", "mxfp4", 32, 544, 32, 12),
    "iq3_s.p32.k4.1": PackedLayout("iq3_s.p32.k4.1", "iq3_s", 256, 4416, 32, 128),
    "iq3_xxs.p32.k4.1": PackedLayout("iq3_xxs.p32.k4.1", "iq3_xxs", 256, 4416, 32, 128),
    "iq2_s.p32.k4.1": PackedLayout("iq2_s.p32.k4.1", "iq2_s", 256, 4672, 16, 128),
    "iq2_xs.p32.k4.1": PackedLayout("iq2_xs.p32.k4.1", "iq2_xs", 256, 4672, 16, 128),
    "iq2_xxs.p32.k4.1": PackedLayout("iq2_xxs.p32.k4.1", "iq2_xxs", 256, 4416, 32, 128),
    "iq1_m.p32.k4.1": PackedLayout("iq1_m.p32.k4.1", "iq1_m", 256, 4672, 16, 128),
    "iq1_s.p32.k4.1": PackedLayout("iq1_s.p32.k4.1", "iq1_s", 256, 4416, 32, 128),
    "tq2_0.p32.k4.1": PackedLayout("tq2_0.p32.k4.1", "tq2_0", 256, 2112, 256, 1),
    "bf16.p32.k1.1": PackedLayout("bf16.p32.k1.1", "bf16", 1, 64),
    "f16.p32.k1.1": PackedLayout("f16.p32.k1.1", "f16", 1, 64),
    "f32.p32.k1.1": PackedLayout("f32.p32.k1.1", "f32", 1, 128),
}
FLOAT_LAYOUT = "f32.p32.k1.1"  # takes any format and any K
CHUNK_ELEMENTS = 1 << 20  # weights handled at a time: bounds the temporary arrays to a few MiB


def layout_named(layout_id: str) -> PackedLayout:
    """The layout of an id. Raises KeyError: ids come from our own tables."""
    return LAYOUTS[layout_id]


def kernel_name(layout_id: str, span: int) -> str:
    """What the native formats call a layout that meets rows of a span (native/kernel.h, act_row_bytes)."""
    return f"{layout_id}.s{SUPER}" if span == SUPER else layout_id


def layout_for(fmt: Format, k: int) -> PackedLayout:
    """The layout that holds rows of `k` elements of this format; f32 panels where K is not a whole number of blocks."""
    layout = LAYOUTS[fmt.layout]
    return layout if k % layout.k_block == 0 else LAYOUTS[FLOAT_LAYOUT]


def packed_bytes(layout: PackedLayout, n: int, k: int) -> int:
    """Bytes of a packed weight of `n` columns and `k` rows of the product. Raises UnsupportedModel for a ragged K."""
    if k % layout.k_block:
        raise UnsupportedModel(f"layout {layout.id} needs K a multiple of {layout.k_block}, not {k}")
    return -(-n // PANEL) * (k // layout.k_block) * layout.block_bytes


def pack(fmt: Format, raw: Bytes, n: int, k: int, layout: PackedLayout | None = None) -> tuple[str, Bytes]:
    """A whole weight [n, k] of raw bytes -> (layout id, packed bytes)."""
    chosen = layout or layout_for(fmt, k)
    out = np.empty(packed_bytes(chosen, n, k), np.uint8)
    pack_into(out, fmt, raw, n, k, chosen)
    return chosen.id, out


def pack_into(out: Bytes, fmt: Format, raw: Bytes, n: int, k: int, layout: PackedLayout) -> None:
    """Packs `n` columns (rows of the file) into `out`, which has packed_bytes(layout, n, k) bytes.

    Panels are independent and contiguous: a caller that streams hands over any multiple of 32 columns at a time (the
    last piece may be ragged) and the slice of its own buffer that belongs to them. Temporary arrays stay within a few
    MiB. Raises UnsupportedModel where the layout cannot hold the format or K.
    """
    if layout.id != FLOAT_LAYOUT and layout.id != fmt.layout and not _narrows(fmt, layout):
        raise UnsupportedModel(f"layout {layout.id} does not hold {fmt.name}; it packs to {fmt.layout}")
    if out.size != packed_bytes(layout, n, k) or raw.size != n * fmt.row_bytes(k):
        raise ValueError(f"{n} x {k} {fmt.name} to {layout.id}: {raw.size} bytes in, {out.size} out do not match")
    if n == 0 or k == 0:
        return
    rows = raw.reshape(n, fmt.row_bytes(k))
    panels = out.reshape(-(-n // PANEL), -1)
    step = max(1, CHUNK_ELEMENTS // (PANEL * k))
    for first in range(0, len(panels), step):
        some = panels[first : first + step]
        columns = rows[first * PANEL : (first + len(some)) * PANEL]
        if len(columns) < len(some) * PANEL:
            padded = np.zeros((len(some) * PANEL, rows.shape[1]), np.uint8)
            padded[: len(columns)] = columns
            columns = padded
        if layout.elements in ELEMENTS:
            ELEMENTS[layout.elements].pack(some.reshape(len(some), -1, layout.block_bytes), fmt, columns)
        else:
            _pack_floats(some, fmt, columns, layout)


def _narrows(fmt: Format, layout: PackedLayout) -> bool:
    """Whether the layout takes the format's values rounded to bf16."""
    return layout.elements == "bf16" and fmt.name in ("f32", "f16")


def _pack_floats(out: Bytes, fmt: Format, rows: Bytes, layout: PackedLayout) -> None:
    """[K][32] elements of the dtype."""
    count = len(out)
    if fmt.layout == layout.id:
        bits: NDArray[Any] = rows.view(np.dtype(f"<u{fmt.block_bytes}"))
    else:
        values = fmt.dequantize(rows.reshape(-1), (len(rows), rows.shape[1] // fmt.block_bytes * fmt.block))
        bits = round_to_bf16(values) if layout.elements == "bf16" else values.view(np.uint32)
    columns = bits.reshape(count, PANEL, -1)
    out.view(bits.dtype).reshape(count, -1, PANEL)[...] = columns.transpose(0, 2, 1)


def unpack(layout: PackedLayout, packed: Bytes, n: int, k: int) -> Floats:
    """Packed bytes -> float32 [n, k], equal to the dequantized source: what kernels are tested against."""
    if layout.k_block == 1:
        return _unpack_floats(layout, packed, n, k)
    codes = unpack_codes(layout, packed, k)
    groups = codes.q.reshape(len(codes.q), -1, layout.group).astype(np.float32) - np.float32(layout.zero_point)
    with np.errstate(invalid="ignore", over="ignore"):
        values = groups * codes.d.astype(np.float32)[:, :, None]
        if codes.m is not None:
            values += codes.m.astype(np.float32)[:, :, None]
    return np.ascontiguousarray(values.reshape(-1, k)[:n])


def unpack_codes(layout: PackedLayout, packed: Bytes, k: int) -> Codes:
    """A quantized weight's codes: q [columns, k] with the padded columns, d and m [columns, k / group]."""
    codes = ELEMENTS[layout.elements].read(packed.reshape(-1, k // layout.k_block, layout.block_bytes))
    m = None if codes.m is None else codes.m.reshape(-1, k // layout.group)
    return Codes(codes.q.reshape(-1, k), codes.d.reshape(-1, k // layout.group), m)


def _unpack_floats(layout: PackedLayout, packed: Bytes, n: int, k: int) -> Floats:
    if layout.elements == "f32":
        values = packed.view(np.float32)
    elif layout.elements == "f16":
        values = packed.view(np.float16).astype(np.float32)
    else:
        values = (packed.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(values.reshape(-1, k, PANEL).transpose(0, 2, 1).reshape(-1, k)[:n])
