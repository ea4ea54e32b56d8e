"""Bytes of every weight format against the gguf package, and every packed layout against its own definition."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import UnsupportedModel
from octavo.quantization import i_quants, panels
from octavo.quantization.format import FORMATS, GGML_TYPES, Format, format_named

GGML = [name for name in FORMATS if name in GGML_TYPES.values()]  # all but our own
QUANTIZED = [name for name in FORMATS if format_named(name).split is not None]
REPACKED = [*i_quants.GRIDS, "tq1_0"]  # whose panels are not the bytes of the file in another order
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8, 1.0], np.float16)
# where a block's float16 scales stand; IQ1_M's is spread over four words, MXFP4 has an exponent
SCALE_OFFSETS = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "q2_k": [80, 82], "q3_k": [108],
    "int8": [0, 2],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "mxfp4": [], "iq1_m": [], "tq1_0": [52], "tq2_0": [64],
}  # fmt: skip


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
    if fmt.name == "iq1_m" and not special:
        blocks[:, 55] &= 0xBF  # the second bit of its float16: below 2
    for offset in SCALE_OFFSETS.get(fmt.name, [0]):
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


@pytest.mark.parametrize("name", GGML)
def test_sizes_are_ggmls(name):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    fmt = format_named(name)
    assert (fmt.name, fmt.block, fmt.block_bytes) == (name, block, block_bytes)
    assert fmt.nbytes((3, 2 * block)) == 6 * block_bytes
    assert fmt.nbytes((0, block)) == 0


@pytest.mark.parametrize("name", GGML)
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
    with pytest.raises(UnsupportedModel, match="NVFP4 is not supported yet; supported: F32, F16, BF16, Q4_0"):
        format_named("nvfp4")
