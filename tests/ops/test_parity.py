"""Every native op of every ISA variant against its oracle or its own bound: shapes of 0, 1, prime, ragged, large.

Products, quantized rows and what is stored must be bit-equal; norms, rotation, activation and attention stay within the
bound that the op computes. Memory beyond an output must stay as it was.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.execution.check import quantized_bytes
from octavo.kernels import library
from octavo.kernels.reference import activation, attention, embedding, norm, rope
from octavo.kernels.reference.quantize import quantize
from octavo.ops.activation import SILU_MUL
from octavo.ops.attention import ATTENTION
from octavo.ops.embedding import EMBEDDING
from octavo.ops.norm import RMS_NORM
from octavo.ops.op import EPS
from octavo.ops.quantize import act_bytes, act_row_bytes
from octavo.ops.rope import ROPE
from octavo.program.graph import StateGroup
from octavo.quantization.panels import unpack
from tests.ops.node_world import (
    KERNELS,
    SLOT_PAGES,
    SLOTS,
    VARIANTS,
    Floats,
    World,
    act_span,
    dimension,
    float_bits,
    float_panels,
    immediate,
    layout_of,
    linear,
    norm_op,
    one,
    packed_weight,
    skip_unbuilt,
    store_op,
    through,
    whole_k,
    world,
)  # fmt: skip

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 48])
COLUMNS = st.sampled_from([1, 5, 31, 32, 33, 64, 97, 160])
SCALES = st.sampled_from([1e-30, 1e-3, 1.0, 1e4])
variants = pytest.mark.parametrize("isa", VARIANTS)
few = settings(max_examples=40)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def assert_bits(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    ours, theirs = (np.ascontiguousarray(each).view(np.uint8) for each in (found, wanted))
    np.testing.assert_array_equal(ours, theirs)


def assert_within(found: Floats, wanted: Any, bound: NDArray[np.float64]) -> None:
    error = np.abs(found.astype(np.float64) - np.asarray(wanted, np.float64))
    assert found.shape == bound.shape and (error <= bound).all(), (error / bound).max()


def assert_untouched(view: Floats, rows: int, columns: int) -> None:
    assert np.isnan(view[rows:]).all() and np.isnan(view[:, columns:]).all()


def check_linear(at: World, layout: str, shape: tuple[int, int, int], seed: int, scale: float = 1.0) -> Floats:
    """A product with rows [M, K] and packed columns [N, K], bit for bit; the result."""
    at.forget()
    rows, k, n = shape
    k = whole_k(layout, k)
    span = act_span(layout)
    x = normal(seed, rows, k, scale=scale)
    x[:: max(1, rows // 2), : k // 2] = np.float32(scale)  # the largest codes side by side
    x[1::3, 7::251] *= 40  # wide super-blocks
    acts: NDArray[Any] = library.oracle_quantize(x, span) if span else x
    packed = packed_weight(layout, n, k, np.random.default_rng(seed))
    out, ld, view = at.floats(rows, n)
    groups = [(n, [(at.put(packed), layout)], [store_op(out, ld)])]
    at.run("linear", linear(at.put(acts), k, span=span, groups=groups), rows)
    panels = -(-n // 32)
    wanted = library.oracle_linear(
        layout, packed, k, acts.reshape(-1).view(np.uint8), rows=rows, panels=panels, fused=at.isa != "portable"
    )
    assert_bits(view[:rows, :n], wanted[:, :n])
    assert_untouched(view, rows, n)
    return view[:rows, :n].copy()


@variants
@pytest.mark.parametrize("layout", KERNELS)
def test_products_equal_the_oracle(isa: str, layout: str) -> None:
    skip_unbuilt(isa, layout)
    ks = [32, 64, 96, 160, 544] if layout_of(layout).k_block > 1 else [1, 2, 31, 32, 97, 160]

    @settings(max_examples=25)
    @given(SEEDS, ROWS, st.sampled_from(ks), COLUMNS, SCALES)
    def check(seed: int, rows: int, k: int, n: int, scale: float) -> None:
        check_linear(world(isa), layout, (rows, k, n), seed, scale)

    check()
    check_linear(world(isa), layout, (512, 64, 33), 1)
    check_linear(world(isa), layout, (3, 1536, 70), 2)


@variants
@few
@given(seed=SEEDS, rows=ROWS, k=st.sampled_from([1, 15, 16, 17, 32, 97, 576]), scale=SCALES)
def test_rms_norm(isa: str, seed: int, rows: int, k: int, scale: float) -> None:
    at = world(isa)
    at.forget()
    x, weight, eps = normal(seed, rows, k, scale=scale), normal(seed + 1, k), 1e-5
    wanted = norm.rms_norm(torch.from_numpy(x), torch.from_numpy(weight), eps=eps)
    source, gain = at.put(x), norm_op(at.put(weight), eps)
    found = []
    for share in (0, 512):  # once by rows, or by every thread for itself
        out, ld, view = at.floats(rows, k)
        acts = at.room((rows + 1) * k * 4)
        groups = [(k, [(at.put(float_panels(np.eye(k, dtype=np.float32))), "f32.p32.k1.1")], [store_op(out, ld)])]
        args = linear(acts[0], k, span=0, groups=groups, src=(source, k), prologue=[gain], share=share)
        at.run("linear", args, rows)
        found.append(view[:rows, :k].copy())
        assert_untouched(view, rows, k)
    assert_within(found[0], wanted, RMS_NORM.bound({"eps": eps}, x, weight))
    assert_bits(*found)


@variants
@few
@given(seed=SEEDS, rows=ROWS, k=st.sampled_from([32, 64, 96, 576, 256, 768]), scale=SCALES)
def test_quantized_rows_equal_the_oracle(isa: str, seed: int, rows: int, k: int, scale: float) -> None:
    """As a prologue and as an epilogue; ties, zeros and groups of very different size among the values."""
    at = world(isa)
    at.forget()
    x = normal(seed, rows, k, scale=scale)
    x[:, :32] *= np.random.default_rng(seed).integers(0, 2, (rows, 1)).astype(np.float32)
    ties = np.array([127, 0.5, 1.5, -2.5, -0.5, 3.5, 64, -127], np.float32)
    x[:, k // 2 : k // 2 + 8] = np.float32(scale) * ties / 127
    span = 256 if k % 256 == 0 else 32
    x[1::2, 5::251] *= 40  # wide super-blocks
    wanted = library.oracle_quantize(x, span)
    if rows and np.abs(x).max() > 1e-30:  # the reference knows no smallest size
        np.testing.assert_array_equal(quantized_bytes(quantize(torch.from_numpy(x), span)), wanted)
    used = act_bytes(k, span)
    acts, view = at.room((rows + 1) * act_row_bytes(k, span))
    at.run("linear", linear(acts, k, span=span, groups=[], src=(at.put(x), k), share=0), rows)
    assert_bits(view.reshape(rows + 1, -1)[:rows, :used], wanted[:, :used])
    acts, view = at.room((rows + 1) * act_row_bytes(k, span))
    through(at, x, [one("tile.quantize", acts, immediate(k), immediate(span))], unit=span)
    assert_bits(view.reshape(rows + 1, -1)[:rows, :used], wanted[:, :used])
    assert (view.reshape(rows + 1, -1)[rows] == 0xFF).all()


@variants
@few
@given(seed=SEEDS, rows=ROWS, n=st.sampled_from([32, 64, 96]), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_silu_mul(isa: str, seed: int, rows: int, n: int, scale: float) -> None:
    at = world(isa)
    at.forget()
    x = normal(seed, rows, 2 * n, scale=scale)
    x[:, :3] = [0.0, -200.0, 200.0]
    halves = np.eye(2 * n, dtype=np.float32)
    pair = [(at.put(float_panels(half)), "f32.p32.k1.1") for half in (halves[:n], halves[n:])]
    out, ld, view = at.floats(rows, n)
    groups = [(n, pair, [one("tile.silu_mul"), store_op(out, ld)])]
    at.run("linear", linear(at.put(x), 2 * n, span=0, groups=groups), rows)
    gate, up = x[:, :n], x[:, n:]
    wanted = activation.silu_mul(torch.from_numpy(gate), torch.from_numpy(up))
    assert_within(view[:rows, :n], wanted, SILU_MUL.bound({}, gate, up))
    assert_untouched(view, rows, n)


@variants
@few
@given(seed=SEEDS, rows=ROWS, n=COLUMNS)
def test_bias_and_add_are_exact(isa: str, seed: int, rows: int, n: int) -> None:
    at = world(isa)
    at.forget()
    x, b, residual = normal(seed, rows, n), normal(seed + 1, n), normal(seed + 2, rows, n)
    out, ld, view = at.floats(rows, n)
    through(at, x, [one("tile.bias", at.put(b)), store_op(out, ld)])
    assert_bits(view[:rows, :n], x + b)
    assert_untouched(view, rows, n)
    sums, ld, view = at.floats(rows, n)
    view[:rows, :n] = residual
    through(at, x, [one("tile.add", sums, immediate(ld), sums, immediate(ld))])
    assert_bits(view[:rows, :n], residual + x)
    assert_untouched(view, rows, n)


@variants
@few
@given(SEEDS, ROWS, st.sampled_from([(16, 16), (64, 64), (80, 80), (80, 20), (96, 32)]), st.integers(1, 3))
def test_rope(isa: str, seed: int, rows: int, sizes: tuple[int, int], heads: int) -> None:
    at, (head_dim, rotary) = world(isa), sizes
    at.forget()
    angles = np.random.default_rng(seed).uniform(-3, 3, (320, rotary // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = normal(seed, rows, heads * head_dim)
    at.rows([(1, seed % 250, rows)])
    positions = at.step["row_pos"][:rows].copy()
    out, ld, view = at.floats(rows, x.shape[1])
    turn = one("tile.rope", at.put(cos), at.put(sin), immediate(head_dim), immediate(rotary))
    through(at, x, [turn, store_op(out, ld)], unit=int(np.lcm(32, head_dim)))
    attrs = {"head_dim": head_dim, "rotary": rotary}
    wanted = rope.rope(*map(torch.from_numpy, (x, positions, cos, sin)), **attrs)
    assert_within(view[:rows, : x.shape[1]], wanted, ROPE.bound(attrs, x, positions, cos, sin))
    assert_untouched(view, rows, x.shape[1])


@variants
@pytest.mark.parametrize("layout", KERNELS)
@settings(max_examples=8)
@given(seed=SEEDS, rows=ROWS, k=st.sampled_from([32, 96, 576]), n=COLUMNS, scale=st.sampled_from([1.0, 7.25]))
def test_embedding(isa: str, layout: str, seed: int, rows: int, k: int, n: int, scale: float) -> None:
    skip_unbuilt(isa, layout)
    k = whole_k(layout, k)
    at, random = world(isa), np.random.default_rng(seed)
    at.forget()
    at.rows([(2, 11, rows)])
    ids = random.integers(0, n, rows).astype(np.int32)
    at.slots["ids"][2, 11 : 11 + rows] = ids
    packed = packed_weight(layout, n, k, random)
    out, ld, view = at.floats(rows, k)
    del ld
    args = [dimension(1, "T"), immediate(k), at.put(packed), f"format.{layout}", out, float_bits(scale), immediate(0)]
    at.run("embedding", args, rows)
    found = view.reshape(-1)[: rows * k].reshape(rows, k)
    table = unpack(layout_of(layout), packed, n, k)
    wanted = embedding.embedding(torch.from_numpy(ids), torch.from_numpy(table), scale=scale)
    assert_within(found, wanted, EMBEDDING.bound({"scale": scale}, ids, table))
    assert np.isnan(view.reshape(-1)[rows * k :]).all()


RUNS = st.tuples(st.sampled_from([0, 1, 15, 16, 33, 250, 270]), st.sampled_from([1, 2, 3, 13, 48]))
HEADS = st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (8, 2), (5, 1), (6, 1), (7, 1), (8, 1), (9, 3)])


@variants
@pytest.mark.parametrize("kv_dtype", ["bf16", "float32", "fp16", "int8"])
@settings(max_examples=20)
@given(
    SEEDS, HEADS, st.sampled_from([16, 64, 80]), st.sampled_from([0, 1, 31, 40]), st.sampled_from([0.0, 0.7, 30.0]),
    st.lists(RUNS, max_size=SLOTS),
)  # fmt: skip
def test_pages_and_attention(
    isa: str, kv_dtype: str, seed: int, heads: tuple[int, int], head_dim: int, window: int, softcap: float,
    runs: list[tuple[int, int]],
) -> None:  # fmt: skip
    """kv_write of a step's rows into filled pages, bit for bit; then attention of those rows over all of them."""
    random = np.random.default_rng(seed)
    group = StateGroup(0, "paged", heads[1], head_dim, window, 2)
    at = World(isa, group=group, kv_dtype=kv_dtype, operands=8 << 20)
    at.rows([(slot, start, count) for slot, (start, count) in enumerate(runs)], window)
    rows, width = sum(count for _, count in runs), heads[1] * head_dim
    slot, position = (at.step[name][:rows].copy() for name in ("row_slot", "row_pos"))
    where = at.slots["page"][slot, 0, position // 16], position % 16
    pools = []
    for which in (0, 1):
        pool = random.standard_normal((1 + SLOTS * SLOT_PAGES, 16, heads[1], head_dim)).astype(np.float32)
        at.pages.write(1, which, pool)
        stored = at.pages.bits(1, which)
        x = random.standard_normal((rows, width)).astype(np.float32)
        args = one("tile.kv_write", immediate(0), immediate(1), immediate(which))
        through(at, x, [args], unit=int(np.lcm(32, head_dim)))
        stored[where] = at.pages.rounded(x.reshape(rows, heads[1], head_dim))
        assert_bits(at.pages.bits(1, which), stored)
        pools.append(widened(stored))
        assert (at.pages.bits(0, which) == 0).all()
    spread = random.choice([0.1, 1.0, 6.0])  # scores from all alike to one that takes all
    q = (spread * random.standard_normal((rows, heads[0] * head_dim))).astype(np.float32)
    scale = float(np.float32(head_dim**-0.5))
    out, ld, view = at.floats(rows, q.shape[1])
    space = at.room(1 << 20)[0]
    args = [
        dimension(1, "T"), at.put(q), immediate(q.shape[1]), immediate(0), immediate(1), immediate(heads[0]),
        float_bits(scale), float_bits(softcap), immediate(0), space, immediate(1 << 20),
        immediate(1), *store_op(out, ld),
    ]  # fmt: skip
    at.run("attention", args, rows)
    lo, hi = (at.step[name][0, :rows].copy() for name in ("row_lo", "row_hi"))
    pages = at.slots["page"][:, 0, :SLOT_PAGES].copy()
    given_rows = tuple(map(torch.from_numpy, (slot, lo, hi, pages)))
    wanted = attention.attention(
        torch.from_numpy(q), *map(torch.from_numpy, pools), given_rows, head_dim=head_dim, scale=scale, softcap=softcap
    )
    attrs = {"scale": scale, "softcap": softcap}
    rounding = 2.0**-9 if isa in library.BF16_DOT and kv_dtype == "bf16" else EPS
    for row in range(rows):
        keys, values = (pool[pages[slot[row]]].reshape(-1, heads[1], head_dim)[lo[row] : hi[row]] for pool in pools)
        bound = ATTENTION.bound(
            attrs, q[row].reshape(heads[0], head_dim), keys, values, rounding=rounding, codes=kv_dtype == "int8"
        )
        assert_within(view[row, : q.shape[1]], wanted[row], bound.reshape(-1))
    assert_untouched(view, rows, q.shape[1])


def widened(stored: NDArray[Any]) -> Floats:
    """Bits of bf16, or float32 (of an int8 cache what its codes are worth) -> float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
