"""The bytes inside a block of a quantized panel: 32 columns x 32 k (x 256 k for GGML's super-blocks).

Each element type has a packer (rows of the source format -> blocks) and a reader (blocks -> codes and scales), which
are the definition of the layout. Codes stand as words of four k in lanes of 16 columns: byte l*4 + t of a row of 64
bytes belongs to column c*16 + l. It knows nothing of panels' order, of columns that pad, or of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.quantization.format import Bytes, Codes, Format
from octavo.quantization.k_quants import six_bit_scales

PANEL = 32  # output columns
STEP = 32  # k that a kernel does at a time
LOW, FOUR = np.uint8(15), np.uint8(4)
NIBBLES, U4 = np.uint32(0x0F0F0F0F), np.uint32(4)
Lanes = NDArray[np.uint32]
PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # where the high pairs of j = 0..3 stand in a byte


@dataclass(frozen=True)
class Elements:
    """pack(out [panels, blocks, block bytes], format, rows [columns, row bytes]); read(the same blocks) -> Codes of
    q [columns, k], d and m [columns, k / group]: float16 as stored, or float32 products."""

    pack: Callable[[Bytes, Format, Bytes], None]
    read: Callable[[Bytes], Codes]


def _put_words(target: Bytes, codes: Bytes) -> None:
    """codes [columns, blocks, words, 4] -> target [panels, blocks, 2 * words * 64]: row c * words + j."""
    count, blocks, _ = target.shape
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(count, 2, 16, blocks, -1)
    target.view(np.uint32).reshape(count, blocks, 2, -1, 16)[...] = words.transpose(0, 3, 1, 4, 2)


def _words(blocks: Bytes) -> Bytes:
    """[panels, blocks, 2 * words * 64] -> [columns, blocks, words, 4]: what _put_words was given."""
    count, number, size = blocks.shape
    tiles = blocks.reshape(count, number, 2, size // 128, 16, 4).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(tiles).reshape(count * PANEL, number, -1, 4)


def _lanes(raw: Bytes) -> Lanes:
    """Bytes [columns, blocks, 4 * words] -> [words, panels, blocks, 2, 16]: a word of all columns stands together, so
    that arithmetic on it is one pass."""
    words = np.ascontiguousarray(raw).view(np.uint32)
    return np.ascontiguousarray(words.reshape(-1, 2, 16, *words.shape[1:]).transpose(4, 0, 3, 1, 2))


def _put_lanes(target: Bytes, lanes: Lanes) -> None:
    """lanes [steps, words, panels, blocks, 2, 16] -> target [panels, blocks, steps, 2 * words * 64]."""
    steps, words, count, blocks = lanes.shape[:4]
    target.view(np.uint32).reshape(count, blocks, steps, 2, words, 16)[...] = lanes.transpose(2, 3, 0, 4, 1, 5)


def _pair_nibbles(codes: Lanes) -> Lanes:
    """Codes [..., 8 words, panels, blocks, 2, 16] -> nibbles: word j in low, j + 4 in high halves."""
    low = codes & NIBBLES
    paired: Lanes = low[..., :4, :, :, :, :] | low[..., 4:, :, :, :, :] << U4
    return paired


def _put_columns(target: NDArray[Any], values: NDArray[Any]) -> None:
    """values [columns, blocks, n] -> target [panels, blocks, n * 32]."""
    count, blocks, _ = target.shape
    target.reshape(count, blocks, -1, PANEL)[...] = values.reshape(count, PANEL, blocks, -1).transpose(0, 2, 3, 1)


def _columns(stored: NDArray[Any]) -> NDArray[Any]:
    """[panels, blocks, n * 32] -> [columns, blocks, n]: what _put_columns was given."""
    count, blocks, _ = stored.shape
    values = stored.reshape(count, blocks, -1, PANEL).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values).reshape(count * PANEL, blocks, -1)


def _halves(bytes_: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(bytes_).view(np.float16)


def _nibbles(blocks: Bytes) -> Bytes:
    """Nibble bytes of blocks [panels, blocks, 512] -> codes [columns, blocks, 32]."""
    words = _words(blocks).reshape(-1, blocks.shape[1], 16)
    return np.concatenate([words & LOW, words >> FOUR], axis=2)


def _pack_u4(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """8 rows (c*4 + j) of nibbles, then 32 float16 d, then 32 float16 m where there are minima.

    Byte l*4 + t of a row: low half k = 4j + t, high half k = 16 + 4j + t. GGML pairs element i with 16 + i in one byte
    too, so four bytes at a time are only moved.
    """
    head = fmt.block_bytes - 16  # d, or d and m, stand before the nibbles
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    _put_words(out[..., :512], blocks[..., head:])
    _put_columns(out[..., 512:].view(np.uint16), np.ascontiguousarray(blocks[..., :head]).view(np.uint16))


def _read_u4(blocks: Bytes) -> Codes:
    scales = _columns(_halves(blocks[..., 512:]))
    return Codes(_nibbles(blocks[..., :512]), scales[..., 0], scales[..., 1] if scales.shape[2] == 2 else None)


# Eight fifth bits, bit 4j + t of a byte, as bits j of four bytes t.
FIFTHS = np.array(
    [sum((value >> 4 * j + t & 1) << 8 * t + j for j in (0, 1) for t in range(4)) for value in range(256)], np.uint32
)


def _pack_u5(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """512 bytes of nibbles as u4 has them, 2 rows (c) of fifth bits, 32 float16 d.

    Byte l*4 + t of a row of fifth bits, bit j: k = 4j + t.
    """
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    pieces = FIFTHS[blocks[..., 2:6]]  # of byte i: k = 8i .. 8i + 7
    fifths = pieces[..., 0] | pieces[..., 1] << np.uint32(2) | pieces[..., 2] << U4 | pieces[..., 3] << np.uint32(6)
    _put_words(out[..., :512], blocks[..., 6:])
    _put_words(out[..., 512:640], fifths[..., None].view(np.uint8))
    _put_columns(out[..., 640:].view(np.uint16), np.ascontiguousarray(blocks[..., :2]).view(np.uint16))


def _read_u5(blocks: Bytes) -> Codes:
    fifth = np.unpackbits(_words(blocks[..., 512:640]), axis=2, bitorder="little")  # [columns, blocks, 8, 4]
    low = _nibbles(blocks[..., :512])
    return Codes(low | (fifth.reshape(low.shape) << FOUR), _columns(_halves(blocks[..., 640:])))


def _pack_u8(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """16 rows (c*8 + j) of bytes, byte l*4 + t is the code at k = 4j + t; then 32 float16 d."""
    codes = fmt.codes(rows.reshape(-1, fmt.block_bytes))
    _put_words(out[..., :1024], codes.q.reshape(len(rows), -1, 8, 4))
    _put_columns(out[..., 1024:].view(np.float16), codes.d.reshape(len(rows), -1, 1))


def _read_u8(blocks: Bytes) -> Codes:
    return Codes(_words(blocks[..., :1024]), _columns(_halves(blocks[..., 1024:])))


def _pack_q4_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of 512 bytes of nibbles as u4 has them; 32 float16 d; 32 float16 -dmin; then the six bits of the
    scales and minima: 8 steps of 32 bytes (scale & 15 | minimum << 4), 4 of 32 bytes of high pairs: from the lowest
    scale >> 4 of step s, minimum >> 4 of it, the same of step s + 4.
    """
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    lanes = _lanes(blocks[..., 16:])
    runs = lanes.reshape(4, 8, *lanes.shape[1:])  # low halves are one step, high halves the next
    nibbles = np.stack([_pair_nibbles(runs), _pair_nibbles(runs >> U4)], axis=1).reshape(8, 4, *lanes.shape[1:])
    _put_lanes(out[..., :4096].reshape(*out.shape[:2], 8, 512), nibbles)
    halves = np.ascontiguousarray(blocks[..., :4]).view(np.uint16)
    halves[..., 1] ^= np.uint16(0x8000)
    _put_columns(out[..., 4096:4224].view(np.uint16), halves)
    scales, minima = six_bit_scales(blocks[..., 4:16].reshape(-1, 12))
    _put_columns(out[..., 4224:4480], (scales & LOW) | (minima << FOUR))
    pairs = (scales >> FOUR) | (minima >> FOUR) << np.uint8(2)
    _put_columns(out[..., 4480:], pairs[:, :4] | pairs[:, 4:] << FOUR)


def _read_q4_k(blocks: Bytes) -> Codes:
    steps = np.ascontiguousarray(blocks[..., :4096]).reshape(len(blocks), -1, 512)
    d, e = np.moveaxis(_columns(_halves(blocks[..., 4096:4224])).astype(np.float32), 2, 0)
    low, pairs = _columns(blocks[..., 4224:4480]), _columns(blocks[..., 4480:])
    pairs = np.concatenate([pairs & LOW, pairs >> FOUR], axis=2)
    scales = (low & LOW) | (pairs & np.uint8(3)) << FOUR
    minima = (low >> FOUR) | (pairs >> np.uint8(2)) << FOUR
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(_nibbles(steps), d[..., None] * scales, e[..., None] * minima)


def _pack_q6_k(out: Bytes, fmt: Format, rows: Bytes) -> None:
    """256 k: 8 steps of {512 bytes of nibbles as u4 has them; 4 rows (group*2 + c) of high pairs; 32 int8 scales of
    k 0..15, 32 of k 16..31}, then 32 float16 d.

    Byte l*4 + t of a row of pairs, bits 2j and 2j + 1: k = 16*group + 4j + t.
    """
    blocks = rows.reshape(len(rows), -1, fmt.block_bytes)
    steps = out[..., :6656].reshape(*out.shape[:2], 8, 832)
    lanes = _lanes(blocks[..., :128])
    rest = lanes.shape[1:]
    halves = lanes.reshape(2, 2, 8, *rest)  # [half of the block, 32 bytes of it, words]; high nibbles are 64 k further
    nibbles = np.stack([_pair_nibbles(halves), _pair_nibbles(halves >> U4)], axis=1)
    _put_lanes(steps[..., :512], nibbles.reshape(8, 4, *rest))
    shifts = np.arange(0, 8, 2, dtype=np.uint32)
    fields = _lanes(blocks[..., 128:192]).reshape(2, 1, 8, *rest) >> shifts.reshape(1, 4, 1, 1, 1, 1, 1)
    by_group = (fields & np.uint32(0x03030303)).reshape(8, 2, 4, *rest)  # [step, group, j]
    by_group <<= shifts.reshape(1, 1, 4, 1, 1, 1, 1)
    pairs = np.bitwise_or.reduce(by_group, axis=2)
    for group in (0, 1):
        _put_lanes(steps[..., 512 + group * 128 : 640 + group * 128], pairs[:, group, None])
    scales = np.ascontiguousarray(blocks[..., 192:208]).reshape(len(out), PANEL, -1, 8, 2)
    steps[..., 768:].reshape(*steps.shape[:3], 2, PANEL)[...] = scales.transpose(0, 2, 3, 4, 1)
    _put_columns(out[..., 6656:].view(np.uint16), np.ascontiguousarray(blocks[..., 208:]).view(np.uint16))


def _read_q6_k(blocks: Bytes) -> Codes:
    steps = np.ascontiguousarray(blocks[..., :6656]).reshape(len(blocks), -1, 832)
    low = _nibbles(steps[..., :512])
    pairs = np.stack([_words(steps[..., at : at + 128])[..., 0, :] for at in (512, 640)], axis=2)
    fields = pairs[..., None, :] >> PAIRS & np.uint8(3)
    d = _columns(_halves(blocks[..., 6656:])).astype(np.float32)
    scales = _columns(steps[..., 768:]).view(np.int8).reshape(*d.shape[:2], 16)
    with np.errstate(invalid="ignore", over="ignore"):
        return Codes(low | (fields.reshape(low.shape) << FOUR), d * scales)


ELEMENTS = {
    "u4": Elements(_pack_u4, _read_u4),
    "u5": Elements(_pack_u5, _read_u5),
    "u8": Elements(_pack_u8, _read_u8),
    "q4_k": Elements(_pack_q4_k, _read_q4_k),
    "q6_k": Elements(_pack_q6_k, _read_q6_k),
}
