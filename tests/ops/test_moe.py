"""A mixture of experts alone, on every variant: routes by their definition, products and sums bit for bit.

What the kernel leaves between its stages is read and held against the oracle: routes, products, what joins them,
quantized rows, the sum over experts. A row has the same bits alone and in any company, by 1, 2 and 3 threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo.execution.check import ACT_GROUP
from octavo.kernels import library
from octavo.kernels.reference import activation
from octavo.kernels.reference.moe import moe as reference
from octavo.kernels.reference.moe import route
from octavo.ops.moe import GATINGS, MOE, route_error, routes
from octavo.ops.quantize import act_bytes, act_row_bytes
from octavo.quantization.panels import unpack
from tests.ops.node_world import (
    VARIANTS,
    Floats,
    Word,
    World,
    act_span,
    dimension,
    float_bits,
    immediate,
    layout_of,
    one,
    packed_weight,
    skip_unbuilt,
    store_op,
    whole_k,
    world,
)

variants = pytest.mark.parametrize("isa", VARIANTS)
FLOAT = "f32.p32.k1.1"
ALPHA, LIMIT = 1.702, 7.0
NOTHING = immediate(0)


@dataclass
class Mixture:
    """Random experts and logits. layouts: of gate, up, down. share: rows up to which every thread routes for itself."""

    rows: int
    layouts: tuple[str, str, str] = (FLOAT, FLOAT, FLOAT)
    width: int = 64
    inner: int = 96
    experts: int = 5
    chosen: int = 2
    gating: str = "silu_mul"
    over_all: bool = False
    biased: bool = False
    block: int = 16
    share: int = 16
    seed: int = 0
    logits: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def __post_init__(self) -> None:
        self.width, self.inner = whole_k(self.layouts[0], self.width), whole_k(self.layouts[2], self.inner)
        random = self.random = np.random.default_rng(self.seed)
        shapes = [(self.inner, self.width), (self.inner, self.width), (self.width, self.inner)]
        self.weights = [
            [packed_weight(layout, *shape, random) for _ in range(self.experts)]
            for layout, shape in zip(self.layouts, shapes, strict=True)
        ]
        scale = [0.3 if layout == FLOAT else 1.0 for layout in self.layouts]
        for some, factor in zip(self.weights, scale, strict=True):
            for each in some if factor != 1.0 else ():
                each.view(np.float32)[:] *= factor
        self.biases = [random.standard_normal((self.experts, n)).astype(np.float32) for n, _ in shapes]
        self.x = random.standard_normal((self.rows, self.width)).astype(np.float32)
        if not self.logits.size:
            self.logits = random.standard_normal((self.rows, self.experts)).astype(np.float32)
        self.kinds = [layout_of(layout).k_block > 1 for layout in self.layouts]

    def span(self, which: int) -> int:
        """Values that share a scale in the rows of a weight; 0: floats."""
        return act_span(self.layouts[which])

    @cached_property
    def dense(self) -> list[Floats]:
        """[experts, n, k] of each."""
        shapes = [(self.inner, self.width), (self.inner, self.width), (self.width, self.inner)]
        return [
            np.stack([unpack(layout_of(layout), each, *shape) for each in some])
            for layout, some, shape in zip(self.layouts, self.weights, shapes, strict=True)
        ]

    @property
    def attrs(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen, "over_all": self.over_all, "gating": self.gating, "alpha": ALPHA, "limit": LIMIT,
            "span": self.span(2), "mixture": 0,
        }  # fmt: skip


@dataclass
class Found:
    """What a run left: the sum, ids and weights of the routes, the number of experts with rows, what is between."""

    out: Floats
    ids: NDArray[np.int32]
    weights: Floats
    active: int
    inner: NDArray[Any]


def run(at: World, m: Mixture, rows: slice = slice(None), *, only: int | None = None, joined: bool = False) -> Found:
    """The node. only: the products of that weight of the first stage are stored; joined: what joins both is."""
    at.forget()
    x, logits = m.x[rows], np.ascontiguousarray(m.logits[rows])
    count, stores = len(x), only is not None or joined
    acts = library.oracle_quantize(x, m.span(0)) if m.kinds[0] else x
    out, ld, view = at.floats(count, m.width)
    pairs = count * m.chosen
    room, routed = at.room(8 * pairs + 64)
    active, seen = at.room(8)
    inner_bytes = 4 * m.inner if stores or not m.kinds[2] else act_row_bytes(m.inner, m.span(2))
    between, inner = at.room(max(64, pairs * inner_bytes))
    gating = [float_bits(ALPHA), float_bits(LIMIT)] if m.gating == "clamped_swiglu" else []
    floats = inner_bytes == 4 * m.inner
    store = (
        store_op(between, m.inner)
        if floats
        else one("tile.quantize", between, immediate(m.inner), immediate(m.span(2)))
    )
    ops = [store] if only is not None else [one(f"tile.{m.gating}", *gating), store]
    first = [only] if only is not None else [0, 1]
    args: list[Word | str] = [dimension(1, "T"), at.put(logits), *map(immediate, (m.experts, m.experts, m.chosen))]
    args += [immediate(int(m.over_all)), immediate(m.share), room, immediate(m.block), active]
    args += [at.put(acts), *map(immediate, (m.span(0), m.width, m.inner)), *stack(at, m, first)]
    args += [immediate(len(ops)), *(arg for op in ops for arg in op)]
    args += [between, *map(immediate, (m.span(2), m.inner, m.width)), *stack(at, m, [] if stores else [2])]
    args += [immediate(1), *store_op(out, ld)]
    at.run("moe", args, count)
    assert np.isnan(view[count:]).all() and np.isnan(view[:, m.width :]).all()
    ids = routed[: 4 * pairs].view(np.int32).reshape(count, m.chosen).copy()
    weights = routed[4 * pairs : 8 * pairs].view(np.float32).reshape(count, m.chosen).copy()
    rows_of_inner = inner[: pairs * inner_bytes].reshape(pairs, inner_bytes).copy()
    return Found(view[:count, : m.width].copy(), ids, weights, int(seen.view(np.int64)[0]), rows_of_inner)


def stack(at: World, m: Mixture, which: Sequence[int]) -> list[Word | str]:
    args: list[Word | str] = [immediate(len(which))]
    for i in which:
        args += [at.put(np.concatenate(m.weights[i])), f"format.{m.layouts[i]}"]
        args.append(at.put(m.biases[i]) if m.biased else NOTHING)
    return args


def pairs_of(ids: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """(expert, row, place in the row) in the order of experts, rows ascending."""
    return sorted((int(expert), row, place) for row, some in enumerate(ids) for place, expert in enumerate(some))


def products(isa: str, m: Mixture, which: int, acts: NDArray[Any], experts: Sequence[int]) -> Floats:
    """The oracle's product and bias of each row with its expert's weight."""
    n, k = m.dense[which].shape[1:]
    found = np.zeros((len(acts), n), np.float32)
    for i, expert in enumerate(experts):
        row = library.oracle_linear(
            m.layouts[which], m.weights[which][expert], k, np.ascontiguousarray(acts[i : i + 1]).view(np.uint8), rows=1,
            panels=-(-n // 32), fused=isa != "portable",
        )[0, :n]  # fmt: skip
        found[i] = row + m.biases[which][expert] if m.biased else row
    return found


def check(isa: str, m: Mixture, threads: int = 2) -> Found:
    """Every stage against the oracle on what the stage before it left."""
    at = world(isa, threads)
    m.share = 0  # routes are then in memory
    found = run(at, m)
    ids, weights = routes(m.attrs, m.logits)
    np.testing.assert_array_equal(found.ids, ids)
    assert np.abs(found.weights - weights).max(initial=0.0) <= route_error(m.attrs, m.logits)
    assert found.active == len(np.unique(ids))
    order = pairs_of(ids)
    experts = [expert for expert, _, _ in order]
    acts = (library.oracle_quantize(m.x, m.span(0)) if m.kinds[0] else m.x)[[row for _, row, _ in order]]
    both = []
    for which in (0, 1):
        wanted = products(isa, m, which, acts, experts)
        both.append(run(at, m, only=which).inner.view(np.float32))
        np.testing.assert_array_equal(both[-1], wanted)
    joined = run(at, m, joined=True).inner.view(np.float32)
    numbers = {"alpha": ALPHA, "limit": LIMIT} if m.gating == "clamped_swiglu" else {}
    wanted = getattr(activation, m.gating)(*map(torch.from_numpy, both), **numbers).numpy()
    assert (np.abs(joined - wanted) <= GATINGS[m.gating].bound(m.attrs, *both)).all()
    inner: NDArray[Any] = joined
    if m.kinds[2]:
        inner = library.oracle_quantize(joined, m.span(2))
        np.testing.assert_array_equal(
            found.inner[:, : act_bytes(m.inner, m.span(2))], inner[:, : act_bytes(m.inner, m.span(2))]
        )
    y = products(isa, m, 2, inner, experts)
    out = np.zeros_like(found.out)
    for i, (_, row, place) in enumerate(order):
        out[row] += y[i] * found.weights[row, place]
    np.testing.assert_array_equal(found.out, out)
    return found


@variants
@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("rows", [0, 1, 3, 37])
def test_floats(isa: str, gating: str, rows: int) -> None:
    biased = gating == "clamped_swiglu"
    check(isa, Mixture(rows, gating=gating, biased=biased, inner=70, width=72, over_all=rows == 3))


@variants
@pytest.mark.parametrize(
    "layouts",
    [
        ("q8_0.p32.k4.1",) * 3,
        ("mxfp4.p32.k4.1",) * 3,
        ("q4_k.p32.k4.1", "q4_k.p32.k4.1", "q6_k.p32.k4.1"),
        ("q4_0.p32.k4.1", "q5_1.p32.k4.1", "iq4_nl.p32.k4.1"),
        ("iq2_xs.p32.k4.1", "tq2_0.p32.k4.1", "q8_0.p32.k4.1"),
        ("q4_1.p32.k4.1", "int8.p32.k4.1", "bf16.p32.k1.1"),
        ("f16.p32.k1.1", "bf16.p32.k1.1", "q5_k.p32.k4.1"),
        ("q4_k.p32.k4.1.s256", "q5_k.p32.k4.1.s256", "q6_k.p32.k4.1.s256"),
    ],
    ids="-".join,
)
def test_formats(isa: str, layouts: tuple[str, str, str]) -> None:
    for layout in layouts:
        skip_unbuilt(isa, layout)
    check(isa, Mixture(21, layouts, experts=4, gating="gelu_mul" if "bf16" in layouts[2] else "silu_mul", biased=True))


@variants
def test_every_row_takes_one_expert_and_another_gets_none(isa: str) -> None:
    logits = np.zeros((150, 6), np.float32)
    logits[:, 3], logits[:, 5] = 9, -np.inf
    logits[:, 0] = np.arange(150) % 2
    found = check(isa, Mixture(150, experts=6, block=96, logits=logits))
    assert (found.ids == [0, 3]).all()  # of equal logits the lowest id
    assert found.active == 2


@variants
def test_ties_go_to_lower_ids(isa: str) -> None:
    """Also between 0 and -0; a row of one value takes the first experts, with equal weights."""
    logits = np.array([[1, 2, 2, 2, 1], [0.0, -0.0, 0.0, -1, -0.0], [5, 5, 5, 5, 5], [-1, -2, -1, -2, -1]], np.float32)
    found = check(isa, Mixture(4, chosen=2, logits=logits))
    assert found.ids.tolist() == [[1, 2], [0, 1], [0, 1], [0, 2]]
    assert (found.weights == 0.5).all()


@variants
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (2, 2), (17, 16), (33, 17), (130, 64)])
@pytest.mark.parametrize("over_all", [False, True])
def test_counts_of_experts(isa: str, experts: int, chosen: int, over_all: bool) -> None:
    found = check(isa, Mixture(5, width=32, inner=32, experts=experts, chosen=chosen, over_all=over_all, seed=chosen))
    whole = 1.0 if not over_all or experts == chosen else found.weights.sum(axis=1)
    np.testing.assert_allclose(found.weights.sum(axis=1), whole, atol=1e-6)


@variants
def test_routes_of_numbers_that_are_none_stay_inside(isa: str) -> None:
    """Rows of NaN and infinities choose some experts, each once, by weights that are no numbers; others stay."""
    m = Mixture(6, experts=7, chosen=3)
    alone = run(world(isa), m, slice(5, 6))
    m.logits[0] = np.nan
    m.logits[1, 4] = np.nan
    m.logits[2] = -np.inf
    m.logits[3, 2] = np.inf
    m.share = 0
    found = run(world(isa), m)
    assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 7 for row in found.ids.tolist())
    assert (np.diff(found.ids, axis=1) > 0).all()
    assert np.isnan(found.weights[:4]).any(axis=1).all()
    np.testing.assert_array_equal(found.out[5:], alone.out)


@variants
@pytest.mark.parametrize("layout", [FLOAT, "q4_k.p32.k4.1", "q4_k.p32.k4.1.s256", "mxfp4.p32.k4.1"])
def test_a_row_is_the_same_in_any_company(isa: str, layout: str) -> None:
    """Alone, in runs, in blocks of any size, by 1, 2 and 3 threads, routed by each thread or by all."""
    skip_unbuilt(isa, layout)
    m = Mixture(130, (layout,) * 3, width=96, experts=9, chosen=3, gating="clamped_swiglu", biased=True)
    wanted = run(world(isa, 1), m).out
    for row in (0, 7, 129):
        np.testing.assert_array_equal(run(world(isa), m, slice(row, row + 1)).out, wanted[row : row + 1])
    for threads in (1, 2, 3):
        for rows, block, share in ((slice(0, 130), 96, 0), (slice(3, 20), 16, 16), (slice(50, 115), 33, 16)):
            m.block, m.share = block, share
            np.testing.assert_array_equal(run(world(isa, threads), m, rows).out, wanted[rows])


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_the_kernel_is_within_the_bound_of_the_reference(gating: str, quantized: bool, scale: float) -> None:
    layout = "q8_0.p32.k4.1" if quantized else FLOAT
    m = Mixture(33, (layout,) * 3, experts=6, chosen=3, gating=gating, biased=True, over_all=quantized)
    m.x *= np.float32(scale)
    found = run(world(VARIANTS[0]), m).out
    x = library.oracle_quantize(m.x, 32) if quantized else m.x
    if quantized:
        groups = x[:, : m.width // 32 * 48].copy().view(ACT_GROUP)
        x = (groups["x"] * groups["scale"][:, :, None]).reshape(len(x), -1)
    operands = [x, m.logits, *m.dense, *m.biases]
    wanted = reference(*map(torch.from_numpy, operands), **m.attrs).numpy()
    bound = MOE.bound(m.attrs, *operands, quantized=quantized)
    assert (np.abs(found.astype(np.float64) - wanted) <= bound).all()
    if not quantized:  # a hundredth off must lie outside; rows that are quantized in between may be a step apart
        assert np.median(bound / np.abs(wanted)) < 0.01


def test_the_reference_routes_by_the_definition() -> None:
    random = np.random.default_rng(5)
    logits = random.integers(-3, 4, (400, 11)).astype(np.float32)
    for chosen in (1, 4, 11):
        for over_all in (False, True):
            ids, weights = routes({"chosen": chosen, "over_all": over_all}, logits)
            found = route(torch.from_numpy(logits), chosen, over_all)
            np.testing.assert_array_equal(found[0].numpy(), ids)
            np.testing.assert_allclose(found[1].numpy(), weights, rtol=1e-6)
            for row, some in zip(logits, ids, strict=True):  # by the words of the definition
                better = sorted(range(11), key=lambda e, row=row: (-row[e], e))[:chosen]  # type: ignore[misc]
                assert some.tolist() == sorted(better)
