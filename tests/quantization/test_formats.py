"""Bytes of every weight format against the gguf package, and every packed layout against its own definition."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import UnsupportedModel
from octavo.quantization import panels
from octavo.quantization.format import FORMATS, GGML_TYPES, Format, format_named

QUANTIZED = [name for name in FORMATS if name.startswith("q")]
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8, 1.0], np.float16)
SCALE_OFFSETS = {"q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q8_0": [0], "q4_k": [0, 2], "q6_k": [208]}


def random_rows(fmt: Format, n: int, k: int, seed: int, *, special: bool = False) -> np.ndarray:
    """Raw bytes of [n, k]; float16 scales finite unless `special`, which plants inf, NaN and subnormals."""
    rng = np.random.default_rng(seed)
    if fmt.split is None:
        values = rng.standard_normal((n, k)).astype(np.float32)
        if special and values.size:
            values.reshape(-1)[rng.integers(0, values.size, 8)] = SPECIAL
        kind = {"f32": values, "f16": values.astype(np.float16), "bf16": values.view(np.uint32) >> 16}[fmt.name]
        return (kind.astype(np.uint16) if fmt.name == "bf16" else kind).view(np.uint8).reshape(-1)
    blocks = rng.integers(0, 256, (n * k // fmt.block, fmt.block_bytes), dtype=np.uint8)
    for offset in SCALE_OFFSETS[fmt.name]:
        scale = rng.standard_normal(len(blocks)).astype(np.float16)
        if special:
            scale[rng.random(len(blocks)) < 0.5] = rng.choice(SPECIAL)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def by_gguf(fmt: Format, raw: np.ndarray, n: int, k: int) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[fmt.name.upper()]
    with np.errstate(all="ignore"):
        return np.asarray(gguf.dequantize(raw.reshape(n, -1), kind), np.float32).reshape(n, k)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits; NaNs may differ in sign and payload, which no definition fixes."""
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


def test_type_numbers_are_ggmls():
    assert {number.value: number.name.lower() for number in gguf.GGMLQuantizationType} == GGML_TYPES


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_ggmls(name):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    fmt = format_named(name)
    assert (fmt.name, fmt.block, fmt.block_bytes) == (name, block, block_bytes)
    assert fmt.nbytes((3, 2 * block)) == 6 * block_bytes
    assert fmt.nbytes((0, block)) == 0


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), special=st.booleans())
def test_dequantize_equals_gguf(name, n, blocks, seed, special):
    fmt = format_named(name)
    k = blocks * fmt.block
    raw = random_rows(fmt, n, k, seed, special=special)
    found = fmt.dequantize(raw, (n, k))
    assert found.dtype == np.float32 and found.shape == (n, k)
    assert same_bits(found, by_gguf(fmt, raw, n, k))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 97), k32=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), special=st.booleans())
def test_packed_numbers_are_the_dequantized_ones(name, n, k32, seed, special):
    fmt = format_named(name)
    k = max(32, fmt.block) * (k32 if fmt.block <= 32 else 1 + k32 % 2)
    raw = random_rows(fmt, n, k, seed, special=special)
    layout_id, packed = panels.pack(fmt, raw, n, k)
    layout = panels.layout_named(layout_id)
    assert layout_id == fmt.layout and packed.size == panels.packed_bytes(layout, n, k)
    expected = fmt.dequantize(raw, (n, k))
    assert same_bits(panels.unpack(layout, packed, n, k), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_by_slices_is_packing_at_once(name, monkeypatch):
    fmt = format_named(name)
    n, k = 203, 512
    raw = random_rows(fmt, n, k, 1)
    layout = panels.layout_for(fmt, k)
    whole = panels.pack(fmt, raw, n, k)[1]
    monkeypatch.setattr(panels, "CHUNK_ELEMENTS", 1)  # a panel at a time
    out = np.full(whole.size, 0xAA, np.uint8)
    panel_bytes, row_bytes = panels.packed_bytes(layout, 32, k), fmt.row_bytes(k)
    for first in range(0, n, 64):
        columns = min(64, n - first)
        target = out[first // 32 * panel_bytes : -(-(first + columns) // 32) * panel_bytes]
        panels.pack_into(target, fmt, raw[first * row_bytes : (first + columns) * row_bytes], columns, k, layout)
    assert np.array_equal(out, whole)


def stored_codes(q: np.ndarray, layout: panels.PackedLayout) -> bytes:
    """The codes of 32 columns x 32 k [32, 32] as the layout's text says them, a byte at a time."""
    out = bytearray()
    quads = [(c, j, lane, t) for c in range(2) for j in range(8) for lane in range(16) for t in range(4)]
    if layout.elements == "u8":
        return bytes(int(q[c * 16 + lane, 4 * j + t]) for c, j, lane, t in quads)
    for c, j, lane, t in quads:
        if j < 4:
            row = q[c * 16 + lane].astype(int)
            out.append(row[4 * j + t] & 15 | (row[16 + 4 * j + t] & 15) << 4)
    if layout.elements == "u5":
        for column in range(32):
            for t in range(4):
                out.append(sum((int(q[column, 4 * j + t]) >> 4) << j for j in range(8)))
    if layout.elements == "q6_k":
        for group in range(2):
            for column in range(32):
                for t in range(4):
                    out.append(sum((int(q[column, 16 * group + 4 * j + t]) >> 4) << 2 * j for j in range(4)))
    return bytes(out)


def six_bits(raw: np.ndarray, s: int) -> tuple[int, int]:
    """Scale and minimum of group s of a Q4_K block, as ggml's get_scale_min_k4 has them."""
    q = [int(byte) for byte in raw[4:16]]
    if s < 4:
        return q[s] & 63, q[s + 4] & 63
    return q[s + 4] & 15 | q[s - 4] >> 6 << 4, q[s + 4] >> 4 | q[s] >> 6 << 4


def stored_scales(blocks: np.ndarray, layout: panels.PackedLayout) -> bytes:
    """What follows the codes of a block: of 32 raw blocks [32, block bytes]."""
    if layout.elements == "q6_k":
        return blocks[:, 208:].tobytes()
    if layout.elements == "q4_k":
        negative = (blocks[:, 2:4].copy().view(np.uint16) ^ 0x8000).tobytes()
        six = [[six_bits(block, s) for block in blocks] for s in range(8)]
        low = bytes(scale & 15 | (minimum & 15) << 4 for step in six for scale, minimum in step)
        high = bytes(
            first[0] >> 4 | first[1] >> 4 << 2 | second[0] >> 4 << 4 | second[1] >> 4 << 6
            for s in range(4)
            for first, second in zip(six[s], six[s + 4], strict=True)
        )
        return blocks[:, :2].tobytes() + negative + low + high
    halves = 2 if layout.id.startswith("q4_1") else 1
    return b"".join(blocks[:, 2 * i : 2 * i + 2].tobytes() for i in range(halves))


def byte_by_byte(fmt: Format, raw: np.ndarray, n: int, k: int) -> bytes:
    """The packed bytes of a quantized weight as the layout's text says them."""
    layout = panels.layout_for(fmt, k)
    columns = -(-n // 32) * 32
    padded = np.zeros((columns, k // fmt.block, fmt.block_bytes), np.uint8)
    padded[:n] = raw.reshape(n, -1, fmt.block_bytes)
    q = fmt.codes(padded.reshape(-1, fmt.block_bytes)).q.reshape(columns, k // fmt.block, fmt.block)
    out = bytearray()
    for panel in range(0, columns, 32):
        for block in range(k // fmt.block):
            some = padded[panel : panel + 32, block]
            for s in range(0, fmt.block, 32):
                out += stored_codes(q[panel : panel + 32, block, s : s + 32], layout)
                if layout.elements == "q6_k":
                    out += some[:, 192 + s // 16].tobytes() + some[:, 193 + s // 16].tobytes()
            out += stored_scales(some, layout)
    return bytes(out)


@pytest.mark.parametrize("name", QUANTIZED)
def test_packed_bytes_stand_where_the_layout_says(name):
    fmt = format_named(name)
    n, k = 35, 512
    raw = random_rows(fmt, n, k, 7)
    assert panels.pack(fmt, raw, n, k)[1].tobytes() == byte_by_byte(fmt, raw, n, k)


def test_block_bytes_are_the_agreed_ones():
    sizes = {name: layout.block_bytes for name, layout in panels.LAYOUTS.items()}
    assert sizes == {
        "q4_1.p32.k4.1": 640, "q4_0.p32.k4.1": 576, "q5_0.p32.k4.1": 704, "q8_0.p32.k4.1": 1088,
        "q4_k.p32.k4.1": 4608, "q6_k.p32.k4.1": 6720,
        "bf16.p32.k1.1": 64, "f16.p32.k1.1": 64, "f32.p32.k1.1": 128,
    }  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_take_the_bytes_of_the_file(name):
    fmt = format_named(name)
    n, k = 64, 512
    assert panels.packed_bytes(panels.layout_for(fmt, k), n, k) == fmt.nbytes((n, k))


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_packs_to_float_panels(name):
    fmt = format_named(name)
    n, k = 33, fmt.block * 2
    raw = random_rows(fmt, n, k, 3)
    layout = panels.layout_named(panels.FLOAT_LAYOUT)
    layout_id, packed = panels.pack(fmt, raw, n, k, layout)
    assert layout_id == "f32.p32.k1.1"
    assert np.array_equal(panels.unpack(layout, packed, n, k), fmt.dequantize(raw, (n, k)))


def test_float_panels_hold_any_k():
    fmt = format_named("bf16")
    raw = random_rows(fmt, 5, 7, 3)
    layout_id, packed = panels.pack(fmt, raw, 5, 7)
    assert packed.size == 7 * 64
    assert np.array_equal(panels.unpack(panels.layout_named(layout_id), packed, 5, 7), fmt.dequantize(raw, (5, 7)))


def test_ragged_rows_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match="q4_k stores 256 elements a block"):
        format_named("q4_k").row_bytes(100)
    with pytest.raises(UnsupportedModel, match="K a multiple of 32, not 48"):
        panels.packed_bytes(panels.layout_named("q8_0.p32.k4.1"), 32, 48)
    with pytest.raises(UnsupportedModel, match="does not hold q4_k"):
        panels.pack(format_named("q4_k"), np.zeros(144, np.uint8), 1, 256, panels.layout_named("q8_0.p32.k4.1"))


def test_unbuilt_formats_are_named():
    with pytest.raises(UnsupportedModel, match="IQ4_XS is not supported yet; supported: F32, F16, BF16, Q4_0"):
        format_named("iq4_xs")
