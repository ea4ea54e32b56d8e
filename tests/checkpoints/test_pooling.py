"""What files and options say about vectors: sentence-transformers' modules, GGUF's key, heads, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.pooling import Pooling, label_count, pooling_of
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
    modules(tmp_path, {}, "Dense")
    with pytest.raises(UnsupportedModel, match="modules.json: the module 'Dense'"):
        pooling_of(checkpoint(tmp_path))


def test_gguf(tmp_path: Path) -> None:
    assert pooling_of(checkpoint(tmp_path, "gguf", pooling_type=2)) == Pooling("cls")
    assert pooling_of(checkpoint(tmp_path, "gguf", model_type="llama")) is None
    with pytest.raises(ConfigError, match="--pooling mean, cls or last"):
        pooling_of(checkpoint(tmp_path, "gguf"))
    with pytest.raises(UnsupportedModel, match="rerankers in GGUF are not built"):
        pooling_of(checkpoint(tmp_path, "gguf", pooling_type=4))


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
