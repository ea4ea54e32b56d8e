"""Moving the bytes of quantized blocks between rows of a file and lanes of a panel: what all packers share.

Codes stand as words of four k in lanes of 16 columns: byte l*4 + t of a row of 64 bytes belongs to column c*16 + l. It
knows no format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.quantization.format import Bytes

PANEL = 32  # output columns
LOW, FOUR = np.uint8(15), np.uint8(4)
NIBBLES, U4 = np.uint32(0x0F0F0F0F), np.uint32(4)
Lanes = NDArray[np.uint32]
PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # where the pairs of j = 0..3 stand in a byte


def put_words(target: Bytes, codes: Bytes) -> None:
    """codes [columns, blocks, words, 4] -> target [panels, blocks, 2 * words * 64]: row c * words + j."""
    count, blocks, _ = target.shape
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(count, 2, 16, blocks, -1)
    target.view(np.uint32).reshape(count, blocks, 2, -1, 16)[...] = words.transpose(0, 3, 1, 4, 2)


def words_of(blocks: Bytes) -> Bytes:
    """[panels, blocks, 2 * words * 64] -> [columns, blocks, words, 4]: what put_words was given."""
    count, number, size = blocks.shape
    tiles = blocks.reshape(count, number, 2, size // 128, 16, 4).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(tiles).reshape(count * PANEL, number, -1, 4)


def lanes_of(raw: Bytes) -> Lanes:
    """Bytes [columns, blocks, 4 * words] -> [words, panels, blocks, 2, 16]: a word of all columns stands together, so
    that arithmetic on it is one pass."""
    words = np.ascontiguousarray(raw).view(np.uint32)
    return np.ascontiguousarray(words.reshape(-1, 2, 16, *words.shape[1:]).transpose(4, 0, 3, 1, 2))


def put_lanes(target: Bytes, lanes: Lanes) -> None:
    """lanes [steps, words, panels, blocks, 2, 16] -> target [panels, blocks, steps, 2 * words * 64]."""
    steps, words, count, blocks = lanes.shape[:4]
    target.view(np.uint32).reshape(count, blocks, steps, 2, words, 16)[...] = lanes.transpose(2, 3, 0, 4, 1, 5)


def pair_nibbles(codes: Lanes) -> Lanes:
    """Codes [..., 8 words, panels, blocks, 2, 16] -> nibbles: word j in low, j + 4 in high halves."""
    low = codes & NIBBLES
    paired: Lanes = low[..., :4, :, :, :, :] | low[..., 4:, :, :, :, :] << U4
    return paired


def put_columns(target: NDArray[Any], values: NDArray[Any]) -> None:
    """values [columns, blocks, n] -> target [panels, blocks, n * 32]."""
    count, blocks, _ = target.shape
    target.reshape(count, blocks, -1, PANEL)[...] = values.reshape(count, PANEL, blocks, -1).transpose(0, 2, 3, 1)


def columns_of(stored: NDArray[Any]) -> NDArray[Any]:
    """[panels, blocks, n * 32] -> [columns, blocks, n]: what put_columns was given."""
    count, blocks, _ = stored.shape
    values = stored.reshape(count, blocks, -1, PANEL).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values).reshape(count * PANEL, blocks, -1)


def halves_of(bytes_: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(bytes_).view(np.float16)


def nibbles_of(blocks: Bytes) -> Bytes:
    """Nibble bytes of blocks [panels, blocks, 512] -> codes [columns, blocks, 32]."""
    words = words_of(blocks).reshape(-1, blocks.shape[1], 16)
    return np.concatenate([words & LOW, words >> FOUR], axis=2)


def split_nibbles(raw: Bytes) -> Lanes:
    """128 bytes of 256 nibbles, low halves of 32 bytes first [columns, blocks, 128] -> nibbles of 8 steps, 4 words."""
    lanes = lanes_of(raw)
    runs = lanes.reshape(4, 8, *lanes.shape[1:])  # low halves are one step, high halves the next
    nibbles = np.stack([pair_nibbles(runs), pair_nibbles(runs >> U4)], axis=1)
    return nibbles.reshape(8, 4, *lanes.shape[1:])


def pair_planes(raw: Bytes) -> Lanes:
    """64 bytes of 256 pairs of bits, as Q2_K, Q3_K and Q6_K have them [columns, blocks, 64] -> planes
    [8 steps, 2 groups of 16 k, panels, blocks, 2, 16]: bits 2j and 2j + 1 of byte t are those of k = 4j + t."""
    lanes = lanes_of(raw)
    rest = lanes.shape[1:]
    shifts = np.arange(0, 8, 2, dtype=np.uint32)
    fields = lanes.reshape(2, 1, 8, *rest) >> shifts.reshape(1, 4, 1, 1, 1, 1, 1)
    by_group = (fields & np.uint32(0x03030303)).reshape(8, 2, 4, *rest)  # [step, group, j]
    by_group <<= shifts.reshape(1, 1, 4, 1, 1, 1, 1)
    planes: Lanes = np.bitwise_or.reduce(by_group, axis=2)
    return planes


def bit_planes(raw: Bytes) -> Lanes:
    """32 bytes of 256 bits, as Q3_K and Q5_K have them [columns, blocks, 32] -> planes [8 steps, 1, panels, blocks, 2,
    16]: bit j of byte t is that of k = 4j + t."""
    lanes = lanes_of(raw)
    shifts = np.arange(8, dtype=np.uint32)
    by_step = np.zeros((8, 1, *lanes.shape[1:]), np.uint32)
    for j in range(8):
        by_step[:, 0] |= (lanes[j] >> shifts.reshape(8, 1, 1, 1, 1) & np.uint32(0x01010101)) << np.uint32(j)
    return by_step


def pairs_of(planes: Bytes) -> Bytes:
    """Two rows of pairs a half [panels, blocks, 256] (group * 2 + c) -> [columns, blocks, 32] of 2 bits."""
    groups = np.stack([words_of(planes[..., at : at + 128])[..., 0, :] for at in (0, 128)], axis=2)
    return (groups[..., None, :] >> PAIRS & np.uint8(3)).reshape(*groups.shape[:2], 32)


def bits_of(plane: Bytes) -> Bytes:
    """A row of bits a half [panels, blocks, 128] -> [columns, blocks, 32] of 1 bit."""
    words = words_of(plane)
    return np.unpackbits(words, axis=2, bitorder="little").reshape(*words.shape[:2], 32)
