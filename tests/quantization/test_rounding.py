"""Rounding to int8 and q4: errors within half a step, blocks as GGML reads them, what is not rounded."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from octavo.quantization import rounding
from octavo.quantization.format import FORMATS, format_named

Floats = np.ndarray
FINITE = st.floats(-60000, 60000, width=32)


def read(name: str, raw: np.ndarray, shape: tuple[int, ...]) -> Floats:
    """By the gguf package; our own block by its definition."""
    if name == "int8":
        blocks = raw.reshape(-1, 36)
        d, m = (np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32) for at in (0, 2))
        return ((blocks[:, 4:].astype(np.float32) - 128) * d + m).reshape(shape)
    found = gguf.dequantize(raw.reshape(shape[0], -1), gguf.GGMLQuantizationType[name.upper()])
    return np.asarray(found, np.float32)


@settings(max_examples=100, deadline=None)
@given(values=arrays.arrays(np.float32, (3, 64), elements=FINITE))
def test_int8_is_within_half_a_step(values: Floats) -> None:
    """And the rounding of scale and minimum to float16: 2^-11 of the ends of the range, 2^-25 where it is denormal."""
    found = read("int8", rounding.encode("int8", values), values.shape)
    groups = values.reshape(-1, 32)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    error = np.abs(found.reshape(-1, 32) - groups)
    halves = (np.abs(low) + np.abs(high)) * 2.0**-10 + 128 * 2.0**-24
    assert (error <= 0.5001 * (high - low) / 255 + halves).all()


@settings(max_examples=100, deadline=None)
@given(values=arrays.arrays(np.float32, (3, 64), elements=FINITE))
def test_q4_is_no_worse_than_the_plain_rounding(values: Floats) -> None:
    """In squares, against scale and minimum from the range: what least squares lower. The rest is float16."""
    found = read("q4_1", rounding.encode("q4_1", values), values.shape).reshape(-1, 32)
    groups = values.reshape(-1, 32).astype(np.float64)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    step = (high - low) / 15
    plain = np.where(step > 0, low + np.rint((groups - low) / np.where(step > 0, step, 1)) * step, groups)
    halves = 32 * ((np.abs(low) + 16 * step) * 2.0**-10 + 2.0**-20) ** 2
    ours, theirs = ((found - groups) ** 2).sum(axis=1), ((plain - groups) ** 2).sum(axis=1)
    assert (np.sqrt(ours) <= np.sqrt(theirs) + 2 * np.sqrt(halves[:, 0])).all()


def test_values_on_the_grid_come_back() -> None:
    random = np.random.default_rng(0)
    codes = np.concatenate([random.integers(0, 16, (40, 30)), [[0, 15]] * 40], axis=1)
    values = (codes * 0.25 - 1.5).astype(np.float32)
    assert np.array_equal(read("q4_1", rounding.encode("q4_1", values), values.shape), values)
    whole = random.integers(-128, 128, (40, 32)).astype(np.float32)
    whole[:, :2] = [-128, 127]
    assert np.array_equal(read("int8", rounding.encode("int8", whole), whole.shape), whole)


@pytest.mark.parametrize("name", ["int8", "q4_1"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4])
def test_what_no_scale_can_hold_is_refused(name: str, value: float) -> None:
    values = np.zeros((2, 32), np.float32)
    values[1, 3] = value
    with pytest.raises(ValueError, match="its values reach"):
        rounding.encode(name, values)


def test_constant_and_empty_weights() -> None:
    for name in ("int8", "q4_1"):
        for value in (0.0, 0.5, -3.0):
            values = np.full((2, 32), value, np.float32)
            assert np.allclose(read(name, rounding.encode(name, values), values.shape), values, rtol=1e-3)
        assert rounding.encode(name, np.empty((0, 32), np.float32)).size == 0


@pytest.mark.parametrize("name", FORMATS)
def test_only_whole_groups_of_floats_are_rounded(name: str) -> None:
    floats = format_named(name).split is None
    for outer in (False, True):
        for asked, wanted in (("int8", "int8"), ("q4", "int8" if outer else "q4_1")):
            assert rounding.target(asked, name, 512, outer=outer) == (wanted if floats else None)
            assert rounding.target(asked, name, 500, outer=outer) is None
        assert rounding.target("auto", name, 512, outer=outer) is None
