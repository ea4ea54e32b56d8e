"""GGML's super-blocks of 256 elements: Q4_K, Q6_K (source of the layouts: ggml-common.h).

A super-block has one float16 scale; its groups have small integer scales. The products of the two are exact float32
roundings, so they are kept as float32 from here on.
"""

from __future__ import annotations

import numpy as np

from octavo.quantization.format import Bytes, Codes, Floats, Format

SUPER = 256


def _half(raw: Bytes, offset: int) -> Floats:
    """The float16 at a byte offset of each super-block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(raw[:, offset : offset + 2]).view("<f2").astype(np.float32)


def six_bit_scales(raw: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes a block -> (scales, minima), each [blocks, 8] of 6 bits.

    Groups 0-3 have their six bits in bytes 0-3 (scales) and 4-7 (minima). Groups 4-7 have their low four bits in the
    nibbles of bytes 8-11 and their high two bits in the upper bits of bytes 0-3 and 4-7.
    """
    first, second, third = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    low, high = np.uint8(15), np.uint8(48)
    scales = np.concatenate([first & np.uint8(63), (third & low) | ((first >> np.uint8(2)) & high)], axis=1)
    minima = np.concatenate([second & np.uint8(63), (third >> np.uint8(4)) | ((second >> np.uint8(2)) & high)], axis=1)
    return scales, minima


def split_q4_k(raw: Bytes) -> Codes:
    """[d][dmin][12 bytes of scales][128 nibble bytes]; value = d*scale * q - dmin*minimum, groups of 32.

    Each run of 32 nibble bytes holds two groups: the low halves are the first, the high halves the second.
    """
    runs = raw[:, 16:].reshape(-1, 4, 32)
    q = np.stack([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, SUPER)
    scales, minima = six_bit_scales(raw[:, 4:16])
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(q, _half(raw, 0) * scales.astype(np.float32), -(_half(raw, 2) * minima.astype(np.float32)))


def split_q6_k(raw: Bytes) -> Codes:
    """[128 bytes of low nibbles][64 of high pairs][16 int8 scales][d]; value = d*scale * (q - 32), groups of 16.

    Each half of 128 elements has 64 nibble bytes (low halves: elements 0-63, high halves: 64-127) and 32 bytes whose
    bit pairs, from the lowest, belong to elements 0-31, 32-63, 64-95, 96-127.
    """
    halves = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([halves & np.uint8(15), halves >> np.uint8(4)], axis=2).reshape(-1, SUPER)
    pairs = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    q = low | ((pairs & np.uint8(3)) << np.uint8(4)).reshape(-1, SUPER)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(q, _half(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32))


Q4_K = Format("q4_k", SUPER, 144, "q4_k.p32.k4.1", split_q4_k, group=32)
Q6_K = Format("q6_k", SUPER, 210, "q6_k.p32.k4.1", split_q6_k, group=16, zero_point=32)
