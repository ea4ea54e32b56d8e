"""Every sampling parameter: default, range, what is refused and how, what it is kept as, and its column."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequest
from octavo.execution import layout
from octavo.sampling_params import (
    DEFAULT_ORDER,
    MAX_BAD_WORD_IDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_LOGPROBS,
    PARAMETERS,
    SAMPLER_CODES,
    SAMPLERS,
    SamplingParams,
    pack_bad_words,
)

NAMES = [each.name for each in PARAMETERS]


def test_defaults_are_those_of_vllm() -> None:
    made = SamplingParams()
    numbers = {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 16, "min_tokens": 0,
    }  # fmt: skip
    assert {name: getattr(made, name) for name in numbers} == numbers
    assert (made.seed, made.logprobs, made.prompt_logprobs, made.allowed_token_ids) == (None,) * 4
    assert (made.stop, made.stop_token_ids, made.bad_words, made.logit_bias) == ((), (), (), {})
    assert made.detokenize and made.skip_special_tokens and made.spaces_between_special_tokens
    assert not made.ignore_eos and not made.include_stop_str_in_output
    assert not made.greedy and SamplingParams(temperature=0).greedy


@pytest.mark.parametrize("name", NAMES)
def test_null_is_the_default(name: str) -> None:
    want = None if name == "max_tokens" else getattr(SamplingParams(), name)
    assert getattr(SamplingParams(**{name: None}), name) == want


REFUSED: dict[str, list[Any]] = {
    "n": [0, -1, 129, 2**31, 1.0, True, "1", 10**5000],
    "presence_penalty": [-2.01, 2.01, math.nan, math.inf, True, "0"],
    "frequency_penalty": [-2.01, 2.01, math.nan, -math.inf, 10**400],
    "repetition_penalty": [0, -1, 0.001, math.nan, math.inf],
    "temperature": [-0.1, math.nan, math.inf, 1e308, "hot", [1]],
    "top_p": [0, -0.1, 1.01, math.nan, False],
    "top_k": [-2, 2**31, 1.5, True],
    "min_p": [-0.1, 1.1, math.nan],
    "seed": [2**64, -(2**63) - 1, 1.0, "7", True],
    "stop": [[""], "", ["x"] * 17, "x" * 1025, [1], 5],
    "stop_token_ids": [[-1], [2**31], [True], "ab", 3, list(range(49)), [[1]]],
    "bad_words": [[""], ["x"] * 513, 5],
    "ignore_eos": [1, 0, "true"],
    "max_tokens": [0, -1, 2**31, 2.0, True],
    "min_tokens": [-1, 2**31, 1.0],
    "logprobs": [-1, 21, 1.0, True],
    "prompt_logprobs": [-1, 21],
    "detokenize": [1, "yes"],
    "skip_special_tokens": [0],
    "spaces_between_special_tokens": [0],
    "include_stop_str_in_output": ["no"],
    "logit_bias": [{1: 101}, {1: -101}, {-1: 0}, {"x": 0}, {1: math.nan}, {1: True}, [1], {k: 0 for k in range(1025)},
                   {"²": 1}, {2**31: 1}],
    "allowed_token_ids": [[], [-1], ["1"], 3],
    "best_of": [0, 129, 1.0, True],
    "typical_p": [0, 1.01, math.nan, True],
    "top_n_sigma": [-1.01, 101, math.nan, "1"],
    "xtc_probability": [-0.1, 1.1, math.nan],
    "xtc_threshold": [-0.1, 1.1, True],
    "dynatemp_range": [-0.1, math.inf],
    "dynatemp_exponent": [-0.1, 101, math.nan],
    "mirostat": [-1, 3, 1.0, True],
    "mirostat_tau": [-1, 101, math.nan],
    "mirostat_eta": [-0.1, 11, math.nan],
    "repeat_last_n": [-2, 2**31, 1.5],
    "dry_multiplier": [-1, math.inf],
    "dry_base": [0.9, 101, math.nan],
    "dry_allowed_length": [0, -1, 2**31, 2.5],
    "dry_penalty_last_n": [-2, 2**31],
    "dry_sequence_breakers": [[""], ["x"] * 65, 5],
    "structured_outputs": ["json", 5, [{}], True],
    "grammar_close": [1, "yes"],
    "samplers": ["top_k;magic", ["top_k", "top_k"], [1], 5, ["temp", "temperature"]],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_refusals_name_the_parameter(name: str) -> None:
    for value in REFUSED[name]:
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**{name: value})
        assert caught.value.param == name
        assert caught.value.message.startswith(f"{name} must be ")
        assert len(caught.value.message) < 250


def test_what_is_kept() -> None:
    made = SamplingParams(
        stop="end", stop_token_ids=[5, 3, 5], bad_words=["a", "b"], logit_bias={"7": 1, 2: -3.5}, top_k=-1, seed=-1,
        temperature=1e-4, allowed_token_ids=[9, 1], top_p=1, max_tokens=None, min_tokens=100,
    )  # fmt: skip
    assert (made.stop, made.stop_token_ids, made.bad_words) == (("end",), (5, 3), ("a", "b"))
    assert made.logit_bias == {2: -3.5, 7: 1.0} and all(type(each) is float for each in made.logit_bias.values())
    assert (made.top_k, made.seed, made.temperature, made.allowed_token_ids) == (0, None, 0.01, (9, 1))
    assert SamplingParams(seed=-5).seed == -5 and SamplingParams(seed=2**64 - 1).seed == 2**64 - 1


def test_combinations() -> None:
    refused = (
        ({"min_tokens": 17}, "min_tokens"),
        ({"stop": "x", "detokenize": False}, "stop"),
        ({"n": 3, "best_of": 2}, "best_of"),
    )
    for given_, param in refused:
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**given_)  # type: ignore[arg-type]
        assert caught.value.param == param


def test_vocabulary() -> None:
    SamplingParams(stop_token_ids=[99], logit_bias={99: 1.0}, allowed_token_ids=[0, 99]).check_vocabulary(100)
    for name, value in (("stop_token_ids", [100]), ("logit_bias", {100: 1.0}), ("allowed_token_ids", [3, 500])):
        with pytest.raises(InvalidRequest, match="vocabulary") as caught:
            SamplingParams(**{name: value}).check_vocabulary(100)  # type: ignore[arg-type]
        assert caught.value.param == name


def test_columns_exist() -> None:
    fields = {each.name: each for each in layout.SLOT_FIELDS}
    assert {each.column for each in PARAMETERS if each.column} <= set(fields)
    columns = SamplingParams(top_k=-1, logprobs=None).columns()
    assert columns["top_k"] == 0 and columns["logprobs"] == -1
    assert set(columns) == {each.column for each in PARAMETERS if each.scalar}
    assert all(fields[column].dims == ("N",) for column in columns)
    bounds = (MAX_TOP_LOGPROBS, MAX_LOGIT_BIAS, MAX_BAD_WORD_IDS)
    assert bounds == (layout.MAX_TOP_LOGPROBS, layout.MAX_LOGIT_BIAS, layout.MAX_BAD_WORD_IDS)
    assert MAX_STOP_TOKEN_IDS < layout.MAX_STOP_IDS


CHAINS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}, ""),
    ({"typical_p": 0.9, "temperature": 0.7, "top_k": 5, "min_p": 0.1}, "top_k temperature min_p typ_p pick"),
    ({"top_n_sigma": 1, "presence_penalty": 0.1}, "penalties top_n_sigma pick"),
    ({"top_n_sigma": -1, "xtc_probability": 0.5, "xtc_threshold": 0.6}, ""),
    ({"xtc_probability": 0.5, "dynatemp_range": 0.1}, "temperature xtc pick"),
    ({"dry_multiplier": 1, "temperature": 0, "top_k": 4, "typical_p": 0.5}, "dry pick"),
    ({"dry_multiplier": 1, "dry_penalty_last_n": 0}, ""),
    ({"mirostat": 1, "top_k": 5, "temperature": 0.5}, "temperature mirostat"),
    ({"mirostat": 2, "repetition_penalty": 1.1, "repeat_last_n": 0}, "mirostat_v2"),
    ({"mirostat": 2, "temperature": 0}, ""),
    ({"samplers": "", "temperature": 0.5, "top_k": 3}, "pick"),
    ({"samplers": "temp; top_k ;typical_p", "temperature": 0.5, "top_k": 3, "top_p": 0.1}, "temperature top_k pick"),
    ({"samplers": ["top_p", "penalties"], "top_p": 0.1, "frequency_penalty": 1, "min_p": 0.5}, "top_p penalties pick"),
    ({"samplers": ["top_p"], "top_p": 0.1, "temperature": 0, "frequency_penalty": 1}, "pick"),
]


@pytest.mark.parametrize(("given_", "names"), CHAINS)
def test_chains(given_: dict[str, Any], names: str) -> None:
    assert SamplingParams(**given_).chain() == tuple(SAMPLER_CODES[name] for name in names.split())


def test_the_longest_chain_fits() -> None:
    every = SamplingParams(
        temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, typical_p=0.5, top_n_sigma=1, xtc_probability=1,
        dry_multiplier=1, presence_penalty=1,
    )  # fmt: skip
    assert {*every.chain()} == {SAMPLER_CODES[name] for name in (*SAMPLERS, "pick")} and set(DEFAULT_ORDER) == set(
        SAMPLERS
    )
    assert len(every.chain()) < layout.SAMPLER_STEPS


def test_every_parameter_says_what_it_is() -> None:
    for each in PARAMETERS:
        assert each.meaning and each.kind.expects
        assert getattr(SamplingParams(), each.name) == each.default


def test_bad_words_are_packed() -> None:
    assert pack_bad_words([[5], [], [1, 2, 3]]) == [1, 5, 3, 1, 2, 3, 0]
    assert pack_bad_words([]) == [0]
    with pytest.raises(InvalidRequest):
        pack_bad_words([[1]] * 512)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(1, 128),
            "temperature": st.floats(0, 1000),
            "top_p": st.floats(0, 1, exclude_min=True),
            "top_k": st.integers(-1, 2**31 - 1),
            "seed": st.none() | st.integers(0, 2**64 - 1),
            "stop": st.lists(st.text(min_size=1, max_size=9), max_size=16),
            "logit_bias": st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=9),
            "allowed_token_ids": st.lists(st.integers(0, 2**31 - 1), min_size=1),
            "logprobs": st.none() | st.integers(0, 20),
        },
    )  # fmt: skip
)
def test_crosses_the_wire(values: dict[str, Any]) -> None:
    made = SamplingParams(**values)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=SamplingParams) == made
    body = json.loads(json.dumps(values))
    assert SamplingParams(**body) == made
