"""Chains of samplers: every sampler against its definition, alone, in any order and in distribution."""

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
from octavo.kernels.reference import sample_filters as filters
from octavo.kernels.reference.sample_filters import Parameters
from octavo.sampling_params import DEFAULT_ORDER, SAMPLERS
from tests.ops.sampler_node import RESULTS
from tests.ops.test_sample import EDGE, Logits, chi_square_bound, node, peaked

# Bounds that float32 weights may see otherwise than float64 ones; the first are at most 1.
SHARES = ("top_p", "min_p", "typical_p", "xtc_threshold")
OTHERS = ("top_n_sigma", "mu", "temperature")
PICK = ("pick",)
Kept = npt.NDArray[np.bool_]


def decided(logits: Logits, row: Parameters) -> tuple[reference.Sampled, bool]:
    """What the definition says, and whether it still says so with the bounds and the point moved by EDGE."""
    want = reference.sample_row(logits, row)
    if row.temperature == 0 or want.status:
        return want, True
    moved = []
    for by in (1 - EDGE, 1 + EDGE):
        bounds = {name: getattr(row, name) * by for name in OTHERS}
        bounds |= {name: min(1.0, getattr(row, name) * by) for name in SHARES}
        moved.append(reference.sample_row(logits, replace(row, **bounds)))
    return want, all(each.token == want.token and each.edge > 2 * EDGE for each in moved)


def check(logits: Logits, rows: list[Parameters], isa: str = "auto") -> int:
    """Every row equals its definition; the number of rows whose token was near no edge."""
    got = node(logits.shape[1], isa).sample(logits, rows)
    certain = 0
    for index, row in enumerate(rows):
        want, clear = decided(logits[index], row)
        assert got["out_status"][index] == want.status
        if clear:
            certain += 1
            assert int(got["out_token"][index]) == want.token, (index, row)
            if want.status == 0:
                assert got["out_mu"][index] == pytest.approx(want.mu, rel=1e-5, abs=1e-4)
    return certain


ALONE: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "penalties last n": {"repetition_penalty": 1.4, "presence_penalty": 0.5, "repeat_last_n": 7},
    "penalties none": {"repetition_penalty": 1.4, "repeat_last_n": 0},
    "dry": {"dry_multiplier": 0.8},
    "dry steep": {"dry_multiplier": 2.0, "dry_base": 100.0, "dry_allowed_length": 1},
    "dry last n": {"dry_multiplier": 0.8, "dry_penalty_last_n": 12, "dry_allowed_length": 1},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "top_n_sigma most": {"top_n_sigma": 5.0},
    "top_k": {"top_k": 7},
    "top_k all": {"top_k": 5000},
    "typ_p": {"typical_p": 0.6},
    "typ_p little": {"typical_p": 1e-6},
    "typ_p most": {"typical_p": 0.999},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "min_p 1": {"min_p": 1.0},
    "xtc": {"xtc_probability": 0.5},
    "xtc always": {"xtc_probability": 1.0, "xtc_threshold": 0.03},
    "xtc of all": {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    "xtc off": {"xtc_probability": 1.0, "xtc_threshold": 0.6},
    "temperature": {"temperature": 1.7},
    "temperature cold": {"temperature": 0.01},
    "temperature dynamic": {"temperature": 1.0, "dynatemp_range": 0.7},
    "temperature dynamic far": {"temperature": 0.5, "dynatemp_range": 2.0, "dynatemp_exponent": 1.6},
    "temperature flat power": {"temperature": 0.5, "dynatemp_range": 0.3, "dynatemp_exponent": 0.0},
    "mirostat": {"mu": 6.0},
    "mirostat strict": {"mu": -3.0},
    "mirostat loose": {"mu": 60.0, "mirostat_tau": 9.0, "mirostat_eta": 0.5},
    "mirostat_v2": {"mu": 4.0},
    "mirostat_v2 strict": {"mu": -2.0},
    "mirostat_v2 loose": {"mu": 100.0},
}


def chain_of(name: str) -> tuple[str, ...]:
    sampler = name.split()[0]
    return (sampler,) if sampler.startswith("mirostat") else (sampler, *PICK)


def repetitive(rng: np.random.Generator, count: int, vocab: int) -> list[int]:
    """Few ids and whole stretches again, so that penalties and DRY have something to do."""
    ids = rng.integers(0, min(vocab, 6), count).tolist()
    for _ in range(count // 8):
        at, to, length = rng.integers(0, count, 3)
        ids[to : to + length % 9] = ids[at : at + length % 9]
    return ids[:count]


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("shape", ["normal", "flat", "ties", "few"])
def test_sampler(name: str, shape: str) -> None:
    rng = np.random.default_rng(len(name))
    vocab = 1000
    logits = peaked(rng, 40, vocab, 0.3 if shape == "flat" else 3.0)
    logits = np.round(logits) if shape == "ties" else logits
    rows = []
    for k in range(40):
        ids = repetitive(rng, 20 + 2 * k, vocab)
        if "penalties" in name or "dry" in name:
            logits[k, :6] += 9
        allowed = None
        if shape == "few":  # from one survivor on
            allowed = np.zeros(vocab, bool)
            allowed[rng.integers(0, vocab, 1 + k // 8)] = allowed[k % 3] = True
        rows.append(
            Parameters(**{"ids": ids, "prompt_len": 1 + k // 4, "seed": k, "chain": chain_of(name), "allowed": allowed,
                          "breakers": np.arange(vocab) % 5 == 4} | ALONE[name])
        )  # fmt: skip
    assert check(logits, rows) >= (30 if shape == "ties" else 36)


def samples_apart(logits: Logits, by: float) -> Logits:
    """The vectors of 16 ids that a sample looks at (native/kernels/sample_narrow.h) lie lower than the others."""
    blocks, vectors = np.divmod(np.arange(logits.shape[1]) // 16, 16)
    return (logits - by * (vectors == 5 * blocks % 16)).astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "uniform", "two heaps", "apart", "rounded", "falling"])
def test_large_flat_rows(kind: str) -> None:
    """Where a sample tells where a share of the weight is reached, and where it is wrong; after other cuts, too."""
    vocab = 20_011
    rng = np.random.default_rng(7)
    logits = peaked(rng, 24, vocab, 0.5)
    if kind == "uniform":
        logits = rng.uniform(0, 1, logits.shape).astype(np.float32)
    elif kind == "two heaps":
        logits[:, rng.integers(0, vocab, vocab // 2)] -= 3
    elif kind == "apart":
        logits = samples_apart(logits, 0.7)
    elif kind == "rounded":
        logits = np.round(8 * logits) / 8
    elif kind == "falling":
        logits = -np.sort(-logits, axis=1)
    chains = [
        ("top_p", "pick"),
        ("typ_p", "pick"),
        ("temperature", "min_p", "top_p", "typ_p", "pick"),
        ("xtc", "typ_p", "temperature", "top_p", "mirostat_v2"),
        ("typ_p", "top_p", "typ_p", "min_p", "pick"),
    ]
    rows = [
        Parameters(ids=[1], prompt_len=1, seed=k, chain=chains[k % 5], top_p=[0.9, 0.3, 0.999, 0.02][k % 4],
                   typical_p=[0.2, 0.95, 0.9995][k % 3], min_p=0.05, temperature=[0.8, 1.3][k % 2], mu=14.0,
                   xtc_probability=0.5)
        for k in range(24)
    ]  # fmt: skip
    assert check(logits, rows) >= (12 if kind == "rounded" else 16)


@pytest.mark.parametrize("name", ALONE)
def test_equal_values(name: str) -> None:
    """Where nothing but the id tells ids apart."""
    vocab = 700
    logits = np.zeros((24, vocab), np.float32)
    logits[12:] = np.arange(vocab) % 3 == 0
    rows = [Parameters(**{"ids": [5, 6, 5], "prompt_len": 1, "seed": k, "chain": chain_of(name)} | ALONE[name])
            for k in range(24)]  # fmt: skip
    check(logits, rows)


@pytest.mark.parametrize("change", ["dry", "penalties"])
def test_greedy_with_changes_behind_a_filter(change: str) -> None:
    """No filter takes the most likely id away, but a penalty behind one may."""
    logits = np.zeros((1, 20), np.float32)
    logits[0, [2, 7]] = 5, 4.5
    row = Parameters(ids=[0, 0, 2, 0], prompt_len=1, temperature=0.0, chain=("top_n_sigma", change, *PICK),
                     dry_multiplier=1.0, dry_allowed_length=1, presence_penalty=1.0)  # fmt: skip
    assert reference.sample_row(logits[0], row).token == 7
    assert check(logits, [row]) == 1


@st.composite
def a_row(draw: st.DrawFn, vocab: int) -> Parameters:
    real = functools.partial(st.floats, allow_nan=False, width=32)
    ids = draw(st.lists(st.integers(0, min(vocab - 1, 4)), min_size=1, max_size=40))
    order = draw(st.just(DEFAULT_ORDER) | st.permutations(SAMPLERS))
    end = draw(st.sampled_from(("pick", "pick", "mirostat", "mirostat_v2")))
    odd = st.booleans()
    return Parameters(
        ids=ids,
        prompt_len=draw(st.integers(1, len(ids))),
        seed=draw(st.integers(0, 2**64 - 1)),
        choice=draw(st.integers(0, 127)),
        temperature=draw(st.sampled_from([0.0, 1.0]) | real(0.125, 4)),
        top_k=draw(st.just(0) | st.integers(0, vocab + 2)),
        top_p=draw(st.just(1.0) | real(2**-10, 1)),
        min_p=draw(st.just(0.0) | real(0, 1)),
        repetition_penalty=draw(st.just(1.0) | real(0.5, 2)),
        presence_penalty=draw(st.just(0.0) | real(-2, 2)),
        frequency_penalty=draw(st.just(0.0) | real(-2, 2)),
        allowed=np.array(draw(st.lists(odd, min_size=vocab, max_size=vocab))) if draw(odd) and vocab < 40 else None,
        chain=(
            *draw(st.lists(st.sampled_from(order), unique=True).map(lambda few: [n for n in order if n in few])),
            end,
        ),
        repeat_last_n=draw(st.integers(-1, 12)),
        typical_p=draw(real(2**-10, 1)),
        top_n_sigma=draw(real(2**-6, 6)),
        xtc_probability=draw(st.sampled_from([0.5, 1.0])),
        xtc_threshold=draw(real(0, 0.5)),
        dynatemp_range=draw(st.just(0.0) | real(0, 2)),
        dynatemp_exponent=draw(real(0, 3)),
        mirostat_tau=draw(real(0, 12)),
        mirostat_eta=draw(real(0, 1)),
        mu=draw(real(-5, 30)),
        dry_multiplier=draw(real(0, 3)),
        dry_base=draw(real(1, 3)),
        dry_allowed_length=draw(st.integers(1, 4)),
        dry_penalty_last_n=draw(st.integers(-1, 40)),
        breakers=np.array(draw(st.lists(odd, min_size=vocab, max_size=vocab))) if draw(odd) and vocab < 40 else None,
    )


@settings(max_examples=150)
@given(st.data(), st.sampled_from([1, 2, 15, 16, 17, 33, 255, 257, 700]), st.integers(0, 2**32), st.booleans())
def test_any_order(data: st.DataObject, vocab: int, seed: int, ties: bool) -> None:
    rows = data.draw(st.lists(a_row(vocab), min_size=1, max_size=4))
    logits = peaked(np.random.default_rng(seed), len(rows), vocab)
    check(np.round(logits) if ties else logits, rows)


@pytest.mark.parametrize(
    "name", ["typ_p", "top_n_sigma", "xtc always", "mirostat", "mirostat_v2", "temperature dynamic"]
)
def test_large_vocabulary(name: str) -> None:
    vocab = 40_007
    rng = np.random.default_rng(9)
    for shape in (peaked(rng, 8, vocab, 0.2), np.zeros((8, vocab), np.float32), peaked(rng, 8, vocab, 8.0)):
        rows = [Parameters(**{"ids": [1], "prompt_len": 1, "seed": k, "chain": chain_of(name)} | ALONE[name])
                for k in range(8)]  # fmt: skip
        check(shape, rows)


def mixed(rng: np.random.Generator, vocab: int) -> list[Parameters]:
    """64 rows with everything on, each in another order; every seventh without a chain."""
    rows = []
    for k in range(64):
        order = tuple(rng.permutation(SAMPLERS).tolist())
        rows.append(
            Parameters(
                ids=repetitive(rng, 10 + k, vocab), prompt_len=1, seed=k, temperature=[0.7, 1.0, 1.5][k % 3],
                chain=() if k % 7 == 0 else (*order, "pick") if k % 3 else (*order, "mirostat", "mirostat_v2")[:10],
                top_k=[0, 40][k % 2], top_p=0.95, min_p=0.01, typical_p=0.9, top_n_sigma=3.0, xtc_probability=0.5,
                dynatemp_range=0.3, dry_multiplier=0.8, repetition_penalty=1.1, presence_penalty=0.2, repeat_last_n=32,
                logprobs=k % 22 - 1,
            )
        )  # fmt: skip
    return rows


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
    for k in range(0, 64, 5):
        alone = node(vocab).sample(logits[k : k + 1], [rows[k]])
        for name in RESULTS:
            np.testing.assert_array_equal(alone[name][0], whole[name][k])


def test_instruction_sets_agree() -> None:
    vocab = 5003
    rng = np.random.default_rng(4)
    logits, rows = peaked(rng, 64, vocab), mixed(rng, vocab)
    variants = library.runnable_variants()
    made = [node(vocab, name, 1).sample(logits, rows) for name in variants if name != "portable"]
    for other in made[1:]:
        for name in RESULTS:
            np.testing.assert_array_equal(other[name], made[0][name])


@pytest.mark.parametrize("name", [n for n in ALONE if "penalties" not in n and "dry" not in n])
def test_distribution(name: str) -> None:
    """12,800 draws over positions, choices and seeds follow the probabilities that the definitions leave."""
    vocab, rounds = 40, 200
    logits = np.repeat(peaked(np.random.default_rng(8), 1, vocab, 1.0), 64, axis=0)
    counts = np.zeros(vocab)
    row = Parameters(**{"ids": [0], "prompt_len": 1, "chain": chain_of(name)} | ALONE[name])
    for k in range(rounds):
        rows = [replace(row, ids=[0] * (1 + j), seed=k % 20, choice=k // 20) for j in range(64)]
        counts += np.bincount(node(vocab).sample(logits, rows)["out_token"], minlength=vocab)
    expected = definition(logits[0], row) * counts.sum()
    assert (counts[expected == 0] == 0).all()
    held = expected > 0
    chi_square = ((counts - expected)[held] ** 2 / expected[held]).sum()
    assert chi_square < chi_square_bound(max(1, np.count_nonzero(held) - 1))


def definition(logits: Logits, row: Parameters) -> npt.NDArray[np.float64]:
    """Probabilities of one sampler, written once more from the papers and pull requests: sorted, plain, in float64."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    ranked = np.argsort(-x, kind="stable")
    if row.chain[0] == "xtc":
        reached = [each for each in ranked if p[each] >= row.xtc_threshold]
        without = p.copy()
        without[reached[:-1]] = 0
        return row.xtc_probability * without / without.sum() + (1 - row.xtc_probability) * p
    if row.chain[0] == "temperature":
        temperature = row.temperature
        if row.dynatemp_range:
            share = -(p * np.log(p)).sum() / math.log(len(p))
            low, high = max(0, temperature - row.dynatemp_range), temperature + row.dynatemp_range
            temperature = low + (high - low) * share**row.dynatemp_exponent
        p = np.exp((x - x.max()) / max(0.01, temperature))
        return np.asarray(p / p.sum())
    kept: list[int] = []
    surprise, entropy = -np.log(p), -(p * np.log(p)).sum()
    if row.chain[0] == "typ_p":
        for each in np.argsort(np.abs(surprise - entropy), kind="stable"):
            if p[kept].sum() < row.typical_p:
                kept.append(int(each))
    elif row.chain[0] == "top_p":
        for each in ranked:
            if p[kept].sum() < row.top_p:
                kept.append(int(each))
    else:
        keep: dict[str, Kept] = {
            "top_k": np.arange(len(p)) < row.top_k,
            "min_p": p[ranked] >= row.min_p * p.max(),
            "top_n_sigma": x[ranked] >= x.max() - row.top_n_sigma * x.std(),
            "mirostat_v2": (surprise[ranked] <= row.mu * math.log(2)) | (np.arange(len(p)) == 0),
            "mirostat": np.arange(len(p)) < zipf_count(p[ranked], row.mu),
        }
        kept = ranked[keep[row.chain[0]]].tolist()
    made = np.zeros(len(p))
    made[kept] = p[kept] / p[kept].sum()
    return made


def zipf_count(p: npt.NDArray[np.float64], mu: float) -> int:
    """k of Mirostat's first version as its authors' code has it."""
    n = min(100, len(p))
    t = [math.log((i + 2) / (i + 1)) for i in range(n - 1)]
    b = [math.log(p[i] / p[i + 1]) for i in range(n - 1)]
    s = sum(x * y for x, y in zip(t, b, strict=True)) / sum(x * x for x in t)
    e = s - 1
    return max(1, int(((e * 2**mu) / (1 - len(p) ** -e)) ** (1 / s)))


def test_dry_by_hand() -> None:
    """1 2 3 9 1 2 3 -> 9 would repeat four ids; a breaker among them ends the repetition; the prompt does not count."""
    values = np.zeros(12, np.float32)
    row = Parameters(ids=[1, 2, 3, 9, 1, 2, 3], prompt_len=0, dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=2)
    cost = values.copy()
    filters.dry(cost, row)
    assert cost[9] == -0.5 * 2.0 and np.count_nonzero(cost) == 1
    for changed in (replace(row, breakers=np.arange(12) == 2), replace(row, prompt_len=1), replace(row, prompt_len=7)):
        cost = values.copy()
        filters.dry(cost, changed)
        assert cost[9] == (-0.5 if changed.prompt_len == 1 else 0.0)
    long = Parameters(
        ids=[1] * 200, prompt_len=1, dry_multiplier=1.0, dry_base=1.0, temperature=0, chain=("dry", "pick")
    )
    logits = np.zeros((2, 300), np.float32)
    logits[:, 1] = (0.5, 1.5)
    assert node(300).sample(logits, [long, long])["out_token"].tolist() == [0, 1]


def test_mirostat_keeps_the_surprise() -> None:
    """A thousand tokens of one row: the mean surprise comes to tau."""
    logits = peaked(np.random.default_rng(1), 1, 2000, 2.0)
    for version in ("mirostat", "mirostat_v2"):
        row = Parameters(ids=[1], prompt_len=1, chain=(version,), mirostat_tau=4.0, mu=8.0)
        surprises = []
        for k in range(1000):
            got = node(2000).sample(logits, [replace(row, seed=k)])
            surprises.append(4.0 - (float(got["out_mu"][0]) - row.mu) / row.mirostat_eta)
            row = replace(row, mu=float(got["out_mu"][0]))
        assert abs(float(np.mean(surprises)) - 4.0) < 0.1
