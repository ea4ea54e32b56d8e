"""Formats whose four-bit codes stand for the entries of a table: IQ4_NL, IQ4_XS, MXFP4 (source: ggml-common.h).

The table belongs to the format. Codes are table entries plus the zero point, so that they are unsigned bytes; the
packed panels keep the four bits of the file and kernels look them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.quantization.format import Bytes, Codes, Floats, Format
from octavo.quantization.k_quants import SUPER


@dataclass(frozen=True)
class Codebook:
    """What 16 codes stand for, in units of a group's scale: `values`, each plus `zero_point` a byte."""

    values: tuple[int, ...]
    zero_point: int

    def bytes_of(self, codes: Bytes) -> Bytes:
        """Codes of four bits, of any shape -> unsigned bytes of the same shape."""
        table = np.array([value + self.zero_point for value in self.values], np.uint8)
        return table[codes]


# The weights of a model lie denser around zero: entries of a nonlinear scale.
NL = Codebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), 128)
# Twice the numbers of e2m1, the 4-bit float of the OCP microscaling formats: 0, .5, 1, 1.5, 2, 3, 4, 6 and below zero.
E2M1 = Codebook((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), 12)


def half_powers(exponents: Bytes) -> Floats:
    """Half of 2^(e - 127), the scale of MXFP4 for doubled values: float32, denormal for e below 2, never infinite."""
    wide = exponents.astype(np.uint32)
    denormal, normal = np.uint32(0x00200000) << np.minimum(wide, 1), (np.maximum(wide, 1) - 1) << np.uint32(23)
    return np.where(wide < 2, denormal, normal).astype(np.uint32).view(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """Runs of 16 bytes [blocks, 16 * runs] -> codes [blocks, 32 * runs]: low halves of a run, then its high ones."""
    runs = packed.reshape(len(packed), -1, 1, 16) >> np.array([0, 4], np.uint8)[:, None]
    return (runs & np.uint8(15)).reshape(len(packed), -1)


def high_scales(raw: Bytes) -> Bytes:
    """[16 bits of high pairs][4 nibble bytes] -> [blocks, 8] scales of 6 bits, lowest first in both."""
    low = np.stack([raw[:, 2:6] & np.uint8(15), raw[:, 2:6] >> np.uint8(4)], axis=2).reshape(-1, 8)
    high = raw[:, :2].repeat(4, axis=1) >> np.array([0, 2, 4, 6] * 2, np.uint8) & np.uint8(3)
    scales: Bytes = low | high << np.uint8(4)
    return scales


def _half(raw: Bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """The float16 that a block begins with, as [blocks, 1]."""
    return np.ascontiguousarray(raw[:, :2]).view("<f2")


def split_iq4_nl(raw: Bytes) -> Codes:
    """[d float16][16 nibble bytes]; value = d * NL[code]."""
    return Codes(NL.bytes_of(nibbles(raw[:, 2:])), _half(raw))


def split_iq4_xs(raw: Bytes) -> Codes:
    """[d float16][6 bytes of scales][128 nibble bytes]; value = d*(scale - 32) * NL[code], groups of 32."""
    with np.errstate(invalid="ignore", over="ignore"):
        d = _half(raw).astype(np.float32) * (high_scales(raw[:, 2:8]).astype(np.float32) - np.float32(32))
    return Codes(NL.bytes_of(nibbles(raw[:, 8:])), d)


def split_mxfp4(raw: Bytes) -> Codes:
    """[exponent][16 nibble bytes]; value = 2^(exponent - 128) * E2M1[code]."""
    return Codes(E2M1.bytes_of(nibbles(raw[:, 1:])), half_powers(raw[:, :1]))


IQ4_NL = Format("iq4_nl", 32, 18, "iq4_nl.p32.k4.1", split_iq4_nl, group=32, zero_point=NL.zero_point)
IQ4_XS = Format("iq4_xs", SUPER, 136, "iq4_xs.p32.k4.1", split_iq4_xs, group=32, zero_point=NL.zero_point)
MXFP4 = Format("mxfp4", 32, 17, "mxfp4.p32.k4.1", split_mxfp4, group=32, zero_point=E2M1.zero_point)
