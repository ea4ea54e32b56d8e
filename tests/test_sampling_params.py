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
    MAX_BAD_WORD_IDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_LOGPROBS,
    PARAMETERS,
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
    for given_, param in (({"min_tokens": 17}, "min_tokens"), ({"stop": "x", "detokenize": False}, "stop")):
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
