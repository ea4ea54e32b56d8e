"""The i-quants below four bits: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M (source: ggml-common.h).

A file names runs of eight (or four) magnitudes by their place in a grid. There are at most eight magnitudes, so that
with its sign every weight is one of 16 numbers: taken apart, a super-block is 256 codes of four bits for a table of the
format, small odd multipliers of its groups and one float16. All products are exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.quantization.codebooks import Codebook
from octavo.quantization.format import Bytes, Codes, Format
from octavo.quantization.grids import grid
from octavo.quantization.k_quants import SUPER

Halves = NDArray[np.float16]


def _signed(magnitudes: tuple[int, ...], zero_point: int) -> Codebook:
    """Codes 0..7 are magnitudes, 8..15 the same below zero; 0 where there is none."""
    known = (*magnitudes, *(0 for _ in range(8 - len(magnitudes))))
    return Codebook((*known, *(-each for each in known)), zero_point)


EIGHTHS = _signed((8, 25, 43), 128)
QUARTERS = _signed((4, 12, 20, 28, 36, 44, 52, 62), 128)
ODD = _signed((1, 3, 5, 7, 9, 11, 13, 15), 128)
# -1, 0, 1 and an eighth more, or (codes 8..10) less, in eighths
SHIFTED = Codebook((-7, 1, 9, 0, 0, 0, 0, 0, -9, -1, 7, 0, 0, 0, 0, 0), 128)
# 7 bits and the one that makes their number even, so that a byte holds eight signs
SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)


@dataclass(frozen=True)
class Indexed:
    """A super-block taken apart: value = d * multiplier * unit * table[code]."""

    codes: Bytes  # [blocks, 256] of 4 bits
    multipliers: Bytes  # [blocks, groups]
    d: Halves  # [blocks, 1]


@dataclass(frozen=True)
class Grid:
    """How a format's super-blocks are taken apart, and what its codes stand for."""

    table: Codebook
    unit: float  # a power of two
    take: Callable[[Bytes], Indexed]

    def split(self, raw: Bytes) -> Codes:
        """Raw blocks -> codes and scales."""
        found = self.take(raw)
        with np.errstate(invalid="ignore", over="ignore"):
            d = found.d.astype(np.float32) * found.multipliers.astype(np.float32) * np.float32(self.unit)
        return Codes(self.table.bytes_of(found.codes), d)


def _half(raw: Bytes) -> Halves:
    return np.ascontiguousarray(raw[:, :2]).view("<f2")


def _words(raw: Bytes, dtype: str) -> NDArray[np.uint32]:
    return np.ascontiguousarray(raw).view(dtype).astype(np.uint32)


def _nibbles(raw: Bytes) -> Bytes:
    """Each byte's low, then its high half [blocks, 2 * bytes]."""
    return np.stack([raw & np.uint8(15), raw >> np.uint8(4)], axis=2).reshape(len(raw), -1)


def _odd(scales: NDArray[np.integer]) -> Bytes:
    return (2 * scales + 1).astype(np.uint8)


def _codes(places: NDArray[np.integer], name: str, signs: Bytes) -> Bytes:
    """Places in the grid, and bytes of eight signs -> [blocks, 256]."""
    negative = np.unpackbits(signs, axis=1, bitorder="little").reshape(-1, SUPER)
    codes: Bytes = grid(name)[places].reshape(-1, SUPER) | negative << np.uint8(3)
    return codes


def _four_sevens(words: NDArray[np.uint32]) -> tuple[Bytes, Bytes]:
    """[blocks, 8] words of four sign codes and a scale -> bytes of signs [blocks, 32], scales [blocks, 8]."""
    sevens = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    return SIGNS[sevens].reshape(len(words), 32), _odd(words >> np.uint32(28))


def take_iq2_xxs(raw: Bytes) -> Indexed:
    """[d][8 x {4 places, four sevens and a scale}], groups of 32."""
    pairs = raw[:, 2:].reshape(-1, 8, 8)
    signs, scales = _four_sevens(_words(pairs[:, :, 4:], "<u4")[:, :, 0])
    return Indexed(_codes(pairs[:, :, :4].reshape(len(raw), 32), "iq2_xxs", signs), scales, _half(raw))


def take_iq2_xs(raw: Bytes) -> Indexed:
    """[d][32 words: 9 bits of place, 7 of signs][8 bytes of scales], groups of 16."""
    words = _words(raw[:, 2:66], "<u2")
    codes = _codes(words & np.uint32(511), "iq2_xs", SIGNS[words >> np.uint32(9)])
    return Indexed(codes, _odd(_nibbles(raw[:, 66:])), _half(raw))


def take_iq2_s(raw: Bytes) -> Indexed:
    """[d][32 bytes of places][32 of signs][8 of high pairs of places][8 of scales], groups of 16."""
    high = raw[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    places = raw[:, 2:34].astype(np.uint16) | high.reshape(-1, 32).astype(np.uint16) << np.uint16(8)
    return Indexed(_codes(places, "iq2_s", raw[:, 34:66]), _odd(_nibbles(raw[:, 74:])), _half(raw))


def take_iq3_xxs(raw: Bytes) -> Indexed:
    """[d][64 places of four][8 words: four sevens and a scale], groups of 32."""
    signs, scales = _four_sevens(_words(raw[:, 66:], "<u4"))
    return Indexed(_codes(raw[:, 2:66], "iq3_xxs", signs), scales, _half(raw))


def take_iq3_s(raw: Bytes) -> Indexed:
    """[d][64 places of four][64 ninth bits][32 bytes of signs][4 of scales], groups of 32."""
    ninth = np.unpackbits(raw[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    places = raw[:, 2:66].astype(np.uint16) | ninth << np.uint16(8)
    return Indexed(_codes(places, "iq3_s", raw[:, 74:106]), _odd(_nibbles(raw[:, 106:])), _half(raw))


def _shifted(places: NDArray[np.integer], less: NDArray[np.integer]) -> Bytes:
    """Places of eight [blocks, 32], and whether an eighth is taken away -> [blocks, 256]."""
    codes: Bytes = grid("iq1")[places] | (less.astype(np.uint8) << np.uint8(3))[:, :, None]
    return codes.reshape(-1, SUPER)


def take_iq1_s(raw: Bytes) -> Indexed:
    """[d][32 bytes of places][8 words: four high threes of places, three bits of scale, the eighth], groups of 32."""
    words = _words(raw[:, 34:], "<u2")
    threes = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint32) & np.uint32(7)
    places = raw[:, 2:34].astype(np.uint32) | threes.reshape(-1, 32) << np.uint32(8)
    codes = _shifted(places, (words >> np.uint32(15)).repeat(4, axis=1))
    return Indexed(codes, _odd(words >> np.uint32(12) & np.uint32(7)), _half(raw))


def take_iq1_m(raw: Bytes) -> Indexed:
    """[32 bytes of places][32 nibbles: high three of a place, the eighth][4 words: four scales of three bits, four
    bits of d], groups of 16."""
    nibbles, words = _nibbles(raw[:, 32:48]), _words(raw[:, 48:], "<u2")
    places = raw[:, :32].astype(np.uint32) | (nibbles & np.uint8(7)).astype(np.uint32) << np.uint32(8)
    quarters = words >> np.uint32(12) << np.array([0, 4, 8, 12], np.uint32)
    d = np.bitwise_or.reduce(quarters, axis=1).astype(np.uint16).view(np.float16)[:, None]
    scales = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint32) & np.uint32(7)
    return Indexed(_shifted(places, nibbles >> np.uint8(3)), _odd(scales.reshape(-1, 16)), d)


GRIDS = {
    "iq2_xxs": Grid(EIGHTHS, 0.125, take_iq2_xxs),
    "iq2_xs": Grid(EIGHTHS, 0.125, take_iq2_xs),
    "iq2_s": Grid(EIGHTHS, 0.125, take_iq2_s),
    "iq3_xxs": Grid(QUARTERS, 0.25, take_iq3_xxs),
    "iq3_s": Grid(ODD, 1.0, take_iq3_s),
    "iq1_s": Grid(SHIFTED, 0.125, take_iq1_s),
    "iq1_m": Grid(SHIFTED, 0.125, take_iq1_m),
}


def _format(name: str, block_bytes: int, group: int) -> Format:
    known = GRIDS[name]
    zero = known.table.zero_point
    return Format(name, SUPER, block_bytes, f"{name}.p32.k4.1", known.split, group=group, zero_point=zero)


IQ2_XXS, IQ2_XS, IQ2_S = _format("iq2_xxs", 66, 32), _format("iq2_xs", 74, 16), _format("iq2_s", 82, 16)
IQ3_XXS, IQ3_S = _format("iq3_xxs", 98, 32), _format("iq3_s", 110, 32)
IQ1_S, IQ1_M = _format("iq1_s", 50, 32), _format("iq1_m", 56, 16)
