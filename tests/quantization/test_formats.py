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
    # + 0.0: a layout with minima adds a zero where the format has none, which turns -0.0 into 0.0
    found = panels.unpack(layout, packed, n, k)
    with np.errstate(invalid="ignore"):
        assert same_bits(found + np.float32(0), expected + np.float32(0))


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


def byte_by_byte(fmt: Format, raw: np.ndarray, n: int, k: int) -> bytes:
    """The packed bytes of a quantized weight as the layout's text says them, one at a time."""
    layout = panels.layout_for(fmt, k)
    codes = fmt.codes(raw.reshape(-1, fmt.block_bytes))
    nothing = fmt.codes(np.zeros((1, fmt.block_bytes), np.uint8))  # what a padded column holds
    q = np.full((-(-n // 32) * 32, k), nothing.q.reshape(-1)[0], np.uint8)
    q[:n] = codes.q.reshape(n, k)
    q += np.uint8(16 if fmt.name == "q4_k" else 0)  # i8g32 has the zero point of Q5_0
    dtype = np.float16 if layout.scales == "f16" else np.float32
    scales = []
    for part, none in ((codes.d, nothing.d), (codes.m, nothing.m)):
        padded = np.full((len(q), k // layout.group), 0 if none is None else none.reshape(-1)[0], dtype)
        assert not padded.any()
        if part is not None:
            padded[:n] = part.reshape(n, -1)
        scales.append(padded)
    out = bytearray()
    for panel in range(0, len(q), 32):
        for k0 in range(0, k, 32):
            for c in range(2):
                for j in range(4 if layout.elements == "u4" else 8):
                    for lane in range(16):
                        row = q[panel + c * 16 + lane, k0 : k0 + 32].astype(int)
                        for t in range(4):
                            low = row[4 * j + t]
                            out.append(low | row[16 + 4 * j + t] << 4 if layout.elements == "u4" else low)
            for group in range(k0 // layout.group, (k0 + 32) // layout.group):
                out += scales[0][panel : panel + 32, group].tobytes()
            if layout.has_min:
                out += scales[1][panel : panel + 32, k0 // 32].tobytes()
    return bytes(out)


@pytest.mark.parametrize("name", QUANTIZED)
def test_packed_bytes_stand_where_the_layout_says(name):
    fmt = format_named(name)
    n, k = 35, 256
    raw = random_rows(fmt, n, k, 7)
    assert panels.pack(fmt, raw, n, k)[1].tobytes() == byte_by_byte(fmt, raw, n, k)


def test_block_bytes_are_the_agreed_ones():
    sizes = {name: layout.block_bytes for name, layout in panels.LAYOUTS.items()}
    assert sizes == {
        "q4_1.p32.k4.1": 640, "q4_0.p32.k4.1": 576, "q8_0.p32.k4.1": 1088, "i8g32.p32.k4.1": 1280,
        "i8g16.p32.k4.1": 1280, "bf16.p32.k1.1": 64, "f16.p32.k1.1": 64, "f32.p32.k1.1": 128,
    }  # fmt: skip


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
