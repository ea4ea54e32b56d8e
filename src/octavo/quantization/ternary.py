"""GGML's ternary super-blocks: TQ1_0 (five weights a byte) and TQ2_0 (four) (source: ggml-common.h).

Both stand for d * (q - 1) with one float16 d for 256 weights; TQ1_0 is packed as TQ2_0 is.
"""

from __future__ import annotations

import numpy as np

from octavo.quantization.format import Bytes, Codes, Format
from octavo.quantization.k_quants import SUPER, pairs_of_runs

POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _half(raw: Bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """The float16 that a block ends with, as [blocks, 1]."""
    return np.ascontiguousarray(raw[:, -2:]).view("<f2")


def split_tq2_0(raw: Bytes) -> Codes:
    """[64 bytes of pairs][d float16]; value = d * (q - 1)."""
    return Codes(pairs_of_runs(raw[:, :64]), _half(raw))


def split_tq1_0(raw: Bytes) -> Codes:
    """[48 bytes of five digits][4 of four][d float16]: digit n of a byte is the whole part of 3 * (byte * 3^n mod 256)
    / 256. Bytes 0-31 hold elements 0-159, digit by digit, 32-47 those to 239, 48-51 the last 16."""
    pieces = []
    for first, last, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        turned = raw[:, None, first:last] * POWERS[:digits, None]  # bytes: products wrap, as in ggml
        pieces.append((turned.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8).reshape(len(raw), -1))
    return Codes(np.concatenate(pieces, axis=1), _half(raw))


TQ1_0 = Format("tq1_0", SUPER, 54, "tq2_0.p32.k4.1", split_tq1_0, group=SUPER, zero_point=1)
TQ2_0 = Format("tq2_0", SUPER, 66, "tq2_0.p32.k4.1", split_tq2_0, group=SUPER, zero_point=1)
