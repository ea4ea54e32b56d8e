"""Rotary frequencies against transformers' own, tables against float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.rotary import Rotary
from octavo.program.graph import Program

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(
    ("kind", "parameters"), [("linear", {"factor": 4.0}), ("llama3", LLAMA3), ("llama3", {**LLAMA3, "factor": 32.0})]
)
def test_scaled_frequencies(kind: str, parameters: dict[str, Any], theta: float) -> None:
    rope = {"rope_type": kind, "rope_theta": theta, **parameters}
    config = SimpleNamespace(
        head_dim=128, hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope,
        partial_rotary_factor=1.0, standardize_rope_params=lambda: None,
    )  # fmt: skip
    wanted, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    found = Rotary(128, 128, theta, 16, rope).frequencies()
    assert factor == 1.0
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-6)  # theirs are powers in float32


def test_tables_are_rounded_once() -> None:
    rotary = Rotary(16, 8, 10000.0, 5000, {})
    program = Program("p")
    cos, sin = rotary.tables(program)
    assert cos.shape[1].constant == 4 and program.tables["rope.cos"].nbytes == 5000 * 4 * 4
    angle = 4999 * 10000.0 ** (-2 * 3 / 8)
    assert program.tables[cos.name].make()[4999, 3] == np.float32(np.cos(angle))
    assert program.tables[sin.name].make()[4999, 3] == np.float32(np.sin(angle))


def test_an_unknown_scaling_and_a_missing_number_are_named() -> None:
    with pytest.raises(UnsupportedModel, match="'yarn' is not supported yet; supported: default, linear, llama3"):
        Rotary(16, 16, 1e4, 8, {"rope_type": "yarn", "factor": 2.0}).frequencies()
    with pytest.raises(CheckpointError, match="rope_scaling.factor"):
        Rotary(16, 16, 1e4, 8, {"type": "linear"}).frequencies()
