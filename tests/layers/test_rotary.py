"""Rotary frequencies and magnitudes against transformers' own, tables against float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.rotary import Rotary
from octavo.program.graph import Program

CONTEXT = 131072
ORIGINAL = {"original_max_position_embeddings": 8192}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
LONG = {"long_factor": np.linspace(1, 60, 48).tolist(), "short_factor": np.linspace(1, 3, 48).tolist(), **ORIGINAL}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"factor": 4.0}),
    ("llama3", LLAMA3),
    ("llama3", {**LLAMA3, "factor": 32.0}),
    ("yarn", {"factor": 16.0, **ORIGINAL}),
    ("yarn", {"factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 0.7, **ORIGINAL}),
    ("yarn", {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False, **ORIGINAL}),
    ("yarn", {"factor": None, **ORIGINAL}),
    ("dynamic", {"factor": 4.0}),
    ("longrope", LONG),
    ("longrope", {**LONG, "attention_factor": 1.19}),
    ("longrope", {**LONG, "factor": 0.5}),
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("longest", [4096, 2 * CONTEXT])
@pytest.mark.parametrize(("kind", "parameters"), CASES)
def test_scaled_frequencies(kind: str, parameters: dict[str, Any], theta: float, longest: int) -> None:
    """Tables of `longest` rows are those of a sequence of that length; three quarters of a head turn."""
    rope = {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": 0.75, **parameters}
    config = SimpleNamespace(
        head_dim=128, hidden_size=4096, num_attention_heads=32, max_position_embeddings=CONTEXT, rope_parameters=rope,
        standardize_rope_params=lambda: None,
    )  # fmt: skip
    wanted, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=longest)
    found = Rotary(128, 96, theta, longest, {**rope, "max_position_embeddings": CONTEXT})
    assert found.magnitude == pytest.approx(magnitude, rel=1e-12)
    np.testing.assert_allclose(found.frequencies(), wanted.numpy(), rtol=5e-6)  # theirs are powers in float32


def test_tables_are_rounded_once() -> None:
    rotary = Rotary(16, 8, 10000.0, 5000, {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.5, **ORIGINAL})
    program = Program("p")
    cos, sin = rotary.tables(program)
    assert cos.shape[1].constant == 4 and program.tables["rope.cos"].nbytes == 5000 * 4 * 4
    angle = 4999 * 10000.0 ** (-2 * 3 / 8)
    assert program.tables[cos.name].make()[4999, 3] == np.float32(1.5 * np.cos(angle))
    assert program.tables[sin.name].make()[4999, 3] == np.float32(1.5 * np.sin(angle))


def test_tables_that_depend_on_the_longest_sequence_are_named_by_it() -> None:
    """The fingerprint holds these names: the same configuration with another --max-model-len gives other numbers."""

    def name(kind: str, positions: int) -> str:
        scaling = {"rope_type": kind, "factor": 2.0, "max_position_embeddings": 8192, **LONG}
        return Rotary(128, 96, 1e4, positions, scaling, "own").tables(Program("p"))[0].name

    assert [name("longrope", longest) for longest in (64, 8192, 8193)] == [
        "own.cos@short", "own.cos@short", "own.cos@long",
    ]  # fmt: skip
    assert name("dynamic", 64) != name("dynamic", 128)
    assert name("yarn", 64) == name("yarn", 128) == "own.cos"


def test_an_unknown_scaling_and_a_missing_number_are_named() -> None:
    with pytest.raises(UnsupportedModel, match="'xpos' is not supported yet; supported: default, linear, dynamic"):
        Rotary(16, 16, 1e4, 8, {"rope_type": "xpos", "factor": 2.0}).frequencies()
    with pytest.raises(CheckpointError, match="rope_scaling.factor"):
        Rotary(16, 16, 1e4, 8, {"type": "linear"}).frequencies()
    with pytest.raises(CheckpointError, match="rope_scaling.short_factor must be 8 positive numbers"):
        Rotary(16, 16, 1e4, 8, {"type": "su", **ORIGINAL, "short_factor": [1.0] * 7}).frequencies()
