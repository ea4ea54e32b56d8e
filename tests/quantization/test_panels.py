"""Where every byte of a packed block stands, one at a time, from the layouts' texts and ggml's definitions."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from octavo.quantization import panels
from octavo.quantization.format import FORMATS, Format, format_named
from octavo.quantization.i_quants import GRIDS
from tests.quantization.test_formats import QUANTIZED, REPACKED, random_rows

Q = np.ndarray  # codes of 32 columns x 32 k


def quads(rows: int) -> Iterator[tuple[int, int, int]]:
    """(column, j, t) in the order of bytes: half, row j of it, lane, byte."""
    for half in range(2):
        for j in range(rows):
            for lane in range(16):
                for t in range(4):
                    yield half * 16 + lane, j, t


def nibbles(q: Q) -> bytes:
    return bytes(
        int(q[column, 4 * j + t]) & 15 | (int(q[column, 16 + 4 * j + t]) & 15) << 4 for column, j, t in quads(4)
    )


def whole(q: Q) -> bytes:
    return bytes(int(q[column, 4 * j + t]) for column, j, t in quads(8))


def plane(q: Q, shift: int, width: int) -> bytes:
    """Bits [shift, shift + width) of the codes: each byte has those of k = 4j + t of a column, j ascending."""
    out = bytearray()
    for first in range(0, 32, 32 // width):
        for column in range(32):
            for t in range(4):
                fields = [int(q[column, first + 4 * j + t]) >> shift & (1 << width) - 1 for j in range(8 // width)]
                out.append(sum(field << width * j for j, field in enumerate(fields)))
    return bytes(out)


def six_bits(raw: np.ndarray, s: int) -> tuple[int, int]:
    """Scale and minimum of group s of a Q4_K or Q5_K block, as ggml's get_scale_min_k4 has them."""
    q = [int(byte) for byte in raw[4:16]]
    if s < 4:
        return q[s] & 63, q[s + 4] & 63
    return q[s + 4] & 15 | q[s - 4] >> 6 << 4, q[s + 4] >> 4 | q[s] >> 6 << 4


def two_scales(raw: np.ndarray, s: int) -> tuple[int, int]:
    """Scales 2s and 2s + 1 of a Q3_K block: the comment on ggml's kmask1 and kmask2, one at a time."""
    q = [int(byte) for byte in raw[96:108]]
    low = [q[i % 8] >> 4 * (i // 8) & 15 for i in (2 * s, 2 * s + 1)]
    return tuple(
        each | (q[8 + i % 4] >> 2 * (i // 4) & 3) << 4 for each, i in zip(low, (2 * s, 2 * s + 1), strict=True)
    )


def stored_six_bits(blocks: np.ndarray, pair: Callable[[np.ndarray, int], tuple[int, int]]) -> bytes:
    six = [[pair(block, s) for block in blocks] for s in range(8)]
    low = bytes(first & 15 | (second & 15) << 4 for step in six for first, second in step)
    high = bytes(
        one[0] >> 4 | one[1] >> 4 << 2 | other[0] >> 4 << 4 | other[1] >> 4 << 6
        for s in range(4)
        for one, other in zip(six[s], six[s + 4], strict=True)
    )
    return low + high


def negative(halves: np.ndarray) -> bytes:
    return (np.ascontiguousarray(halves).view(np.uint16) ^ 0x8000).tobytes()


def step_bytes(fmt: Format, q: Q, blocks: np.ndarray, s: int) -> bytes:
    """Step s of a block [32 columns of raw bytes] with the codes q."""
    name = fmt.name
    if name in ("q8_0", "int8"):
        return whole(q)
    if name in ("q5_0", "q5_1", "q5_k"):
        return nibbles(q) + plane(q, 4, 1)
    if name == "q2_k":
        return plane(q, 0, 2) + blocks[:, 2 * s].tobytes() + blocks[:, 2 * s + 1].tobytes()
    if name == "q3_k":
        return plane(q, 0, 2) + plane(q, 2, 1)
    if name == "q6_k":
        return nibbles(q) + plane(q, 4, 2) + blocks[:, 192 + 2 * s].tobytes() + blocks[:, 193 + 2 * s].tobytes()
    if name.startswith("tq"):
        return plane(q, 0, 2)
    return nibbles(q)


def scale_bytes(fmt: Format, blocks: np.ndarray) -> bytes:
    """What follows the steps of a block."""
    name = fmt.name
    if name in ("q4_1", "q5_1", "int8"):
        return blocks[:, :2].tobytes() + blocks[:, 2:4].tobytes()
    if name in ("q4_k", "q5_k"):
        return blocks[:, :2].tobytes() + negative(blocks[:, 2:4]) + stored_six_bits(blocks, six_bits)
    if name == "q2_k":
        return blocks[:, 80:82].tobytes() + negative(blocks[:, 82:])
    if name == "q3_k":
        return blocks[:, 108:].tobytes() + stored_six_bits(blocks, two_scales)
    if name == "q6_k" or name.startswith("tq"):
        return blocks[:, -2:].tobytes()
    if name == "mxfp4":
        return blocks[:, 0].tobytes()
    if name == "iq4_xs":
        low = b"".join(blocks[:, at].tobytes() for at in range(4, 8))
        return blocks[:, :2].tobytes() + low + blocks[:, 2].tobytes() + blocks[:, 3].tobytes()
    if name in GRIDS:
        d = GRIDS[name].take(blocks)
        return d.d.tobytes() + b"".join(each.tobytes() for each in d.multipliers.T)
    return blocks[:, :2].tobytes()


def stored_codes(fmt: Format, blocks: np.ndarray) -> Q:
    """What stands in a block for its codes [32, block]: they themselves, or their places in a table."""
    if fmt.name in GRIDS:
        return GRIDS[fmt.name].take(blocks).codes
    if fmt.name in ("iq4_nl", "iq4_xs", "mxfp4"):
        packed = blocks[:, {"iq4_nl": 2, "iq4_xs": 8, "mxfp4": 1}[fmt.name] :]
        runs = [packed[:, at : at + 16] for at in range(0, packed.shape[1], 16)]
        return np.concatenate([half for run in runs for half in (run & 15, run >> 4)], axis=1)
    return fmt.codes(blocks).q


def byte_by_byte(fmt: Format, raw: np.ndarray, n: int, k: int) -> bytes:
    """The packed bytes of a quantized weight as the layout's text says them."""
    columns = -(-n // 32) * 32
    padded = np.zeros((columns, k // fmt.block, fmt.block_bytes), np.uint8)
    padded[:n] = raw.reshape(n, -1, fmt.block_bytes)
    out = bytearray()
    for panel in range(0, columns, 32):
        for block in range(k // fmt.block):
            some = padded[panel : panel + 32, block]
            q = stored_codes(fmt, some)
            for s in range(fmt.block // 32):
                out += step_bytes(fmt, q[:, 32 * s : 32 * s + 32], some, s)
            out += scale_bytes(fmt, some)
    return bytes(out)


@pytest.mark.parametrize("name", QUANTIZED)
def test_packed_bytes_stand_where_the_layout_says(name):
    fmt = format_named(name)
    n, k = 35, 512
    raw = random_rows(fmt, n, k, 7)
    assert panels.pack(fmt, raw, n, k)[1].tobytes() == byte_by_byte(fmt, raw, n, k)


def test_block_bytes_are_the_agreed_ones():
    sizes = {name: layout.block_bytes for name, layout in panels.LAYOUTS.items()}
    wide, fine = 4096 + 64 + 8 * 32, 4096 + 64 + 16 * 32
    assert sizes == {
        "q4_1.p32.k4.1": 640, "q4_0.p32.k4.1": 576, "q5_0.p32.k4.1": 704, "q5_1.p32.k4.1": 768, "q8_0.p32.k4.1": 1088,
        "int8.p32.k4.1": 1152,
        "q2_k.p32.k4.1": 2688, "q3_k.p32.k4.1": 3520, "q4_k.p32.k4.1": 4608, "q5_k.p32.k4.1": 5632,
        "q6_k.p32.k4.1": 6720, "iq4_nl.p32.k4.1": 576, "iq4_xs.p32.k4.1": 4352, "mxfp4.p32.k4.1": 544,
        "iq3_s.p32.k4.1": wide, "iq3_xxs.p32.k4.1": wide, "iq2_s.p32.k4.1": fine, "iq2_xs.p32.k4.1": fine,
        "iq2_xxs.p32.k4.1": wide, "iq1_m.p32.k4.1": fine, "iq1_s.p32.k4.1": wide, "tq2_0.p32.k4.1": 2112,
        "bf16.p32.k1.1": 64, "f16.p32.k1.1": 64, "f32.p32.k1.1": 128,
    }  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_take_the_bytes_of_the_file(name):
    """But those of the rare formats: four bits and their scales."""
    fmt = format_named(name)
    n, k = 64, 512
    packed = panels.packed_bytes(panels.layout_for(fmt, k), n, k)
    if name in REPACKED:
        assert fmt.nbytes((n, k)) < packed <= n * k * 4.5625 / 8
    else:
        assert packed == fmt.nbytes((n, k))


def test_a_table_and_its_zero_point_are_unsigned_bytes():
    for known in GRIDS.values():
        table = known.table
        assert table.bytes_of(np.arange(16, dtype=np.uint8)).astype(int).tolist() == [
            value + table.zero_point for value in table.values
        ]
