"""Names and row orders of weights: what is missing, unexpected or of another shape is told at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.models.binding import bind, unpaired_rows
from octavo.models.registry import build
from octavo.models.source import WeightSource, read_floats
from octavo.program.trace import trace, weights_of
from tests import tiny


def bound(checkpoint: Checkpoint) -> dict[str, WeightSource]:
    model = build(checkpoint, positions=64)
    return bind(checkpoint, model, weights_of(trace(model.functions)))


@pytest.mark.parametrize("changes", [{}, {"model_type": "qwen2"}, {"attention_bias": True}, {"head_dim": 40}])
def test_both_kinds_of_files_give_the_same_weights(changes: dict[str, object], tmp_path: Path) -> None:
    config = tiny.config(**changes)
    wanted = tiny.weights(config)
    gguf = tiny.gguf_file(tmp_path / "model.gguf", config, quantization="f32")
    for path in (tiny.folder(tmp_path / "model", config), gguf):
        checkpoint = open_checkpoint(path)
        sources = bound(checkpoint)
        assert sources.keys() == wanted.keys()
        for name, source in sources.items():
            np.testing.assert_array_equal(read_floats(checkpoint, source), wanted[name])


def test_pairs_become_halves() -> None:
    assert unpaired_rows(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert unpaired_rows(6, 1).tolist() == [0, 2, 4, 1, 3, 5]


def without(checkpoint: Checkpoint, *names: str) -> Checkpoint:
    return replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n not in names})


def test_missing_and_unexpected_are_one_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.folder(tmp_path / "model"))
    norm = checkpoint.tensors["model.norm.weight"]
    odd = replace(checkpoint, tensors={**checkpoint.tensors, "model.odd.weight": norm})
    with pytest.raises(CheckpointError, match="1 missing: model.norm.weight; 1 unexpected: model.odd.weight"):
        bound(without(odd, "model.norm.weight"))


def test_many_missing_names_are_counted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.gguf_file(tmp_path / "m.gguf"))
    gone = [name for name in checkpoint.tensors if name.startswith("blk.1.")]
    with pytest.raises(CheckpointError, match="9 missing: .* and 1 more"):
        bound(without(checkpoint, *gone))


def test_a_tied_model_needs_no_head_and_may_carry_one(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.folder(tmp_path / "model"))
    assert "lm_head.weight" in bound(checkpoint)
    tied = replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": True})
    assert "lm_head.weight" not in bound(tied)
    assert "lm_head.weight" not in bound(without(tied, "lm_head.weight"))


def test_tables_that_files_carry_are_ignored(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.folder(tmp_path / "model"))
    norm = checkpoint.tensors["model.norm.weight"]
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert name not in bound(replace(checkpoint, tensors={**checkpoint.tensors, name: norm}))


def test_a_wrong_shape_names_the_tensor(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.folder(tmp_path / "model"))
    wider = replace(checkpoint, config={**checkpoint.config, "intermediate_size": 160})
    with pytest.raises(CheckpointError, match=r"gate_proj.weight has the shape \(128, 64\), .* \(160, 64\)"):
        bound(wider)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"model_type": "mpt"},
            UnsupportedModel,
            "architecture 'mpt' is not supported .*key model_type.*supported: ",
        ),
        ({"model_type": "qwen3_5_moe"}, UnsupportedModel, "key model_type.*nearest family that is: qwen3_moe"),
        ({"model_type": None}, UnsupportedModel, "architecture 'None' is not supported .*key model_type"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, UnsupportedModel, "mlp_bias"),
        ({"hidden_size": None}, CheckpointError, "config.json has no hidden_size"),
        ({"num_hidden_layers": "two"}, CheckpointError, "num_hidden_layers = 'two' must be a whole number"),
        ({"num_attention_heads": 0}, CheckpointError, "num_attention_heads = 0 must be a whole number from 1"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "num_hidden_layers = 1000000000 must be"),
        ({"head_dim": 15}, CheckpointError, "head_dim = 15 must be even"),
        ({"num_key_value_heads": 3}, CheckpointError, "must divide num_attention_heads = 4"),
        ({"rope_theta": "big"}, CheckpointError, "rope_theta = 'big' must be a number"),
    ],
)
def test_a_configuration_is_refused_by_key(
    changes: dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.folder(tmp_path / "model"))
    with pytest.raises(error, match=words):
        build(replace(checkpoint, config={**checkpoint.config, **changes}), positions=64)
