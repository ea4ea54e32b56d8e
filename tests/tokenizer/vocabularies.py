"""Vocabularies for tests: of the real models, small ones trained here, and transformers' view of the former."""

import functools
import json
import warnings
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from octavo.checkpoints.gguf import read_arrays, read_gguf
from tests import real
from tests.tokenizer.corpus import documents

SMOLLM2, QWEN, GEMMA = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "gemma-3-270m"


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    """The `tokenizer.*` keys of a real model's file."""
    return read_arrays(read_gguf(real.model(name)), "tokenizer.")


@functools.cache
def converted(name: str) -> Any:
    """transformers' tokenizer of a GGUF file, untouched."""
    path = real.model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def byte_level(pre: str) -> dict[str, Any]:
    """A trained byte-level BPE of 3,000 tokens under the given tokenizer.ggml.pre."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<|begin|>", "<|end|>", "<tool>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(documents()[:200], trainer)
    vocab, merges = state(trained)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(vocab) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


@functools.cache
def sentencepiece() -> dict[str, Any]:
    """A SentencePiece-like vocabulary in the order of Llama 2: <unk> <s> </s>, 256 bytes, pieces by score."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trained.decoder = decoders.Replace("▁", " ")
    trainer = trainers.BpeTrainer(vocab_size=2500, limit_alphabet=300, show_progress=False)
    trained.train_from_iterator(documents()[:120], trainer)
    vocab, merges = state(trained)
    merged = [left + right for left, right in merges]
    single = [token for token in vocab if token not in set(merged)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(merged), *single]
    normal = len(tokens) - 259
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * normal],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(normal)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def word_piece() -> dict[str, Any]:
    """A BERT vocabulary in llama.cpp's spelling: the beginnings of words are marked."""
    words = ["hello", "tool", "wor", "1", "<", ">", "w", "d"]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *("▁" + word for word in words),
        "lo",
        "rld",
        "ld",
        "2",
        "3",
    ]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.normalizer.lowercase": True,
    }


def unigram() -> dict[str, Any]:
    """A Unigram vocabulary, whose normalization map turns a form feed into a space."""
    pieces = ["▁", "▁he", "llo", "l", "o", "▁wor", "ld", "1", "2", "3", "<", ">", "to", "e", "h", "w"]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", *pieces],
        "tokenizer.ggml.token_type": [3, 3, 2, *[1] * len(pieces)],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *(-float(2 + at) for at in range(len(pieces)))],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }


def state(trained: tokenizers.Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id, and merges."""
    model = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    return sorted(vocab, key=vocab.__getitem__), [(left, right) for left, right in model["merges"]]
