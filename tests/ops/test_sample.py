"""The native sampler against its definitions (kernels/reference): every parameter, ties, ranks, distributions, bits."""

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import library
from octavo.kernels.reference import sample as reference
from octavo.kernels.reference.philox import philox, uniform
from octavo.kernels.reference.sample_filters import Parameters, order
from tests.ops.sampler_node import RESULTS, SamplerNode

# Nearer to an edge than this share of the whole weight, float32 weights may decide otherwise than float64 ones: an exp
# is within 1e-7, a sum of a block within 20 roundings of 6e-8.
EDGE = 2e-6
Logits = npt.NDArray[np.float32]


@functools.cache
def node(vocab: int, isa: str = "auto", threads: int = 2) -> SamplerNode:
    return SamplerNode(vocab, isa=isa, threads=threads)


def peaked(rng: np.random.Generator, rows: int, vocab: int, scale: float = 3.0) -> Logits:
    return rng.normal(0, scale, (rows, vocab)).astype(np.float32)


def decided(logits: Logits, row: Parameters, target: int) -> tuple[reference.Sampled, bool]:
    """What the definition says, and whether it still says so with the bounds and the point moved by EDGE."""
    want = reference.sample_row(logits, row, target)
    if row.temperature == 0 or target >= 0:
        return want, True
    moved = [reference.sample_row(logits, replace(row, top_p=min(1, row.top_p * by), min_p=min(1, row.min_p * by)))
             for by in (1 - EDGE, 1 + EDGE)]  # fmt: skip
    return want, all(each.token == want.token and each.edge > 2 * EDGE for each in moved)


def check(logits: Logits, rows: list[Parameters], targets: list[int] | None = None, isa: str = "auto") -> int:
    """Every row equals its definition; the number of rows whose token was near no edge."""
    got = node(logits.shape[1], isa).sample(logits, rows, targets)
    certain = 0
    for index, row in enumerate(rows):
        want, clear = decided(logits[index], row, -1 if targets is None else targets[index])
        assert got["out_status"][index] == want.status
        token = int(got["out_token"][index])
        if clear:
            certain += 1
            assert token == want.token, (index, row)
        if row.logprobs < 0 and targets is None:
            assert got["out_rank"][index] == 0
            continue
        if want.status:
            continue
        logprobs, ranked = reference.log_softmax(logits[index]), order(logits[index])
        assert got["out_logprob"][index] == pytest.approx(logprobs[token], rel=1e-6, abs=1e-5)
        assert got["out_rank"][index] == 1 + list(ranked).index(token)
        count = len(want.top)
        assert got["out_top_id"][index].tolist() == [each for each, _ in want.top] + [-1] * (20 - count)
        assert got["out_top_logprob"][index][:count] == pytest.approx(
            [value for _, value in want.top], rel=1e-6, abs=1e-5
        )
    assert got["nonfinite"] == np.count_nonzero(got["out_status"])
    return certain


def test_philox_known_answers() -> None:
    """The vectors of philox4x32, 10 rounds, in Random123's kat_vectors."""
    full = 2**32 - 1
    assert philox(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(2**64 - 1, (full,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(0x299F31D0A4093822, pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
def test_native_philox(seed: int) -> None:
    """Equal logits turn the id into the number itself: id = floor(u * V), V a power of two."""
    vocab = 2**14
    rows = [Parameters(ids=[0] * (1 + 3 * k), prompt_len=1, seed=seed, choice=k % 5) for k in range(64)]
    got = node(vocab).sample(np.full((64, vocab), 1.25, np.float32), rows)
    assert got["out_token"].tolist() == [int(uniform(seed, len(row.ids), row.choice) * vocab) for row in rows]


ALONE: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.01},
    "top_k": {"top_k": 7},
    "top_k 1": {"top_k": 1},
    "top_k most": {"top_k": 950},
    "top_k all": {"top_k": 5000},
    "top_p": {"top_p": 0.9},
    "top_p little": {"top_p": 1e-6},
    "top_p most": {"top_p": 0.999},
    "min_p": {"min_p": 0.05},
    "min_p 1": {"min_p": 1.0},
    "top_k top_p": {"top_k": 40, "top_p": 0.8},
    "all three": {"top_k": 60, "top_p": 0.95, "min_p": 0.02, "temperature": 1.3},
    "repetition": {"repetition_penalty": 1.4},
    "repetition less": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "frequency less": {"frequency_penalty": -0.7},
    "min_tokens": {"min_known": 90, "stop_ids": tuple(range(0, 64))},
    "min_tokens reached": {"min_known": 10, "stop_ids": tuple(range(0, 64))},
    "bias": {"logit_bias": {3: 9.0, 5: -100.0, 999: 100.0}},
    "bad words": {"bad_words": [[1], [7, 8, 9], [2, 3], [4] * 80]},
    "logprobs 0": {"logprobs": 0},
    "logprobs 1": {"logprobs": 1},
    "logprobs 20": {"logprobs": 20, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_parameter(name: str, temperature: float) -> None:
    rng = np.random.default_rng(len(name))
    logits = peaked(rng, 40, 1000)
    rows = []
    for k in range(40):
        ids = rng.integers(0, 50, 2 + 2 * k)  # many come again
        if "temperature" not in ALONE[name]:
            logits[k, ids[:3]] += 6  # so that what is penalised matters
        rows.append(
            Parameters(
                **{"ids": ids.tolist(), "prompt_len": 1 + k // 2, "seed": k, "temperature": temperature} | ALONE[name]
            )
        )
    assert check(logits, rows) >= 36


def test_mask() -> None:
    rng = np.random.default_rng(0)
    logits = peaked(rng, 30, 1000)
    rows = [
        Parameters(ids=[1], prompt_len=1, seed=k, temperature=float(k % 3), allowed=rng.random(1000) < 0.3**(k % 5),
                   top_k=k % 4 * 20, top_p=1 - k % 2 * 0.3, logprobs=5)
        for k in range(30)
    ]  # fmt: skip
    assert check(logits, rows) >= 28


def test_bad_word_needs_its_start() -> None:
    logits = np.zeros((4, 300), np.float32)
    logits[:, 9] = 5
    words = [[7, 8, 9]]
    tails = ([7, 8], [8, 8], [8], [3, 7, 8])
    rows = [Parameters(ids=tail, prompt_len=1, temperature=0, bad_words=words) for tail in tails]
    assert node(300).sample(logits, rows)["out_token"].tolist() == [0, 9, 9, 0]


@st.composite
def a_row(draw: st.DrawFn, vocab: int) -> Parameters:
    real = functools.partial(st.floats, allow_nan=False, width=32)
    token = st.integers(0, vocab - 1)
    ids = draw(st.lists(token, min_size=1, max_size=40))
    odd = st.booleans()
    return Parameters(
        ids=ids,
        prompt_len=draw(st.integers(1, len(ids))),
        min_known=draw(st.integers(0, 50)),
        seed=draw(st.integers(0, 2**64 - 1)),
        choice=draw(st.integers(0, 127)),
        stop_ids=draw(st.lists(token, max_size=3)),
        temperature=draw(st.sampled_from([0.0, 1.0]) | real(0.125, 4)),
        top_k=draw(st.just(0) | st.integers(0, vocab + 2)),
        top_p=draw(st.just(1.0) | real(2**-10, 1)),
        min_p=draw(st.just(0.0) | real(0, 1)),
        repetition_penalty=draw(st.just(1.0) | real(0.5, 2)),
        presence_penalty=draw(st.just(0.0) | real(-2, 2)),
        frequency_penalty=draw(st.just(0.0) | real(-2, 2)),
        logprobs=draw(st.integers(-1, 20)),
        logit_bias=draw(st.dictionaries(token, real(-100, 100), max_size=4)),
        bad_words=draw(st.lists(st.lists(token, min_size=1, max_size=3), max_size=3)),
        allowed=np.array(draw(st.lists(odd, min_size=vocab, max_size=vocab))) if draw(odd) and vocab < 40 else None,
    )


@settings(max_examples=150)
@given(st.data(), st.sampled_from([1, 2, 15, 16, 17, 33, 255, 257, 700]), st.integers(0, 2**32), st.booleans())
def test_everything_together(data: st.DataObject, vocab: int, seed: int, ties: bool) -> None:
    rows = data.draw(st.lists(a_row(vocab), min_size=1, max_size=4))
    logits = peaked(np.random.default_rng(seed), len(rows), vocab)
    check(np.round(logits) if ties else logits, rows)


def test_ties_are_settled_by_the_id() -> None:
    """Rows of few distinct values: every bound falls among equal ones."""
    rng = np.random.default_rng(5)
    vocab = 3000
    logits = rng.integers(0, 3, (48, vocab)).astype(np.float32)
    logits[:8] = 0.5
    logits[8, 100:200] = -0.0
    rows = [
        Parameters(ids=[2], prompt_len=1, seed=k, temperature=[1.0, 0.0, 2.0][k % 3], logprobs=20,
                   top_k=[0, 1, 50, 900, 2999][k % 5], top_p=[1.0, 0.3, 0.77][k % 3])
        for k in range(48)
    ]  # fmt: skip
    assert check(logits, rows) >= 44


@pytest.mark.parametrize("shape", ["flat", "equal", "steep", "one"])
def test_large_vocabulary(shape: str) -> None:
    """Every way through top_p: few candidates, narrowing in rounds, more equal values than the list's first bound."""
    vocab = 40_007
    rng = np.random.default_rng(9)
    logits = {"flat": peaked(rng, 16, vocab, 0.2), "equal": np.zeros((16, vocab), np.float32),
              "steep": peaked(rng, 16, vocab, 8.0), "one": peaked(rng, 16, vocab, 0.01)}[shape]  # fmt: skip
    logits[:, 77] += {"one": 30, "equal": 0}.get(shape, 1)
    rows = [
        Parameters(ids=[1], prompt_len=1, seed=k, top_p=[1.0, 0.5, 0.9, 0.99][k % 4], top_k=[0, 0, 30, 20_000][k // 4],
                   min_p=[0.0, 1e-4][k % 2], temperature=[1.0, 0.7, 2.0][k % 3], logprobs=[-1, 20][k % 2])
        for k in range(16)
    ]  # fmt: skip
    assert check(logits, rows) >= (8 if shape != "equal" else 12)


def test_prompt_targets() -> None:
    logits = np.round(peaked(np.random.default_rng(1), 20, 500) * 4) / 4
    rows = [Parameters(ids=[1, 2], prompt_len=2, temperature=0, repetition_penalty=2.0) for _ in range(20)]
    check(logits, rows, targets=list(range(0, 500, 25)))
    got = node(500).sample(logits, rows, targets=[500] * 20)
    assert got["out_status"].tolist() == [2] * 20


def test_non_finite_rows_end_alone() -> None:
    logits = peaked(np.random.default_rng(2), 12, 1003)
    rows = [Parameters(ids=[1], prompt_len=1, seed=k, logprobs=3) for k in range(12)]
    clean = node(1003).sample(logits, rows)
    bad = logits.copy()
    for row, place, value in ((1, 0, np.nan), (4, 1002, np.inf), (5, 500, -np.inf), (9, 999, -np.nan)):
        bad[row, place] = value
    got = node(1003).sample(bad, rows)
    assert got["out_status"].tolist() == [0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0]
    assert got["nonfinite"] == 4
    assert (got["out_token"][got["out_status"] == 1] == -1).all()
    fine = got["out_status"] == 0
    for name in RESULTS:
        np.testing.assert_array_equal(got[name][fine], clean[name][fine])


def test_nothing_left() -> None:
    allowed = np.zeros(100, bool)
    allowed[5] = True
    rows = [Parameters(ids=[1], prompt_len=1, allowed=allowed, bad_words=[[5]], temperature=float(k)) for k in range(2)]
    assert node(100).sample(np.zeros((2, 100), np.float32), rows)["out_status"].tolist() == [2, 2]


def mixed(rng: np.random.Generator, vocab: int) -> list[Parameters]:
    return [
        Parameters(
            ids=rng.integers(0, vocab, 1 + k).tolist(), prompt_len=1, seed=k // 3, choice=k % 3, logprobs=k % 22 - 1,
            temperature=[0.0, 0.5, 1.0, 1.5][k % 4], top_k=[0, 0, 40][k % 3], top_p=[1.0, 0.9][k % 2],
            min_p=[0.0, 0.0, 0.0, 0.01][k % 4], repetition_penalty=[1.0, 1.2][k % 2], presence_penalty=k % 5 * 0.2,
        )
        for k in range(64)
    ]  # fmt: skip


def test_bits_do_not_depend_on_neighbours_or_threads() -> None:
    vocab = 5003
    rng = np.random.default_rng(3)
    logits, rows = peaked(rng, 64, vocab), mixed(rng, vocab)
    whole = node(vocab, "auto", 1).sample(logits, rows)
    for threads in (2, 3):
        shuffle = rng.permutation(64)
        again = node(vocab, "auto", threads).sample(logits[shuffle], [rows[k] for k in shuffle])
        for name in RESULTS:
            np.testing.assert_array_equal(again[name], whole[name][shuffle])
    for k in range(0, 64, 9):
        alone = node(vocab).sample(logits[k : k + 1], [rows[k]])
        for name in RESULTS:
            np.testing.assert_array_equal(alone[name][0], whole[name][k])


def test_instruction_sets_agree() -> None:
    """All sets with fma give equal bits; the portable one, which has none, the definition's tokens."""
    vocab = 5003
    rng = np.random.default_rng(4)
    logits, rows = peaked(rng, 64, vocab), mixed(rng, vocab)
    variants = library.runnable_variants()
    fused = [name for name in variants if name != "portable"]
    made = [node(vocab, name, 1).sample(logits, rows) for name in fused]
    for other in made[1:]:
        for name in RESULTS:
            np.testing.assert_array_equal(other[name], made[0][name])
    for name in variants:
        assert check(logits, rows, isa=name) >= 60


def chi_square_bound(freedom: int, deviations: float = 5.0) -> float:
    """Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + deviations * math.sqrt(part)) ** 3


@pytest.mark.parametrize("cut", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 2.0}])
def test_distribution(cut: dict[str, Any]) -> None:
    """12,800 draws over positions, choices and seeds follow the definition's probabilities."""
    vocab, rounds = 40, 200
    logits = np.repeat(peaked(np.random.default_rng(8), 1, vocab, 1.0), 64, axis=0)
    counts = np.zeros(vocab)
    for k in range(rounds):
        rows = [Parameters(ids=[0] * (1 + j), prompt_len=1, seed=k % 20, choice=k // 20, **cut) for j in range(64)]
        counts += np.bincount(node(vocab).sample(logits, rows)["out_token"], minlength=vocab)
    expected = definition(logits[0], Parameters(ids=[0], prompt_len=1, **cut)) * counts.sum()
    assert (counts[expected == 0] == 0).all()
    held = expected > 0
    chi_square = ((counts - expected)[held] ** 2 / expected[held]).sum()
    assert chi_square < chi_square_bound(np.count_nonzero(held) - 1)


def definition(logits: Logits, row: Parameters) -> npt.NDArray[np.float64]:
    """Probabilities written once more, sorted and plain."""
    weights = np.exp(logits.astype(np.float64) / row.temperature)
    ranked = np.argsort(-weights, kind="stable")
    kept = weights[ranked] >= row.min_p * weights.max()
    if row.top_k:
        kept[row.top_k :] = False
    shares = np.where(kept, weights[ranked], 0) / weights[ranked][kept].sum()
    kept &= np.cumsum(shares) - shares < row.top_p
    made = np.zeros(len(logits))
    made[ranked[kept]] = weights[ranked][kept] / weights[ranked][kept].sum()
    return made


def test_seeds_choices_and_positions_differ() -> None:
    logits = np.zeros((64, 2000), np.float32)
    first = Parameters(ids=[1] * 9, prompt_len=1, seed=11)
    by_choice = node(2000).sample(logits, [replace(first, choice=k) for k in range(64)])["out_token"]
    by_seed = node(2000).sample(logits, [replace(first, seed=k) for k in range(64)])["out_token"]
    by_place = node(2000).sample(logits, [replace(first, ids=[1] * (1 + k)) for k in range(64)])["out_token"]
    same = node(2000).sample(logits, [first] * 64)["out_token"]
    assert len(set(same)) == 1
    for made in (by_choice, by_seed, by_place):
        assert len(set(made.tolist())) > 55
