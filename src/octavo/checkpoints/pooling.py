"""What a model gives: text, vectors, or scores of labels; and how rows of hidden states become one vector.

Read off the configuration, the files of sentence-transformers beside it (modules.json) or GGUF's pooling_type; options
stand over both. It knows files and names, not how a model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.safetensors import parse_json, read_json, read_small
from octavo.errors import CheckpointError, ConfigError, UnsupportedModel

MAX_JSON = 4 << 20
ENCODERS = ("bert", "roberta", "xlm-roberta")
KINDS = ("mean", "cls", "last")
# keys of 1_Pooling/config.json -> our kind; others are not built
MODES = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last",
}  # fmt: skip
GGUF_TYPES = {1: "mean", 2: "cls", 3: "last"}  # llama.h, llama_pooling_type
GGUF_RANK = 4
MOST_LABELS = 1 << 16


@dataclass(frozen=True)
class Pooling:
    """kind: which rows of a sequence make its vector: their mean, the first or the last. normalize: to length 1.

    labels: of a classification head, which reads that row; 0: there is none, and vectors come out. sigmoid: scores of
    one label are given as its sigmoid. longest: tokens of an input, where the files say less than the model can.
    parts: the model is told which of two texts a token belongs to.
    """

    kind: str
    normalize: bool = True
    labels: int = 0
    sigmoid: bool = True
    longest: int | None = None
    parts: bool = False

    @property
    def task(self) -> str:
        return "score" if self.labels else "embed"


def pooling_of(checkpoint: Checkpoint, task: str = "auto", pooling: str = "auto") -> Pooling | None:
    """How a checkpoint gives vectors or scores under --task and --pooling; None where it generates text.

    Raises ConfigError naming the option, CheckpointError and UnsupportedModel naming the file.
    """
    config = checkpoint.config
    encoder, stated = config.get("model_type") in ENCODERS, _stated(checkpoint)
    if task == "auto" and pooling == "auto" and not (encoder or stated or classifier(config)):
        return None
    if task == "generate":
        if encoder or classifier(config):
            what = "an encoder" if encoder else "a classifier"
            raise ConfigError(f"--task generate: {checkpoint.display_name} is {what} and gives no text.", flag="--task")
        return None
    if classifier(config):
        if task == "embed" or pooling in KINDS:
            flag = "--task" if task == "embed" else "--pooling"
            raise ConfigError(f"{flag}: {checkpoint.display_name} has a classification head: it scores.", flag=flag)
        kind = "cls" if encoder else "last"
        parts = encoder and config.get("type_vocab_size", 2) != 1
        return Pooling(kind, False, label_count(config), _is_sigmoid(config), _longest(checkpoint), parts)
    if task == "score" or pooling == "rank":
        flag = "--task score" if task == "score" else "--pooling rank"
        raise ConfigError(
            f"{flag}: {checkpoint.display_name} has no classification head; /score and /rerank of an embedding model "
            "compare vectors: --task embed.",
            flag=flag.split()[0],
        )
    kind, normalize = stated or ("", True)
    if pooling != "auto":
        kind = pooling
    if not kind:
        raise ConfigError(
            f"{checkpoint.path} does not say how the rows of a text become one vector: give --pooling mean, cls or "
            "last.",
            flag="--pooling",
        )
    if kind == "cls" and not encoder:
        raise ConfigError("--pooling cls: the first row of a decoder has seen nothing; give mean or last.",
                          flag="--pooling")  # fmt: skip
    return Pooling(kind, normalize, longest=_longest(checkpoint))


def classifier(config: Mapping[str, Any]) -> bool:
    """Whether a model has a head for labels of a sequence in place of one for ids."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def label_count(config: Mapping[str, Any]) -> int:
    """Labels of a classifier: as id2label lists them, else num_labels, else two, as in transformers."""
    listed = config.get("id2label")
    count = len(listed) if isinstance(listed, dict) and listed else config.get("num_labels") or 2
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_LABELS:
        raise CheckpointError(f"config.json: num_labels = {str(count)[:40]} is no number of labels", key="num_labels")
    return count


def _is_sigmoid(config: Mapping[str, Any]) -> bool:
    """False where the model's authors want scores as they come (sentence-transformers' CrossEncoder)."""
    stated = config.get("sentence_transformers")
    named = stated.get("activation_fn") if isinstance(stated, dict) else None
    return not str(named or config.get("sbert_ce_default_activation_function") or "").endswith("Identity")


def _stated(checkpoint: Checkpoint) -> tuple[str, bool] | None:
    """Kind ('' where it is left open) and whether to normalize; None where nothing is said of vectors."""
    if checkpoint.kind == "gguf":
        found = checkpoint.config.get("pooling_type")
        if found == GGUF_RANK:
            raise UnsupportedModel(
                f"{checkpoint.path}: rerankers in GGUF are not built (key pooling_type = {GGUF_RANK}); give the "
                "folder of safetensors"
            )
        return (GGUF_TYPES[found], True) if found in GGUF_TYPES else None
    file = checkpoint.path / "modules.json"
    if not file.is_file():
        return None
    listed = parse_json(b'{"modules":' + read_small(file, MAX_JSON) + b"}", file)["modules"]  # a list by itself
    modules = listed if isinstance(listed, list) else []
    parts = [
        (str(each.get("type", "")).rpartition(".")[2], str(each.get("path", "")))
        for each in modules
        if isinstance(each, dict)
    ]
    for name, _ in parts:
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModel(f"{file}: the module {name[:60]!r} is not built", param="modules.json")
    folder = next((path for name, path in parts if name == "Pooling"), None)
    kind = "" if folder is None else _mode(checkpoint.path / folder / "config.json")
    return kind, any(name == "Normalize" for name, _ in parts)


def _mode(file: Path) -> str:
    config = read_json(file, MAX_JSON)
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        chosen = [stated.removesuffix("token").removesuffix("_tokens")]
    else:
        chosen = [MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in KINDS:
        raise UnsupportedModel(f"{file}: pooling {', '.join(chosen)[:100]!r} is not built: {', '.join(KINDS)}",
                               param="pooling_mode")  # fmt: skip
    return chosen[0]


def _longest(checkpoint: Checkpoint) -> int | None:
    """max_seq_length of sentence-transformers, which cuts longer texts; Octavo refuses them."""
    file = checkpoint.path / "sentence_bert_config.json"
    found = read_json(file, MAX_JSON).get("max_seq_length") if checkpoint.kind != "gguf" and file.is_file() else None
    return found if type(found) is int and found > 0 else None
