"""KV dtypes: names, and the rounding: to bf16 and fp16 against torch, to int8 against its definition."""

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.quantization.kv import KV_DTYPES, kv_dtype, kv_layout, round_to_bf16, round_to_fp16, round_to_int8


@pytest.mark.parametrize(
    "name, known, size",
    [
        ("auto", "bf16", 2),
        ("bfloat16", "bf16", 2),
        ("fp32", "float32", 4),
        ("q8_0", "int8", 1),
        ("f16", "fp16", 2),
        ("half", "fp16", 2),
        ("FP16", "fp16", 2),
    ],
)
def test_names_and_aliases(name, known, size):
    assert (kv_dtype(name).name, kv_dtype(name).element_bytes) == (known, size)


@pytest.mark.parametrize("name, told", [("fp8", "int8 takes as"), ("x", "unknown")])
def test_the_others_are_refused_with_the_list(name, told):
    with pytest.raises(ConfigError, match=f"{told}.*supported: bf16, float32, int8, fp16"):
        kv_dtype(name)


def test_rounding_equals_torch():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 5_000, dtype=np.uint32) << 16) | 0x8000  # halfway between two bf16 numbers
    values = np.concatenate([bits, ties, [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF]]).astype(np.uint32)
    values = values.view(np.float32)
    finite = ~np.isnan(values)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found = round_to_bf16(values)
    assert np.array_equal(found[finite], expected[finite])
    widened = (found.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.isnan(widened[~finite]))


def test_rounding_to_fp16_equals_torch():
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    small = (rng.standard_normal(50_000) * 10.0 ** rng.integers(-9, 6, 50_000)).astype(np.float32)
    values = np.concatenate(
        [values[np.isfinite(values)], small, np.float32([65504, 65519.996, 65520, -1e30, 2.0**-25])]
    )
    expected = torch.from_numpy(values.copy()).to(torch.float16).numpy()
    assert np.array_equal(round_to_fp16(values).view(np.uint16), expected.view(np.uint16))


def test_layout_ids_name_their_dtypes():
    for each in KV_DTYPES.values():
        assert kv_layout(each.layout) is each
    assert [KV_DTYPES[name].token_bytes(64) for name in ("float32", "bf16", "fp16", "int8")] == [512, 256, 256, 136]


def test_rounding_to_int8():
    """Half a code at most; the largest of a head has the code 127; zero, tiny and broken heads."""
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((3, 50, 2, 64)) * 10.0 ** rng.integers(-20, 20, (3, 50, 2, 1))).astype(np.float32)
    codes, scales = round_to_int8(values)
    top = np.abs(values).max(-1)
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == top.shape
    assert np.abs(codes).max() == 127 and (np.abs(codes).max(-1) == 127).all()
    worth = codes.astype(np.float64) * scales[..., None]
    assert (np.abs(worth - values) <= scales[..., None] * (0.5 + 2e-5)).all()
    odd = np.zeros((5, 16), np.float32)
    odd[1], odd[2, 3], odd[3, 4], odd[4] = 9e-37, np.nan, -np.inf, 3e38
    codes, scales = round_to_int8(odd)
    assert scales.tolist() == [0, 0, np.inf, np.inf, np.float32(3e38) / np.float32(127)]
    assert (codes[:4] == 0).all() and (codes[4] == 127).all()
