"""GGML's blocks of 32 elements: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (source of the layouts: ggml-common.h).

A nibble byte i of a block holds element i in its low and element 16 + i in its high half.
"""

from __future__ import annotations

import numpy as np

from octavo.quantization.format import Bytes, Codes, Format


def _nibbles(packed: Bytes) -> Bytes:
    """[blocks, 16] bytes -> [blocks, 32] codes of 4 bits."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _half(raw: Bytes, offset: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """The float16 at a byte offset of each block, as [blocks, 1]."""
    return np.ascontiguousarray(raw[:, offset : offset + 2]).view("<f2")


def split_q4_0(raw: Bytes) -> Codes:
    """[d float16][16 nibble bytes]; value = d * (q - 8)."""
    return Codes(_nibbles(raw[:, 2:]), _half(raw, 0))


def split_q4_1(raw: Bytes) -> Codes:
    """[d float16][m float16][16 nibble bytes]; value = d * q + m."""
    return Codes(_nibbles(raw[:, 4:]), _half(raw, 0), _half(raw, 2))


def split_q5_0(raw: Bytes) -> Codes:
    """[d float16][32 fifth bits][16 nibble bytes]; value = d * (q - 16)."""
    fifth = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little")
    return Codes(_nibbles(raw[:, 6:]) | (fifth << np.uint8(4)), _half(raw, 0))


def split_q5_1(raw: Bytes) -> Codes:
    """[d float16][m float16][32 fifth bits][16 nibble bytes]; value = d * q + m."""
    fifth = np.unpackbits(raw[:, 4:8], axis=1, bitorder="little")
    return Codes(_nibbles(raw[:, 8:]) | (fifth << np.uint8(4)), _half(raw, 0), _half(raw, 2))


def split_q8_0(raw: Bytes) -> Codes:
    """[d float16][32 int8]; value = d * weight, the codes are weight + 128."""
    return Codes(raw[:, 2:] ^ np.uint8(128), _half(raw, 0))


Q4_0 = Format("q4_0", 32, 18, "q4_0.p32.k4.1", split_q4_0, group=32, zero_point=8)
Q4_1 = Format("q4_1", 32, 20, "q4_1.p32.k4.1", split_q4_1, group=32)
Q5_0 = Format("q5_0", 32, 22, "q5_0.p32.k4.1", split_q5_0, group=32, zero_point=16)
Q5_1 = Format("q5_1", 32, 24, "q5_1.p32.k4.1", split_q5_1, group=32)
Q8_0 = Format("q8_0", 32, 34, "q8_0.p32.k4.1", split_q8_0, group=32, zero_point=128)
