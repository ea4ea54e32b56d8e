"""What files and options say about vectors: sentence-transformers' modules, GGUF's key, heads, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.pooling import JUDGE, Pooling, label_count, pooling_of
from octavo.checkpoints.sentence_modules import read_dense
from octavo.errors import CheckpointError, ConfigError, UnsupportedModel

ST = "sentence_transformers.models."


def checkpoint(path: Path, kind: str = "safetensors", **config: Any) -> Checkpoint:
    return Checkpoint(path, kind, "m", "F32", {"model_type": "bert", **config}, {}, ())


def modules(path: Path, pooling: dict[str, Any], *names: str) -> None:
    listed = [{"type": f"{ST}{name}", "path": f"{i}_{name}"} for i, name in enumerate(("Transformer", *names))]
    (path / "modules.json").write_text(json.dumps(listed))
    if "Pooling" in names:
        folder = path / f"{1 + names.index('Pooling')}_Pooling"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 8}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_sentence_transformers(tmp_path: Path, stated: dict[str, Any], kind: str) -> None:
    modules(tmp_path, stated, "Pooling", "Normalize")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    assert pooling_of(checkpoint(tmp_path)) == Pooling(kind, longest=77)
    assert pooling_of(checkpoint(tmp_path, model_type="qwen3"), pooling="mean") == Pooling("mean", longest=77)


def test_options_stand_over_files(tmp_path: Path) -> None:
    modules(tmp_path, {"pooling_mode_mean_tokens": True}, "Pooling")
    assert pooling_of(checkpoint(tmp_path)) == Pooling("mean", normalize=False)
    assert pooling_of(checkpoint(tmp_path), pooling="cls") == Pooling("cls", normalize=False)
    assert pooling_of(checkpoint(tmp_path, model_type="llama"), task="generate") is None


@pytest.mark.parametrize("stated", [{"pooling_mode_max_tokens": True}, {}, {"pooling_mode": "weightedmean"}])
def test_poolings_that_are_not_built(tmp_path: Path, stated: dict[str, Any]) -> None:
    modules(tmp_path, stated, "Pooling")
    with pytest.raises(UnsupportedModel, match="1_Pooling/config.json"):
        pooling_of(checkpoint(tmp_path))


def test_modules_that_are_not_built(tmp_path: Path) -> None:
    modules(tmp_path, {}, "CNN")
    with pytest.raises(UnsupportedModel, match="modules.json: the module 'CNN'"):
        pooling_of(checkpoint(tmp_path))


def test_modules_in_another_order(tmp_path: Path) -> None:
    modules(tmp_path, {"pooling_mode_mean_tokens": True}, "Dense", "Pooling")
    with pytest.raises(UnsupportedModel, match="in the order Transformer, Dense, Pooling"):
        pooling_of(checkpoint(tmp_path))


def test_a_module_outside_of_the_folder(tmp_path: Path) -> None:
    for path in ("../elsewhere", "/etc"):
        (tmp_path / "modules.json").write_text(json.dumps([{"type": f"{ST}Dense", "path": path}]))
        with pytest.raises(CheckpointError, match="leaves the folder"):
            pooling_of(checkpoint(tmp_path))


def dense(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"in_features": 8, "out_features": 3, **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_dense(tmp_path: Path) -> None:
    """Every refusal names the file, and the key or tensor."""
    weight, bias = np.ones((3, 8), np.float32), np.ones(3, np.float32)
    path = "torch.nn.modules.activation."
    found = read_dense(dense(tmp_path / "a", {"linear.weight": weight, "linear.bias": bias}), 8)
    assert (found.weight.shape, found.activation, found.bias is not None) == ((3, 8), "Identity", True)
    without = dense(tmp_path / "b", {"linear.weight": weight.astype(np.float16)}, bias=False,
                    activation_function=f"{path}Tanh")  # fmt: skip
    found = read_dense(without, 8)
    assert (found.weight.dtype, found.activation, found.bias) == (np.float32, "Tanh", None)
    for folder, width, error, said in (
        (without, 9, CheckpointError, r"\(3, 8\).*vectors of 9"),
        (dense(tmp_path / "c", {"linear.weight": weight}), 8, CheckpointError, "linear.bias is missing"),
        (dense(tmp_path / "d", {"linear.weight": bias}, bias=False), 8, CheckpointError, r"\(3,\)"),
        (dense(tmp_path / "e", {}, activation_function=f"{path}GELU"), 8, UnsupportedModel, "'GELU' is not built"),
    ):
        with pytest.raises(error, match=said):
            read_dense(folder, width)
    (without / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="only weights in safetensors"):
        read_dense(without, 8)


def test_gguf(tmp_path: Path) -> None:
    assert pooling_of(checkpoint(tmp_path, "gguf", pooling_type=2)) == Pooling("cls")
    assert pooling_of(checkpoint(tmp_path, "gguf", model_type="llama")) is None
    with pytest.raises(ConfigError, match="--pooling mean, cls or last"):
        pooling_of(checkpoint(tmp_path, "gguf"))
    rank = {"pooling_type": 4, "num_labels": 1, "architectures": ["BertForSequenceClassification"]}
    assert pooling_of(checkpoint(tmp_path, "gguf", **rank)) == Pooling("cls", False, 1, parts=True)
    decoder = {**rank, "model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}
    assert pooling_of(checkpoint(tmp_path, "gguf", **decoder)) == Pooling("last", False, 1)
    found = pooling_of(checkpoint(tmp_path, "gguf", **{**decoder, "num_labels": 2}))
    assert found == Pooling("last", False, 2, judge=JUDGE)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_judges(tmp_path: Path, file: str) -> None:
    """Qwen3-Reranker is known by its name; another Qwen3 by --task score, if it has no modules for vectors."""
    words: dict[str, Any] = {"no": 4, "yes": 7}
    (tmp_path / file).write_text(json.dumps(words if file == "vocab.json" else {"model": {"vocab": words}}))
    made = replace(checkpoint(tmp_path, model_type="qwen3", vocab_size=8), tokenizer_files={file: tmp_path / file})
    wanted = Pooling("last", False, 2, judge=JUDGE, answers=(7, 4))
    assert pooling_of(made) is None
    assert pooling_of(made, task="score") == pooling_of(made, pooling="rank") == wanted
    named = replace(made, display_name="Qwen3-Reranker-0.6B")
    assert pooling_of(named) == wanted
    assert pooling_of(named, task="generate") is None
    with pytest.raises(ConfigError, match="--pooling: .* it scores"):
        pooling_of(named, pooling="mean")
    for broken in ({}, {"no": 4, "yes": 8}, {"no": True, "yes": 1}, {"no": -1, "yes": 1}):
        (tmp_path / file).write_text(json.dumps(broken if file == "vocab.json" else {"model": {"vocab": broken}}))
        with pytest.raises(CheckpointError, match="needs the tokens yes and no"):
            pooling_of(named)
    modules(tmp_path, {"pooling_mode_lasttoken": True}, "Pooling")
    with pytest.raises(ConfigError, match="--task score: .* has no classification head"):
        pooling_of(made, task="score")


def test_heads(tmp_path: Path) -> None:
    """A classifier scores, with sigmoid unless its authors say otherwise, and does nothing else."""
    names = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    assert pooling_of(checkpoint(tmp_path, **names)) == Pooling("cls", False, 1, parts=True)
    identity = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}, **names}
    assert pooling_of(checkpoint(tmp_path, **identity)) == Pooling("cls", False, 1, sigmoid=False, parts=True)
    decoder = {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 3, "model_type": "qwen3"}
    assert pooling_of(checkpoint(tmp_path, **decoder)) == Pooling("last", False, 3)
    for given in ({"task": "generate"}, {"task": "embed"}, {"pooling": "mean"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(given))}"):
            pooling_of(checkpoint(tmp_path, **names), **given)
    with pytest.raises(ConfigError, match="--task score: m has no classification head"):
        pooling_of(checkpoint(tmp_path), task="score")


@pytest.mark.parametrize("labels", [{"num_labels": -1}, {"num_labels": True}, {"num_labels": "many"}])
def test_absurd_labels(labels: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="num_labels"):
        label_count(labels)
