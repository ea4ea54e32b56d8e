"""What a model gives: text, vectors, or scores of labels; and how rows of hidden states become one vector.

Read off the configuration, the files of sentence-transformers beside it or GGUF's pooling_type; options stand over
both. It knows files and names, not how a model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.safetensors import read_json
from octavo.checkpoints.sentence_modules import KINDS, MAX_JSON, Modules, read_modules
from octavo.errors import CheckpointError, ConfigError

ENCODERS = ("bert", "roberta", "xlm-roberta")
GGUF_TYPES = {1: "mean", 2: "cls", 3: "last"}  # llama.h, llama_pooling_type
GGUF_RANK = 4
MOST_LABELS = 1 << 16
# What Qwen3-Reranker was trained to be asked; its GGUF files carry it under this key.
JUDGE_KEY = "tokenizer.chat_template.rerank"
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: "
    "{document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
ANSWERS = ("yes", "no")
MAX_VOCABULARY = 64 << 20


@dataclass(frozen=True)
class Pooling:
    """kind: which rows of a sequence make its vector: their mean, the first or the last. normalize: to length 1.

    labels: of a classification head, which reads that row; 0: there is none, and vectors come out. sigmoid: scores of
    one label are given as its sigmoid. longest: tokens of an input, where the files say less than the model can.
    parts: the model is told which of two texts a token belongs to.

    judge: a prompt with {query} and {document} that a decoder answers with yes or no: its labels, of which the first
    one's probability is the score. answers: the rows of its head that stand for them, where the file has a whole head.
    dense: folders of layers that follow (sentence_modules.py).
    """

    kind: str
    normalize: bool = True
    labels: int = 0
    sigmoid: bool = True
    longest: int | None = None
    parts: bool = False
    judge: str = ""
    answers: tuple[int, int] | None = None
    dense: tuple[Path, ...] = ()

    @property
    def task(self) -> str:
        return "score" if self.labels else "embed"


def pooling_of(checkpoint: Checkpoint, task: str = "auto", pooling: str = "auto") -> Pooling | None:
    """How a checkpoint gives vectors or scores under --task and --pooling; None where it generates text.

    Raises ConfigError naming the option, CheckpointError and UnsupportedModel naming the file.
    """
    config = checkpoint.config
    encoder, stated = config.get("model_type") in ENCODERS, _stated(checkpoint)
    judges = not encoder and _judges(checkpoint, stated is None and (task == "score" or pooling == "rank"))
    if task == "auto" and pooling == "auto" and not (encoder or stated or judges or classifier(config)):
        return None
    if task == "generate":
        if encoder or classifier(config):
            what = "an encoder" if encoder else "a classifier"
            raise ConfigError(f"--task generate: {checkpoint.display_name} is {what} and gives no text.", flag="--task")
        return None
    if judges or classifier(config):
        if task == "embed" or pooling in KINDS:
            flag = "--task" if task == "embed" else "--pooling"
            raise ConfigError(f"{flag}: {checkpoint.display_name} has a classification head: it scores.", flag=flag)
        return _judge(checkpoint) if judges else _classifier(checkpoint, encoder)
    if task == "score" or pooling == "rank":
        flag = "--task score" if task == "score" else "--pooling rank"
        raise ConfigError(
            f"{flag}: {checkpoint.display_name} has no classification head; /score and /rerank of an embedding model "
            "compare vectors: --task embed.",
            flag=flag.split()[0],
        )
    found = stated or Modules("", True)
    kind = found.kind if pooling == "auto" else pooling
    if not kind:
        raise ConfigError(
            f"{checkpoint.path} does not say how the rows of a text become one vector: give --pooling mean, cls or "
            "last.",
            flag="--pooling",
        )
    if kind == "cls" and not encoder:
        raise ConfigError("--pooling cls: the first row of a decoder has seen nothing; give mean or last.",
                          flag="--pooling")  # fmt: skip
    return Pooling(kind, found.normalize, longest=_longest(checkpoint), dense=found.dense)


def _classifier(checkpoint: Checkpoint, encoder: bool) -> Pooling:
    config, kind = checkpoint.config, "cls" if encoder else "last"
    parts = encoder and config.get("type_vocab_size", 2) != 1
    return Pooling(kind, False, label_count(config), _is_sigmoid(config), _longest(checkpoint), parts)


def _judges(checkpoint: Checkpoint, asked: bool) -> bool:
    """Whether a decoder scores by the logits of yes and no: its GGUF file says so; of a folder of Qwen3 only its name
    tells, else the options (asked)."""
    config = checkpoint.config
    if checkpoint.kind == "gguf":
        return config.get("pooling_type") == GGUF_RANK and label_count(config) == len(ANSWERS)
    named = asked or "qwen3-reranker" in checkpoint.display_name.lower()
    return config.get("model_type") == "qwen3" and named and not classifier(config)


def _judge(checkpoint: Checkpoint) -> Pooling:
    if checkpoint.kind == "gguf":
        stated = checkpoint.tokenizer_metadata(arrays=False).get(JUDGE_KEY)
        judge = stated if isinstance(stated, str) else JUDGE
        if not 0 <= judge.find("{query}") < judge.find("{document}"):
            raise CheckpointError(
                f"{checkpoint.path}: {JUDGE_KEY} is no prompt with {{query}} and {{document}}", key=JUDGE_KEY
            )
        return Pooling("last", False, len(ANSWERS), judge=judge)
    return Pooling("last", False, len(ANSWERS), judge=JUDGE, answers=_answers(checkpoint))


def _answers(checkpoint: Checkpoint) -> tuple[int, int]:
    """The ids of ANSWERS, out of the vocabulary file."""
    files = checkpoint.tokenizer_files
    file = files.get("vocab.json") or files.get("tokenizer.json")
    if file is None:
        raise CheckpointError(f"{checkpoint.path} has neither vocab.json nor tokenizer.json", path=str(checkpoint.path))
    vocabulary: Any = read_json(file, MAX_VOCABULARY)
    if file.name == "tokenizer.json":
        model = vocabulary.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
    known: dict[str, Any] = vocabulary if isinstance(vocabulary, dict) else {}
    yes, no = (known.get(word) for word in ANSWERS)
    size = checkpoint.config.get("vocab_size")
    if type(yes) is not int or type(no) is not int or type(size) is not int or min(yes, no) < 0 or max(yes, no) >= size:
        raise CheckpointError(
            f"{file}: a model that scores by its answer needs the tokens {' and '.join(ANSWERS)}", path=str(file)
        )
    return yes, no


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


def _stated(checkpoint: Checkpoint) -> Modules | None:
    """What the files say of vectors; None where they say nothing."""
    if checkpoint.kind != "gguf":
        return read_modules(checkpoint.path)
    found = checkpoint.config.get("pooling_type")
    return Modules(GGUF_TYPES[found], True) if found in GGUF_TYPES else None


def _longest(checkpoint: Checkpoint) -> int | None:
    """max_seq_length of sentence-transformers, which cuts longer texts; Octavo refuses them."""
    file = checkpoint.path / "sentence_bert_config.json"
    found = read_json(file, MAX_JSON).get("max_seq_length") if checkpoint.kind != "gguf" and file.is_file() else None
    return found if type(found) is int and found > 0 else None
