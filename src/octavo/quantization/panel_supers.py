"""The bytes inside a block of 32 columns x 256 k: GGML's super-blocks Q2_K to Q6_K, packer and reader of each.

Scales stay as small as in the file; kernels make d * scale and -dmin * minimum as they go. See panel_lanes.py for words
and planes.
"""

from __future__ import annotations

import numpy as np

from octavo.quantization.format import Bytes, Codes, Floats, Format
from octavo.quantization.k_quants import six_bit_scales, sixteen_scales
from octavo.quantization.panel_lanes import (
    FOUR,
    LOW,
    PANEL,
    U4,
    Lanes,
    bit_planes,
    bits_of,
    columns_of,
    halves_of,
    lanes_of,
    nibbles_of,
    pair_nibbles,
    pair_planes,
    pairs_of,
    put_columns,
    put_lanes,
    split_nibbles,
)

TWO = np.uint8(2)


def _steps(part: Bytes, size: int) -> Bytes:
    """8 steps of `size` bytes [panels, blocks, 8 * size] -> [panels, blocks, 8, size], the same memory."""
    return part.reshape(*part.shape[:2], 8, size)


def _blocks_of_steps(part: Bytes, size: int) -> Bytes:
    """The same as [panels, blocks * 8, size], a copy."""
    return np.ascontiguousarray(part).reshape(len(part), -1, size)


def _put_planes(target: Bytes, planes: Lanes) -> None:
    """planes [8 steps, groups, panels, blocks, 2, 16] -> target [panels, blocks, 8, 128 * groups]."""
    for group in range(planes.shape[1]):
        put_lanes(target[..., group * 128 : group * 128 + 128], planes[:, group, None])


def _put_six_bits(target: Bytes, first: Bytes, second: Bytes) -> None:
    """Two numbers of six bits a step, each [columns, blocks, 8] -> target [panels, blocks, 384]: 8 steps of 32 bytes
    (first & 15 | second << 4), 4 of 32 bytes of high pairs: from the lowest first >> 4 of step s, second >> 4 of it,
    the same of step s + 4."""
    put_columns(target[..., :256], (first & LOW) | (second << FOUR))
    pairs = (first >> FOUR) | (second >> FOUR) << TWO
    put_columns(target[..., 256:], pairs[..., :4] | pairs[..., 4:] << FOUR)


def _six_bits(stored: Bytes) -> tuple[Bytes, Bytes]:
    """What _put_six_bits was given."""
    low, pairs = columns_of(stored[..., :256]), columns_of(stored[..., 256:])
    pairs = np.concatenate([pairs & LOW, pairs >> FOUR], axis=2)
    return (low & LOW) | (pairs & np.uint8(3)) << FOUR, (low >> FOUR) | (pairs >> TWO) << FOUR


def _put_d_and_dmin(target: Bytes, halves: Bytes) -> None:
    """d and dmin as stored [columns, blocks, 4] -> 32 float16 d, 32 float16 -dmin."""
    bits = np.ascontiguousarray(halves).view(np.uint16)
    put_columns(target.view(np.uint16), bits ^ np.array([0, 0x8000], np.uint16))


def _products(d: Floats, scales: Bytes) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        return d * scales.astype(np.float32)


def pack_q2_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of {4 rows (group*2 + c) of pairs; 32 bytes (scale | minimum << 4) of k 0..15, 32 of k 16..31},
    then 32 float16 d, 32 float16 -dmin."""
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    steps = _steps(out[..., :2560], 320)
    _put_planes(steps[..., :256], pair_planes(blocks[..., 16:80]))
    scales = np.ascontiguousarray(blocks[..., :16]).reshape(len(out), PANEL, -1, 8, 2)
    steps[..., 256:].reshape(*steps.shape[:3], 2, PANEL)[...] = scales.transpose(0, 2, 3, 4, 1)
    _put_d_and_dmin(out[..., 2560:], blocks[..., 80:])


def read_q2_k(blocks: Bytes) -> Codes:
    steps = _blocks_of_steps(blocks[..., :2560], 320)
    d, e = np.moveaxis(columns_of(halves_of(blocks[..., 2560:])).astype(np.float32), 2, 0)
    scales = columns_of(steps[..., 256:]).reshape(*d.shape, 16)
    return Codes(
        pairs_of(steps[..., :256]), _products(d[..., None], scales & LOW), _products(e[..., None], scales >> FOUR)
    )


def pack_q3_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of {4 rows (group*2 + c) of pairs; 2 rows (c) of high bits}, 32 float16 d, then the six bits of
    the scales of k 0..15 and k 16..31 as q4_k has its scales and minima."""
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    steps = _steps(out[..., :3072], 384)
    _put_planes(steps[..., :256], pair_planes(blocks[..., 32:96]))
    _put_planes(steps[..., 256:], bit_planes(blocks[..., :32]))
    put_columns(out[..., 3072:3136].view(np.uint16), np.ascontiguousarray(blocks[..., 108:]).view(np.uint16))
    scales = sixteen_scales(blocks[..., 96:108].reshape(-1, 12)).reshape(*blocks.shape[:2], 8, 2)
    _put_six_bits(out[..., 3136:], scales[..., 0], scales[..., 1])


def read_q3_k(blocks: Bytes) -> Codes:
    steps = _blocks_of_steps(blocks[..., :3072], 384)
    d = columns_of(halves_of(blocks[..., 3072:3136])).astype(np.float32)
    scales = np.stack(_six_bits(blocks[..., 3136:]), axis=3).reshape(*d.shape[:2], 16)
    with np.errstate(invalid="ignore", over="ignore"):
        products = d * (scales.astype(np.float32) - np.float32(32))
    return Codes(pairs_of(steps[..., :256]) | bits_of(steps[..., 256:]) << TWO, products)


def pack_q4_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of 512 bytes of nibbles as u4 has them; 32 float16 d; 32 float16 -dmin; then the six bits of the
    scales and minima: 8 steps of 32 bytes (scale & 15 | minimum << 4), 4 of 32 bytes of high pairs: from the lowest
    scale >> 4 of step s, minimum >> 4 of it, the same of step s + 4.
    """
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    put_lanes(_steps(out[..., :4096], 512), split_nibbles(blocks[..., 16:]))
    _put_scales(out[..., 4096:], blocks[..., :16])


def read_q4_k(blocks: Bytes) -> Codes:
    return _scaled(nibbles_of(_blocks_of_steps(blocks[..., :4096], 512)), blocks[..., 4096:])


def pack_q5_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of {512 bytes of nibbles as u4 has them; 2 rows (c) of fifth bits}, then as q4_k."""
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    steps = _steps(out[..., :5120], 640)
    put_lanes(steps[..., :512], split_nibbles(blocks[..., 48:]))
    _put_planes(steps[..., 512:], bit_planes(blocks[..., 16:48]))
    _put_scales(out[..., 5120:], blocks[..., :16])


def read_q5_k(blocks: Bytes) -> Codes:
    steps = _blocks_of_steps(blocks[..., :5120], 640)
    return _scaled(nibbles_of(steps[..., :512]) | bits_of(steps[..., 512:]) << FOUR, blocks[..., 5120:])


def _put_scales(target: Bytes, heads: Bytes) -> None:
    """The first 16 bytes of Q4_K's and Q5_K's blocks -> 32 float16 d, 32 float16 -dmin, six bits."""
    _put_d_and_dmin(target[..., :128], heads[..., :4])
    scales, minima = six_bit_scales(np.ascontiguousarray(heads[..., 4:]).reshape(-1, 12))
    each = (*heads.shape[:2], 8)
    _put_six_bits(target[..., 128:], scales.reshape(each), minima.reshape(each))


def _scaled(q: Bytes, stored: Bytes) -> Codes:
    """Codes with what _put_scales stored."""
    d, e = np.moveaxis(columns_of(halves_of(stored[..., :128])).astype(np.float32), 2, 0)
    scales, minima = _six_bits(stored[..., 128:])
    return Codes(q, _products(d[..., None], scales), _products(e[..., None], minima))


def pack_q6_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of {512 bytes of nibbles as u4 has them; 4 rows (group*2 + c) of high pairs; 32 int8 scales of
    k 0..15, 32 of k 16..31}, then 32 float16 d.

    Byte l*4 + t of a row of pairs, bits 2j and 2j + 1: k = 16*group + 4j + t.
    """
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    steps = _steps(out[..., :6656], 832)
    lanes = lanes_of(blocks[..., :128])
    rest = lanes.shape[1:]
    halves = lanes.reshape(2, 2, 8, *rest)  # [half of the block, 32 bytes of it, words]; high nibbles are 64 k further
    nibbles = np.stack([pair_nibbles(halves), pair_nibbles(halves >> U4)], axis=1)
    put_lanes(steps[..., :512], nibbles.reshape(8, 4, *rest))
    _put_planes(steps[..., 512:768], pair_planes(blocks[..., 128:192]))
    scales = np.ascontiguousarray(blocks[..., 192:208]).reshape(len(out), PANEL, -1, 8, 2)
    steps[..., 768:].reshape(*steps.shape[:3], 2, PANEL)[...] = scales.transpose(0, 2, 3, 4, 1)
    put_columns(out[..., 6656:].view(np.uint16), np.ascontiguousarray(blocks[..., 208:]).view(np.uint16))


def read_q6_k(blocks: Bytes) -> Codes:
    steps = _blocks_of_steps(blocks[..., :6656], 832)
    d = columns_of(halves_of(blocks[..., 6656:])).astype(np.float32)
    scales = columns_of(steps[..., 768:]).view(np.int8).reshape(*d.shape[:2], 16)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(nibbles_of(steps[..., :512]) | pairs_of(steps[..., 512:768]) << FOUR, d * scales)
