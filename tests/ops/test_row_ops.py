"""Row ops of epilogues and of phases of whole rows, on every variant: within the bound that the op computes, or exact.

A row has the same bits alone and in any company, as a prologue and in a phase of rows, by 1, 2 and 3 threads; memory
beyond an output stays as it was.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.kernels import library
from octavo.kernels.reference import activation, norm
from octavo.ops import activation as activations
from octavo.ops import norm as norms
from octavo.ops.quantize import act_row_bytes
from tests.ops.node_world import (
    VARIANTS,
    Floats,
    Word,
    World,
    dimension,
    float_bits,
    float_panels,
    immediate,
    linear,
    one,
    store_op,
    through,
    world,
)

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.sampled_from([0, 1, 2, 5, 16, 17, 48])
SCALES = st.sampled_from([1e-6, 1.0, 30.0, 1e4])
EPS = 1e-6
variants = pytest.mark.parametrize("isa", VARIANTS)
few = settings(max_examples=30)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def tensors(*arrays: NDArray[Any]) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in arrays]


def assert_within(found: Floats, wanted: torch.Tensor, bound: NDArray[np.float64]) -> None:
    error = np.abs(found.astype(np.float64) - wanted.numpy().astype(np.float64))
    assert found.shape == bound.shape and (error <= bound).all(), (error / bound).max()


def tiles(at: World, x: Floats, *ops: list[Any], unit: int = 32) -> Floats:
    """Ops on a tile of an epilogue; what stands beyond must not be touched."""
    rows, columns = x.shape
    out, ld, view = at.floats(rows, columns)
    through(at, x, [*ops, store_op(out, ld)], unit=unit)
    assert np.isnan(view[rows:]).all() and np.isnan(view[:, columns:]).all()
    return view[:rows, :columns].copy()


def whole_rows(at: World, x: Floats, *ops: list[Any]) -> Floats:
    """The same ops in a phase of rows, whose source has rows further apart than they are long."""
    rows, columns = x.shape
    apart = np.full((rows, columns + 3), np.nan, np.float32)
    apart[:, :columns] = x
    out, ld, view = at.floats(rows, columns)
    args = [arg for op in [*ops, store_op(out, ld)] for arg in op]
    source = at.put(apart)
    at.run(
        "rows",
        [dimension(1, "T"), immediate(columns), source, immediate(columns + 3), immediate(len(ops) + 1), *args],
        rows,
    )
    assert np.isnan(view[rows:]).all() and np.isnan(view[:, columns:]).all()
    return view[:rows, :columns].copy()


@variants
@few
@given(SEEDS, ROWS, st.sampled_from([(16, 3), (64, 2), (80, 2), (128, 1)]), SCALES)
def test_head_norm(isa: str, seed: int, rows: int, heads: tuple[int, int], scale: float) -> None:
    at, (size, count) = world(isa), heads
    at.forget()
    x, weight = normal(seed, rows, size * count, scale=scale), normal(seed + 1, size)
    op = one("tile.head_norm", at.put(weight), float_bits(EPS), immediate(size))
    found = tiles(at, x, op, unit=int(np.lcm(32, size)))
    wanted = norm.head_norm(*tensors(x, weight), eps=EPS, head_dim=size)
    assert_within(found, wanted, norms.HEAD_NORM.bound({"eps": EPS}, x, weight))
    alone = whole_rows(at, x.reshape(-1, size), norm_of_rows(at, weight))  # each head as a row
    np.testing.assert_array_equal(found.reshape(-1, size).view(np.uint32), alone.view(np.uint32))


def norm_of_rows(at: World, weight: Floats) -> list[Any]:
    return one("tile.rms_norm", at.put(weight), float_bits(EPS), immediate(len(weight)))


@variants
@few
@given(SEEDS, ROWS, st.sampled_from([1, 15, 16, 17, 33, 97, 576]), SCALES)
def test_norms_of_rows(isa: str, seed: int, rows: int, k: int, scale: float) -> None:
    """As a phase of rows, and bit for bit the same as a prologue of a linear."""
    at = world(isa)
    at.forget()
    x, weight, bias = normal(seed, rows, k, scale=scale), normal(seed + 1, k), normal(seed + 2, k)
    gain, shift = at.put(weight), at.put(bias)
    found = whole_rows(at, x, norm_of_rows(at, weight))
    wanted = norm.rms_norm(*tensors(x, weight), eps=EPS)
    assert_within(found, wanted, norms.RMS_NORM.bound({"eps": EPS}, x, weight))
    same = prologue(at, x, one("row.rms_norm", gain, float_bits(EPS)))
    np.testing.assert_array_equal(found.view(np.uint32), same.view(np.uint32))
    found = whole_rows(at, x, one("tile.layer_norm", gain, shift, float_bits(EPS), immediate(k)))
    wanted = norm.layer_norm(*tensors(x, weight, bias), eps=EPS)
    assert_within(found, wanted, norms.LAYER_NORM.bound({"eps": EPS}, x, weight, bias))
    same = prologue(at, x, one("row.layer_norm", gain, shift, float_bits(EPS)))
    np.testing.assert_array_equal(found.view(np.uint32), same.view(np.uint32))


def prologue(at: World, x: Floats, op: list[Any]) -> Floats:
    """A row op in front of a product with the identity."""
    rows, k = x.shape
    out, ld, view = at.floats(rows, k)
    eye = at.put(float_panels(np.eye(k, dtype=np.float32)))
    groups = [(k, [(eye, "f32.p32.k1.1")], [store_op(out, ld)])]
    acts = at.room((rows + 1) * k * 4)[0]
    at.run("linear", linear(acts, k, span=0, groups=groups, src=(at.put(x), k), prologue=[op]), rows)
    return view[:rows, :k].copy()


Elements = Callable[[World], tuple[list[Any], Callable[[torch.Tensor], torch.Tensor], Callable[[Floats], Any]]]
ELEMENTS: dict[str, Elements] = {
    "gelu": lambda at: (one("tile.gelu"), activation.gelu, lambda x: activations.GELU.bound({}, x)),
    "gelu_erf": lambda at: (one("tile.gelu_erf"), activation.gelu_erf, lambda x: activations.GELU_ERF.bound({}, x)),
    "scale": lambda at: (
        one("tile.scale", float_bits(0.3)),
        lambda x: activation.scale(x, factor=float(np.float32(0.3))),
        lambda x: activations.SCALE.bound({}, x),
    ),
    "softcap": lambda at: (
        one("tile.softcap", float_bits(30.0)),
        lambda x: activation.softcap(x, cap=30.0),
        lambda x: activations.SOFTCAP.bound({"cap": 30.0}, x),
    ),
}


@variants
@pytest.mark.parametrize("name", ELEMENTS)
@few
@given(seed=SEEDS, rows=ROWS, n=st.sampled_from([1, 31, 32, 33, 97]), scale=SCALES)
def test_functions_of_an_element(isa: str, name: str, seed: int, rows: int, n: int, scale: float) -> None:
    at = world(isa)
    at.forget()
    op, reference, bound = ELEMENTS[name](at)
    x = normal(seed, rows, n, scale=scale)
    found = tiles(at, x, op)
    assert_within(found, reference(torch.from_numpy(x)), bound(x))
    np.testing.assert_array_equal(whole_rows(at, x, op).view(np.uint32), found.view(np.uint32))


@variants
def test_what_is_not_finite_stays_so_or_meets_its_limit(isa: str) -> None:
    at = world(isa)
    at.forget()
    x = np.array([[np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30]], np.float32)
    capped = whole_rows(at, x, one("tile.softcap", float_bits(30.0)))[0]
    assert np.isnan(capped[0]) and capped[1:].tolist() == [30, -30, 0, 30, -30]
    bent = whole_rows(at, x, one("tile.gelu"))[0]
    assert np.isnan(bent[0]) and bent[[1, 3, 4]].tolist() == [np.inf, 0, np.float32(1e30)] and abs(bent[5]) == 0


@variants
@few
@given(seed=SEEDS, rows=ROWS, n=st.sampled_from([1, 31, 32, 33, 97]), scale=SCALES)
def test_sigmoid_mul(isa: str, seed: int, rows: int, n: int, scale: float) -> None:
    """Gates stand further apart than one number."""
    at = world(isa)
    at.forget()
    x, gates = normal(seed, rows, n), normal(seed + 1, rows, 3, scale=scale)
    op = one("tile.sigmoid_mul", at.put(gates), immediate(3))
    gate = np.ascontiguousarray(gates[:, :1])
    found = tiles(at, x, op)
    bound = activations.SIGMOID_MUL.bound({}, x, gate)
    assert_within(found, activation.sigmoid_mul(*tensors(x, gate)), bound)
    np.testing.assert_array_equal(whole_rows(at, x, op).view(np.uint32), found.view(np.uint32))


@variants
@few
@given(seed=SEEDS, rows=ROWS, n=st.sampled_from([32, 64, 96]), scale=SCALES)
def test_gelu_mul(isa: str, seed: int, rows: int, n: int, scale: float) -> None:
    gate, up = normal(seed, rows, n, scale=scale), normal(seed + 1, rows, n)
    bound = activations.GELU_MUL.bound({}, gate, up)
    assert_within(joined(world(isa), gate, up, one("tile.gelu_mul")), activation.gelu_mul(*tensors(gate, up)), bound)


@variants
@few
@given(seed=SEEDS, rows=ROWS, n=st.sampled_from([32, 64, 96]), scale=SCALES, limit=st.sampled_from([0.5, 7.0]))
def test_clamped_swiglu(isa: str, seed: int, rows: int, n: int, scale: float, limit: float) -> None:
    gate, up = normal(seed, rows, n, scale=scale), normal(seed + 1, rows, n, scale=scale)
    attrs = {"alpha": 1.702, "limit": limit}
    found = joined(world(isa), gate, up, one("tile.clamped_swiglu", float_bits(1.702), float_bits(limit)))
    bound = activations.CLAMPED_SWIGLU.bound(attrs, gate, up)
    assert_within(found, activation.clamped_swiglu(*tensors(gate, up), **attrs), bound)


def joined(at: World, gate: Floats, up: Floats, op: list[Word | str]) -> Floats:
    """What an op makes of two weights' tiles; what stands beyond must not be touched."""
    at.forget()
    rows, n = gate.shape
    out, ld, view = at.floats(rows, n)
    left = np.concatenate((np.eye(n, dtype=np.float32), np.zeros((n, n), np.float32)), axis=1)
    right = np.roll(left, n, axis=1)
    pair = [(at.put(float_panels(each)), "f32.p32.k1.1") for each in (left, right)]
    groups = [(n, pair, [op, store_op(out, ld)])]
    both = at.put(np.concatenate((gate, up), axis=1))
    at.run("linear", linear(both, 2 * n, span=0, groups=groups), rows)
    assert np.isnan(view[rows:]).all() and np.isnan(view[:, n:]).all()
    return view[:rows, :n].copy()


def post_norm(at: World, x: Floats, residual: Floats, weight: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """A phase of rows as sandwich norms have it: norm, residual added in its own place, the sum quantized."""
    at.forget()
    rows, k = x.shape
    sums, ld, view = at.floats(rows, k)
    view[:rows, :k] = residual
    acts, raw = at.room(rows * act_row_bytes(k))
    ops: Sequence[list[Word | str]] = [
        norm_of_rows(at, weight),
        one("tile.add", sums, immediate(ld), sums, immediate(ld)),
        one("tile.quantize", acts, immediate(k), immediate(32)),
    ]
    args = [dimension(1, "T"), immediate(k), at.put(x), immediate(k), immediate(len(ops))]
    at.run("rows", [*args, *(arg for op in ops for arg in op)], rows)
    assert np.isnan(view[rows:]).all() and np.isnan(view[:, k:]).all()
    return view[:rows, :k].copy(), raw.reshape(rows, -1)[:, : k + k // 32 * 8 + k // 16 * 4].copy()


@variants
@pytest.mark.parametrize("k", [32, 96, 640])
def test_rows_do_not_know_their_company(isa: str, k: int) -> None:
    x, residual, weight = normal(1, 70, k), normal(2, 70, k), normal(3, k)
    sums, acts = post_norm(world(isa), x, residual, weight)
    normed = whole_rows(world(isa), x, norm_of_rows(world(isa), weight))
    np.testing.assert_array_equal(sums, residual + normed)
    wanted = library.oracle_quantize(sums, 32)[:, : acts.shape[1]]
    np.testing.assert_array_equal(acts, wanted)
    for threads in (1, 2, 3):
        for first, last in ((0, 1), (3, 5), (20, 36), (1, 70)):
            found = post_norm(world(isa, threads), x[first:last], residual[first:last], weight)
            np.testing.assert_array_equal(found[0].view(np.uint32), sums[first:last].view(np.uint32))
            np.testing.assert_array_equal(found[1], acts[first:last])
