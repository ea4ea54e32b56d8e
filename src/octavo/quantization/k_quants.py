"""GGML's super-blocks of 256 elements: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K (source of the layouts: ggml-common.h).

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


def pairs_of_runs(raw: Bytes) -> Bytes:
    """64 bytes a block -> [blocks, 256] of 2 bits. Each run of 32 bytes holds four groups of 32: the bit pairs of its
    bytes, from the lowest."""
    runs = raw.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (runs & np.uint8(3)).reshape(-1, SUPER)


def _single_bits(raw: Bytes) -> Bytes:
    """32 bytes a block -> [blocks, 256] bits: bit s of byte i belongs to element 32 s + i."""
    runs = raw.reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None]
    return (runs & np.uint8(1)).reshape(-1, SUPER)


def _nibbles(raw: Bytes) -> Bytes:
    """128 bytes a block -> [blocks, 256] of 4 bits: of each run of 32 bytes the low halves, then the high ones."""
    runs = raw.reshape(-1, 4, 32)
    return np.stack([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, SUPER)


def sixteen_scales(raw: Bytes) -> Bytes:
    """12 bytes a block -> [blocks, 16] of 6 bits: low halves in the nibbles of bytes 0-7 (0-7 low, 8-15 high), high
    pairs in bytes 8-11: byte i holds those of scales i, i + 4, i + 8, i + 12."""
    low = np.concatenate([raw[:, :8] & np.uint8(15), raw[:, :8] >> np.uint8(4)], axis=1)
    high = np.concatenate([raw[:, 8:] >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=1)
    scales: Bytes = low | high << np.uint8(4)
    return scales


def split_q2_k(raw: Bytes) -> Codes:
    """[16 bytes of scale | minimum << 4][64 of pairs][d][dmin]; value = d*scale * q - dmin*minimum, groups of 16."""
    scales, minima = (raw[:, :16] & np.uint8(15)).astype(np.float32), (raw[:, :16] >> np.uint8(4)).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(pairs_of_runs(raw[:, 16:80]), _half(raw, 80) * scales, -(_half(raw, 82) * minima))


def split_q3_k(raw: Bytes) -> Codes:
    """[32 bytes of high bits][64 of pairs][12 of scales][d]; value = d*(scale - 32) * (q - 4), groups of 16."""
    scales = sixteen_scales(raw[:, 96:108]).astype(np.float32) - np.float32(32)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(pairs_of_runs(raw[:, 32:96]) | _single_bits(raw[:, :32]) << np.uint8(2), _half(raw, 108) * scales)


def split_q4_k(raw: Bytes) -> Codes:
    """[d][dmin][12 bytes of scales][128 nibble bytes]; value = d*scale * q - dmin*minimum, groups of 32."""
    return _scaled(_nibbles(raw[:, 16:]), raw)


def split_q5_k(raw: Bytes) -> Codes:
    """[d][dmin][12 bytes of scales][32 of fifth bits][128 nibble bytes]; the rest as in Q4_K."""
    return _scaled(_nibbles(raw[:, 48:]) | _single_bits(raw[:, 16:48]) << np.uint8(4), raw)


def _scaled(q: Bytes, raw: Bytes) -> Codes:
    """Codes with the d, dmin and scales that Q4_K and Q5_K blocks begin with."""
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
    q = low | pairs_of_runs(raw[:, 128:192]) << np.uint8(4)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(q, _half(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32))


Q2_K = Format("q2_k", SUPER, 84, "q2_k.p32.k4.1", split_q2_k, group=16)
Q3_K = Format("q3_k", SUPER, 110, "q3_k.p32.k4.1", split_q3_k, group=16, zero_point=4)
Q4_K = Format("q4_k", SUPER, 144, "q4_k.p32.k4.1", split_q4_k, group=32)
Q5_K = Format("q5_k", SUPER, 176, "q5_k.p32.k4.1", split_q5_k, group=32)
Q6_K = Format("q6_k", SUPER, 210, "q6_k.p32.k4.1", split_q6_k, group=16, zero_point=32)
