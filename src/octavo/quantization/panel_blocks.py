"""The bytes inside a block of a quantized panel, 32 columns x 32 k, and the table of all of them.

Each element type has a packer (rows of the source format -> blocks) and a reader (blocks -> codes and scales), which
are the definition of the layout; those of 256 k are in panel_supers.py, those with a table in panel_codebooks.py. It
knows nothing of panels' order, of columns that pad, or of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from octavo.quantization import panel_codebooks as codebooks
from octavo.quantization import panel_supers as supers
from octavo.quantization.format import Bytes, Codes, Format
from octavo.quantization.i_quants import GRIDS
from octavo.quantization.panel_lanes import (
    FOUR,
    U4,
    bits_of,
    columns_of,
    halves_of,
    nibbles_of,
    put_columns,
    put_words,
    words_of,
)


@dataclass(frozen=True)
class Elements:
    """pack(out [panels, blocks, block bytes], format, rows [columns, row bytes]); read(the same blocks) -> Codes of
    q [columns, k], d and m [columns, k / group]: float16 as stored, or float32 products."""

    pack: Callable[[Bytes, Format, Bytes], None]
    read: Callable[[Bytes], Codes]


def _pack_u4(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """8 rows (c*4 + j) of nibbles, then 32 float16 d, then 32 float16 m where there are minima.

    Byte l*4 + t of a row: low half k = 4j + t, high half k = 16 + 4j + t. GGML pairs element i with 16 + i in one byte
    too, so four bytes at a time are only moved.
    """
    head = fmt.block_bytes - 16  # d, or d and m, stand before the nibbles
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    put_words(out[..., :512], blocks[..., head:])
    put_columns(out[..., 512:].view(np.uint16), np.ascontiguousarray(blocks[..., :head]).view(np.uint16))


def _read_u4(blocks: Bytes) -> Codes:
    scales = columns_of(halves_of(blocks[..., 512:]))
    return Codes(nibbles_of(blocks[..., :512]), scales[..., 0], scales[..., 1] if scales.shape[2] == 2 else None)


# Eight fifth bits, bit 4j + t of a byte, as bits j of four bytes t.
FIFTHS = np.array(
    [sum((value >> 4 * j + t & 1) << 8 * t + j for j in (0, 1) for t in range(4)) for value in range(256)], np.uint32
)


def _pack_u5(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """512 bytes of nibbles as u4 has them, 2 rows (c) of fifth bits, 32 float16 d, then m where there are minima.

    Byte l*4 + t of a row of fifth bits, bit j: k = 4j + t.
    """
    head = fmt.block_bytes - 20
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    pieces = FIFTHS[blocks[..., head : head + 4]]  # of byte i: k = 8i .. 8i + 7
    fifths = pieces[..., 0] | pieces[..., 1] << np.uint32(2) | pieces[..., 2] << U4 | pieces[..., 3] << np.uint32(6)
    put_words(out[..., :512], blocks[..., head + 4 :])
    put_words(out[..., 512:640], fifths[..., None].view(np.uint8))
    put_columns(out[..., 640:].view(np.uint16), np.ascontiguousarray(blocks[..., :head]).view(np.uint16))


def _read_u5(blocks: Bytes) -> Codes:
    scales = columns_of(halves_of(blocks[..., 640:]))
    q = nibbles_of(blocks[..., :512]) | bits_of(blocks[..., 512:640]) << FOUR
    return Codes(q, scales[..., 0], scales[..., 1] if scales.shape[2] == 2 else None)


def _pack_u8(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """16 rows (c*8 + j) of bytes, byte l*4 + t is the code at k = 4j + t; 32 float16 d; m where there are minima."""
    codes = fmt.codes(rows.reshape(-1, fmt.block_bytes))
    scales = codes.d if codes.m is None else np.concatenate([codes.d, codes.m], axis=1)
    put_words(out[..., :1024], codes.q.reshape(len(rows), -1, 8, 4))
    put_columns(out[..., 1024:].view(np.float16), scales.reshape(len(rows), -1, scales.shape[1]))


def _read_u8(blocks: Bytes) -> Codes:
    scales = columns_of(halves_of(blocks[..., 1024:]))
    return Codes(words_of(blocks[..., :1024]), scales[..., 0], scales[..., 1] if scales.shape[2] == 2 else None)


ELEMENTS = {
    "u4": Elements(_pack_u4, _read_u4),
    "u5": Elements(_pack_u5, _read_u5),
    "u8": Elements(_pack_u8, _read_u8),
    "q2_k": Elements(supers.pack_q2_k, supers.read_q2_k),
    "q3_k": Elements(supers.pack_q3_k, supers.read_q3_k),
    "q4_k": Elements(supers.pack_q4_k, supers.read_q4_k),
    "q5_k": Elements(supers.pack_q5_k, supers.read_q5_k),
    "q6_k": Elements(supers.pack_q6_k, supers.read_q6_k),
    "iq4_nl": Elements(_pack_u4, codebooks.read_iq4_nl),
    "iq4_xs": Elements(codebooks.pack_iq4_xs, codebooks.read_iq4_xs),
    "mxfp4": Elements(codebooks.pack_mxfp4, codebooks.read_mxfp4),
    "tq2_0": Elements(codebooks.pack_tq2_0, codebooks.read_tq2_0),
    **{name: Elements(codebooks.pack_grid, partial(codebooks.read_grid, name)) for name in GRIDS},
}
