"""Each op's bound holds: the float32 reference is within it of the same formula in float64, over odd shapes.

The bounds are for two float32 evaluations; one that is too tight fails here, and so does one that is useless: a result
that is off by a hundredth must lie outside.
"""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.kernels.reference.activation import clamped_swiglu, gelu, gelu_mul, scale, sigmoid_mul, silu_mul, softcap
from octavo.kernels.reference.attention import attention
from octavo.kernels.reference.embedding import embedding, gather_rows
from octavo.kernels.reference.linear import linear
from octavo.kernels.reference.norm import head_norm, layer_norm, rms_norm
from octavo.kernels.reference.quantize import quantize
from octavo.kernels.reference.rope import rope
from octavo.ops.activation import CLAMPED_SWIGLU, GELU, GELU_MUL, SCALE, SIGMOID_MUL, SILU_MUL, SOFTCAP
from octavo.ops.attention import ATTENTION
from octavo.ops.embedding import EMBEDDING, GATHER_ROWS
from octavo.ops.linear import LINEAR
from octavo.ops.norm import HEAD_NORM, LAYER_NORM, RMS_NORM
from octavo.ops.rope import ROPE

Floats = NDArray[np.float32]
SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.sampled_from([0, 1, 2, 7])
SCALES = st.sampled_from([1e-6, 1.0, 30.0])


def normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> Floats:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def within(found: torch.Tensor, exact: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    assert found.shape == exact.shape == bound.shape
    assert (np.abs(found.numpy().astype(np.float64) - exact) <= bound).all()
    sharp = bound < 0.004 * np.abs(exact)  # elsewhere terms cancel, and an error of 1 % of the result is allowed
    if sharp.any():
        assert not (np.abs(found.numpy() * 1.01 - exact) <= bound).all()


@given(SEEDS, ROWS, st.sampled_from([1, 31, 97, 576]), SCALES)
def test_rms_norm(seed: int, rows: int, width: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x, w = normal(random, rows, width, scale=scale), normal(random, width)
    exact = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * w
    found = rms_norm(torch.from_numpy(x), torch.from_numpy(w), eps=1e-5)
    within(found, exact, RMS_NORM.bound({"eps": 1e-5}, x, w))


@given(SEEDS, ROWS, st.sampled_from([(16, 3), (80, 1), (128, 2)]), SCALES)
def test_head_norm(seed: int, rows: int, heads: tuple[int, int], scale: float) -> None:
    random, (size, count) = np.random.default_rng(seed), heads
    x, w = normal(random, rows, size * count, scale=scale), normal(random, size)
    split = x.astype(np.float64).reshape(rows, count, size)
    exact = split / np.sqrt((split**2).mean(-1, keepdims=True) + 1e-6) * w
    found = head_norm(torch.from_numpy(x), torch.from_numpy(w), eps=1e-6, head_dim=size)
    within(found, exact.reshape(x.shape), HEAD_NORM.bound({"eps": 1e-6}, x, w))


@given(SEEDS, ROWS, st.sampled_from([1, 31, 97, 576]), SCALES, st.sampled_from([0.0, 3.0]))
def test_layer_norm(seed: int, rows: int, width: int, scale: float, offset: float) -> None:
    random = np.random.default_rng(seed)
    x, w, b = normal(random, rows, width, scale=scale), normal(random, width), normal(random, width)
    x += np.float32(offset * scale)  # the mean cancels
    apart = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5) * w + b
    found = layer_norm(*map(torch.from_numpy, (x, w, b)), eps=1e-5)
    within(found, exact, LAYER_NORM.bound({"eps": 1e-5}, x, w, b))


@given(SEEDS, ROWS, st.sampled_from([1, 32, 97, 576]), st.sampled_from([1, 5, 33]), SCALES)
def test_linear(seed: int, rows: int, k: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x, w = normal(random, rows, k, scale=scale), normal(random, n, k)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    bound = LINEAR.bound({}, x, w)
    within(linear(torch.from_numpy(x), torch.from_numpy(w)), exact, bound)
    assert (bound <= LINEAR.bound({}, x, w, quantized=True)).all()


@given(SEEDS, ROWS, st.sampled_from([(16, 16), (64, 64), (80, 20), (96, 96)]))
def test_rope(seed: int, rows: int, heads: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    head_dim, rotary = heads
    x = normal(random, rows, 3 * head_dim)
    positions = random.integers(0, 50, rows).astype(np.int32)
    angles = random.uniform(-3, 3, (50, rotary // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    exact = x.astype(np.float64).reshape(rows, 3, head_dim).copy()
    turned = (exact[..., : rotary // 2] + 1j * exact[..., rotary // 2 : rotary]) * (
        cos.astype(np.float64)[positions] + 1j * sin.astype(np.float64)[positions]
    )[:, None, :]
    exact[..., : rotary // 2], exact[..., rotary // 2 : rotary] = turned.real, turned.imag
    attrs = {"head_dim": head_dim, "rotary": rotary}
    found = rope(*map(torch.from_numpy, (x, positions, cos, sin)), **attrs)
    bound = ROPE.bound(attrs, x, positions, cos, sin)
    within(found, exact.reshape(x.shape), bound)
    assert (bound.reshape(rows, 3, head_dim)[..., rotary:] == 0).all()


@given(SEEDS, ROWS, st.sampled_from([1, 33, 128]), st.sampled_from([1.0, 40.0]))
def test_silu_mul(seed: int, rows: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    gate, up = normal(random, rows, n, scale=scale), normal(random, rows, n)
    g = gate.astype(np.float64)
    exact = g * np.exp(-np.logaddexp(0, -g)) * up
    within(silu_mul(torch.from_numpy(gate), torch.from_numpy(up)), exact, SILU_MUL.bound({}, gate, up))


@given(SEEDS, ROWS, st.sampled_from([1, 33, 128]), st.sampled_from([1.0, 40.0]))
def test_sigmoid_mul(seed: int, rows: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x, gate = normal(random, rows, n), normal(random, rows, 1, scale=scale)
    exact = x * np.exp(-np.logaddexp(0, -gate.astype(np.float64)))
    found = sigmoid_mul(torch.from_numpy(x), torch.from_numpy(gate))
    within(found, exact, SIGMOID_MUL.bound({}, x, gate))


@given(SEEDS, ROWS, st.sampled_from([1, 33, 128]), st.sampled_from([1e-3, 1.0, 40.0]))
def test_clamped_swiglu(seed: int, rows: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    gate, up = normal(random, rows, n, scale=scale), normal(random, rows, n, scale=scale)
    attrs = {"alpha": 1.702, "limit": 7.0}
    g, u = np.minimum(gate.astype(np.float64), 7), np.clip(up.astype(np.float64), -7, 7)
    exact = g * np.exp(-np.logaddexp(0, -1.702 * g)) * (u + 1)
    found = clamped_swiglu(torch.from_numpy(gate), torch.from_numpy(up), **attrs)
    within(found, exact, CLAMPED_SWIGLU.bound(attrs, gate, up))


@given(SEEDS, ROWS, st.sampled_from([1, 33, 128]), st.sampled_from([1e-6, 1.0, 6.0, 40.0]))
def test_gelu_and_its_product(seed: int, rows: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    gate, up = normal(random, rows, n, scale=scale), normal(random, rows, n)
    g = gate.astype(np.float64)
    exact = g * np.exp(-np.logaddexp(0, -2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
    within(gelu(torch.from_numpy(gate)), exact, GELU.bound({}, gate))
    within(gelu_mul(torch.from_numpy(gate), torch.from_numpy(up)), exact * up, GELU_MUL.bound({}, gate, up))
    ours, theirs = gelu(torch.from_numpy(gate)), torch.nn.functional.gelu(torch.from_numpy(gate), approximate="tanh")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(SEEDS, ROWS, st.sampled_from([1e-3, 1.0, 100.0]), st.sampled_from([0.5, 30.0]))
def test_softcap_and_scale(seed: int, rows: int, spread: float, cap: float) -> None:
    x = normal(np.random.default_rng(seed), rows, 33, scale=spread)
    exact = cap * np.tanh(x.astype(np.float64) / cap)
    assert (np.abs(softcap(torch.from_numpy(x), cap=cap).numpy() - exact) <= SOFTCAP.bound({"cap": cap}, x)).all()
    assert (scale(torch.from_numpy(x), factor=0.25).numpy() == x * np.float32(0.25)).all()
    assert (SCALE.bound({"factor": 0.25}, x) == 0).all()


@given(SEEDS, st.sampled_from([1, 16, 31, 70]), st.sampled_from([(4, 4), (6, 2), (7, 1)]), SCALES)
def test_attention(seed: int, keys: int, heads: tuple[int, int], scale: float) -> None:
    random = np.random.default_rng(seed)
    (q_heads, kv_heads), head_dim = heads, 16
    pages = -(-keys // 16)
    q = normal(random, 1, q_heads * head_dim, scale=scale)
    k, v = (normal(random, 1 + pages, 16, kv_heads, head_dim) for _ in range(2))
    rows = (np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([keys], np.int32))
    page = 1 + random.permutation(pages).astype(np.int32)[None]
    attrs = {"scale": head_dim**-0.5}
    found = attention(
        torch.from_numpy(q), torch.from_numpy(k), torch.from_numpy(v),
        tuple(map(torch.from_numpy, (*rows, page))), head_dim=head_dim, scale=attrs["scale"],
    )  # fmt: skip
    seen_k, seen_v = (pool[page[0]].reshape(-1, kv_heads, head_dim)[:keys] for pool in (k, v))
    queries = q.reshape(q_heads, head_dim)
    repeated_k, repeated_v = (np.repeat(x.astype(np.float64), q_heads // kv_heads, axis=1) for x in (seen_k, seen_v))
    scores = np.einsum("hd,khd->hk", queries.astype(np.float64), repeated_k) * attrs["scale"]
    weights = np.exp(scores - scores.max(1, keepdims=True))
    exact = np.einsum("hk,khd->hd", weights / weights.sum(1, keepdims=True), repeated_v)
    bound = ATTENTION.bound(attrs, queries, seen_k, seen_v)
    assert (np.abs(found.numpy().reshape(exact.shape) - exact) <= bound).all()
    assert bound.max() < 1e-3 * max(1.0, scale)


def test_a_row_that_sees_nothing_is_zero() -> None:
    pool = torch.full((2, 16, 1, 8), torch.nan)
    rows = tuple(torch.tensor(x, dtype=torch.int32) for x in ([0], [3], [3], [[1]]))
    assert attention(torch.ones(1, 8), pool, torch.zeros(2, 16, 1, 8), rows, head_dim=8, scale=1.0).eq(0).all()


def test_keys_outside_the_interval_do_not_matter() -> None:
    random = np.random.default_rng(1)
    q, k, v = (torch.from_numpy(normal(random, *shape)) for shape in ((2, 16), (3, 16, 1, 8), (3, 16, 1, 8)))
    rows = tuple(torch.tensor(x, dtype=torch.int32) for x in ([0, 0], [2, 5], [20, 9], [[1, 2]]))
    before = attention(q, k, v, rows, head_dim=8, scale=0.3)
    k[1, :2], v[1, :2], k[2, 4:], v[0] = 1e9, 1e9, -1e9, torch.nan
    assert torch.equal(attention(q, k, v, rows, head_dim=8, scale=0.3), before)


@given(SEEDS, st.integers(0, 5))
def test_embedding_and_gather(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    table, ids = normal(random, 10, 33), random.integers(0, 10, rows).astype(np.int32)
    found = embedding(torch.from_numpy(ids), torch.from_numpy(table), scale=7.3)
    exact = table[ids].astype(np.float64) * 7.3
    assert (np.abs(found.numpy() - exact) <= EMBEDDING.bound({"scale": 7.3}, ids, table)).all()
    assert torch.equal(gather_rows(torch.from_numpy(table), torch.from_numpy(ids)), torch.from_numpy(table[ids]))
    assert GATHER_ROWS.bound({}, table, ids).shape == (rows, 33)


@given(SEEDS, ROWS, st.sampled_from([32, 96, 576]), SCALES)
def test_quantized_rows(seed: int, rows: int, k: int, scale: float) -> None:
    """Against the definition of native/kernel.h in numpy float32, group by group."""
    random = np.random.default_rng(seed)
    x = normal(random, rows, k, scale=scale)
    x[:, :32] *= random.integers(0, 2, (rows, 1)).astype(np.float32)
    found = quantize(torch.from_numpy(x), 32)
    for row in range(rows):
        for group in range(k // 32):
            values = x[row, 32 * group : 32 * group + 32]
            largest = np.abs(values).max()
            factor = np.float32(127) / largest if largest > 0 else np.float32(0)
            codes = found.x[row, 32 * group : 32 * group + 32].numpy()
            np.testing.assert_array_equal(codes, np.rint(values * factor).astype(np.int8))
            assert found.scale[row, group].item() == largest / np.float32(127)
    difference = np.abs(found.dequantize().numpy() - x)
    assert (difference <= 0.5001 * np.repeat(found.scale.numpy(), 32, axis=1) + 1e-30).all()


@given(
    SEEDS,
    st.integers(1, 9),
    st.sampled_from([256, 768]),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from([1, 10, 1000]),
)
def test_wide_rows_keep_their_rests(seed: int, rows: int, k: int, scale: float, outlier: int) -> None:
    """Wide where 2 max^2 exceeds the sum of the squares of the maxima of groups, and then 128 times as exact."""
    x = normal(np.random.default_rng(seed), rows, k, scale=scale)
    x[::2, 3::256] *= outlier
    found = quantize(torch.from_numpy(x), 256)
    assert found.rests is not None
    maxima = np.abs(x).reshape(rows, -1, 8, 32).max(axis=3).astype(np.float64)
    excess = 2 * maxima.max(axis=2) ** 2 / (maxima**2).sum(axis=2)
    wide = found.rests.scale.numpy().reshape(rows, -1, 8)[:, :, 0] > 0
    clear = np.abs(excess - 1) > 1e-5
    np.testing.assert_array_equal(wide[clear], (excess > 1)[clear])
    assert not found.rests.x.numpy().reshape(rows, -1, 256)[~wide].any()
    steps = found.scale.numpy().reshape(rows, -1, 8)[:, :, 0] / np.where(wide, 128, 1)
    difference = np.abs(found.dequantize().numpy() - x).reshape(rows, -1, 256)
    assert (difference <= 0.501 * steps[:, :, None] + 1e-6 * maxima.max(axis=2)[:, :, None]).all()


def test_scores_are_capped_and_sinks_take_weight() -> None:
    random = np.random.default_rng(2)
    q, k, v = (torch.from_numpy(normal(random, *shape)) for shape in ((1, 16), (2, 16, 1, 8), (2, 16, 1, 8)))
    rows = tuple(torch.tensor(x, dtype=torch.int32) for x in ([0], [0], [3], [[1]]))
    found = attention(q, k, v, rows, head_dim=8, scale=1.0, softcap=0.5, sinks=torch.tensor([1.0, -2.0]))
    scores = 0.5 * torch.tanh(torch.einsum("hd,kd->hk", q.view(2, 8), k[1, :3, 0]) / 0.5)
    weights = torch.softmax(torch.cat((scores, torch.tensor([[1.0], [-2.0]])), dim=1), dim=1)[:, :3]
    torch.testing.assert_close(found.view(2, 8), weights @ v[1, :3, 0])
