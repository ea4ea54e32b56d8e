"""The bytes inside a block of a panel whose codes are looked up in a table, and of ternary ones: packer and reader.

Nibbles stand as those of u4 (panel_blocks.py); the table belongs to the format and is in the kernel, not in the file.
"""

from __future__ import annotations

import numpy as np

from octavo.quantization.codebooks import E2M1, NL, half_powers, high_scales
from octavo.quantization.format import Bytes, Codes, Format
from octavo.quantization.i_quants import GRIDS
from octavo.quantization.k_quants import SUPER
from octavo.quantization.panel_lanes import (
    FOUR,
    columns_of,
    halves_of,
    nibbles_of,
    pair_planes,
    pairs_of,
    put_columns,
    put_lanes,
    put_words,
)


def _put_steps(out: Bytes, packed: Bytes) -> None:
    """GGML's nibble bytes [columns, blocks, 8 * 16], low halves of 16 first -> 8 steps of nibbles as u4 has them."""
    for s in range(8):
        put_words(out[..., s * 512 : s * 512 + 512], packed[..., s * 16 : s * 16 + 16])


def _steps(blocks: Bytes, size: int) -> Bytes:
    """8 steps of `size` bytes -> [panels, blocks * 8, size]."""
    return np.ascontiguousarray(blocks[..., : 8 * size]).reshape(len(blocks), -1, size)


def read_iq4_nl(blocks: Bytes) -> Codes:
    """Packed as u4."""
    return Codes(NL.bytes_of(nibbles_of(blocks[..., :512])), columns_of(halves_of(blocks[..., 512:])))


def pack_mxfp4(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """512 bytes of nibbles as u4 has them, 32 bytes of exponents."""
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    put_words(out[..., :512], blocks[..., 1:])
    put_columns(out[..., 512:], np.ascontiguousarray(blocks[..., :1]))


def read_mxfp4(blocks: Bytes) -> Codes:
    return Codes(E2M1.bytes_of(nibbles_of(blocks[..., :512])), half_powers(columns_of(blocks[..., 512:])))


def pack_iq4_xs(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of 512 bytes of nibbles; 32 float16 d; the six bits of the scales: 4 x 32 bytes of low halves
    (step 2i low, 2i + 1 high), 2 x 32 bytes of high pairs (step 4i + n at bits 2n)."""
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    _put_steps(out, blocks[..., 8:])
    put_columns(out[..., 4096:4160].view(np.uint16), np.ascontiguousarray(blocks[..., :2]).view(np.uint16))
    put_columns(out[..., 4160:4288], np.ascontiguousarray(blocks[..., 4:8]))
    put_columns(out[..., 4288:], np.ascontiguousarray(blocks[..., 2:4]))


def read_iq4_xs(blocks: Bytes) -> Codes:
    d = columns_of(halves_of(blocks[..., 4096:4160])).astype(np.float32)
    stored = np.concatenate([columns_of(blocks[..., 4288:]), columns_of(blocks[..., 4160:4288])], axis=2)
    scales = high_scales(stored.reshape(-1, 6)).reshape(*d.shape[:2], 8)
    with np.errstate(invalid="ignore", over="ignore"):
        products = d * (scales.astype(np.float32) - np.float32(32))
    return Codes(NL.bytes_of(nibbles_of(_steps(blocks, 512))), products)


def pack_grid(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k of an i-quant: 8 steps of 512 bytes of nibbles, 32 float16 d, 32 bytes of multipliers a group. 4.3 bits a
    weight (4.6 where groups are 16), whatever the file takes: its grids are taken apart here."""
    found = GRIDS[fmt.name].take(rows.reshape(-1, fmt.block_bytes))
    halves = found.codes.reshape(len(rows), -1, 8, 2, 16)
    _put_steps(out, (halves[..., 0, :] | halves[..., 1, :] << FOUR).reshape(len(rows), -1, 128))
    put_columns(out[..., 4096:4160].view(np.float16), found.d.reshape(len(rows), -1, 1))
    put_columns(out[..., 4160:], found.multipliers.reshape(len(rows), -1, found.multipliers.shape[1]))


def read_grid(name: str, blocks: Bytes) -> Codes:
    known = GRIDS[name]
    d = columns_of(halves_of(blocks[..., 4096:4160])).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        products = d * columns_of(blocks[..., 4160:]).astype(np.float32) * np.float32(known.unit)
    return Codes(known.table.bytes_of(nibbles_of(_steps(blocks, 512))), products)


def pack_tq2_0(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of 4 rows (group*2 + c) of pairs, 32 float16 d."""
    codes = fmt.codes(rows.reshape(-1, fmt.block_bytes))
    runs = codes.q.reshape(len(rows), -1, SUPER // 128, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    planes = pair_planes(np.bitwise_or.reduce(runs, axis=3).reshape(len(rows), -1, 64))
    steps = out[..., :2048].reshape(*out.shape[:2], 8, 256)
    for group in (0, 1):
        put_lanes(steps[..., group * 128 : group * 128 + 128], planes[:, group, None])
    put_columns(out[..., 2048:].view(np.float16), codes.d.astype(np.float16).reshape(len(rows), -1, 1))


def read_tq2_0(blocks: Bytes) -> Codes:
    return Codes(pairs_of(_steps(blocks, 256)), columns_of(halves_of(blocks[..., 2048:])))
