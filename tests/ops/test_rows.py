"""Row independence of native ops: a row has the same bits alone and in any company, with any number of threads.

M = 1 equals row 0 of M = 2 ... 9, 12, 13, 48, 512 for every weight format; the other rows are compared where they stand
alone too. The same for a whole phase: norm, quantized rows, two products, activation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.kernels import library
from octavo.ops.quantize import act_row_bytes
from octavo.quantization.panels import LAYOUTS
from tests.ops.node_world import (
    KERNELS,
    VARIANTS,
    Floats,
    World,
    act_span,
    immediate,
    linear,
    norm_op,
    one,
    packed_weight,
    skip_unbuilt,
    store_op,
    whole_k,
    world,
)

MANY = (2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 48, 512)
variants = pytest.mark.parametrize("isa", VARIANTS)


def product(at: World, layout: str, packed: NDArray[np.uint8], acts: NDArray[Any], k: int, n: int) -> Floats:
    """Rows of activations x a packed weight [N, K]."""
    at.forget()
    rows = len(acts)
    out, ld, view = at.floats(rows, n)
    groups = [(n, [(at.put(packed), layout)], [store_op(out, ld)])]
    at.run("linear", linear(at.put(acts), k, span=act_span(layout), groups=groups), rows)
    return view[:rows, :n].copy()


def rows_of(layout: str, rows: int, k: int, seed: int) -> NDArray[Any]:
    x = np.random.default_rng(seed).standard_normal((rows, k)).astype(np.float32)
    x[1::3, 7::251] *= 40  # wide super-blocks
    span = act_span(layout)
    return library.oracle_quantize(x, span) if span else x


@variants
@pytest.mark.parametrize("layout", KERNELS)
def test_one_row_equals_row_0_of_many(isa: str, layout: str) -> None:
    skip_unbuilt(isa, layout)
    for k, n in ((whole_k(layout, 96), 70), (whole_k(layout, 576), 192)):
        packed = packed_weight(layout, n, k, np.random.default_rng(k))
        acts = rows_of(layout, max(MANY), k, n)
        alone = product(world(isa), layout, packed, acts[:1], k, n)
        for rows in MANY:
            found = product(world(isa), layout, packed, acts[:rows], k, n)
            np.testing.assert_array_equal(found[:1].view(np.uint32), alone.view(np.uint32), err_msg=f"{rows} rows")


@variants
@pytest.mark.parametrize("layout", KERNELS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), n=st.sampled_from([1, 31, 33, 96]))
def test_any_row_in_any_company(isa: str, layout: str, seed: int, rows: int, n: int) -> None:
    """Rows picked at random, in another order, with 1 and 3 threads."""
    skip_unbuilt(isa, layout)
    random, k = np.random.default_rng(seed), whole_k(layout, 64)
    packed, acts = packed_weight(layout, n, k, random), rows_of(layout, 40, k, seed)
    every = product(world(isa), layout, packed, acts, k, n)
    picked = random.permutation(40)[:rows]
    for threads in (1, 3):
        found = product(world(isa, threads), layout, packed, acts[picked], k, n)
        np.testing.assert_array_equal(found.view(np.uint32), every[picked].view(np.uint32))


def mlp(at: World, layout: str, x: Floats, weights: Sequence[NDArray[Any]], share: int) -> NDArray[np.uint8]:
    """The first half of an MLP as one phase: norm, quantize, gate and up, silu_mul, quantize; the quantized rows."""
    at.forget()
    (rows, k), n, (gain, gate, up) = x.shape, 96, weights
    acts, _ = at.room(rows * max(act_row_bytes(k, 256), 4 * k))
    out, view = at.room(rows * act_row_bytes(n))
    pair = [(at.put(gate), layout), (at.put(up), layout)]
    groups = [(n, pair, [one("tile.silu_mul"), one("tile.quantize", out, immediate(n), immediate(32))])]
    prologue = [norm_op(at.put(gain), 1e-5)]
    about: dict[str, Any] = {"span": act_span(layout), "src": (at.put(x), k), "prologue": prologue, "share": share}
    at.run("linear", linear(acts, k, groups=groups, **about), rows)
    return view.reshape(rows, -1)[:, : n + n // 32 * 8 + n // 16 * 4].copy()


@variants
@pytest.mark.parametrize("layout", KERNELS)
def test_a_whole_phase(isa: str, layout: str) -> None:
    """Prologue for each thread (share 512) or once by rows (share 0); few rows join units to wider tiles."""
    skip_unbuilt(isa, layout)
    random, k = np.random.default_rng(5), whole_k(layout, 64)
    x = random.standard_normal((48, k)).astype(np.float32)
    gain = random.standard_normal(k).astype(np.float32)
    weights = (gain, packed_weight(layout, 96, k, random), packed_weight(layout, 96, k, random))
    every = mlp(world(isa), layout, x, weights, 16)
    for rows in (1, 2, 7, 16, 17, 48):
        for threads in (1, 2, 3):
            for share in (0, 512):
                found = mlp(world(isa, threads), layout, x[:rows], weights, share)
                np.testing.assert_array_equal(found, every[:rows], err_msg=f"{rows} rows, {threads} threads")


def test_fused_variants_have_equal_bits() -> None:
    """avx2, avx512 and avx512bf16 give equal products; portable, which has no fma, is allowed its own."""
    fused = [isa for isa in VARIANTS if isa != "portable"]
    for layout in LAYOUTS:
        k = whole_k(layout, 96)
        packed, acts = packed_weight(layout, 70, k, np.random.default_rng(3)), rows_of(layout, 40, k, 3)
        found = [product(world(isa), layout, packed, acts, k, 70) for isa in fused]
        for other in found[1:]:
            np.testing.assert_array_equal(other.view(np.uint32), found[0].view(np.uint32), err_msg=layout)
