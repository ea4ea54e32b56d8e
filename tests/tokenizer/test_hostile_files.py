"""Mutated vocabulary files of every kind: one clear error of ours that names the file, or a tokenizer that works."""

import base64
import functools
import io
import json
import pathlib
import random
from collections.abc import Callable

import pytest
import sentencepiece

from octavo.errors import CheckpointError, OctavoError, UnsupportedModel
from octavo.tokenizer import gguf_tokenizer, tiktoken_file
from octavo.tokenizer.byte_table import spell
from octavo.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import vocabularies
from tests.tokenizer.corpus import documents

TEXT = "Hello <tool> wörld 123\n\n  é ạ̊ 🙂 "


@functools.cache
def sentencepiece_model(kind: str) -> bytes:
    """A trained model of a few hundred pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in documents()[:60] for line in text.splitlines()]), model_writer=model,
        vocab_size=900, model_type=kind, byte_fallback=kind == "bpe", character_coverage=0.99, minloglevel=2,
        user_defined_symbols=["<tool>"], control_symbols=["<turn>"], num_threads=1,
    )  # fmt: skip
    return model.getvalue()


@functools.cache
def tiktoken_lines() -> bytes:
    ranks = [bytes([byte]) for byte in range(256)] + [b"He", b"ll", b"Hell", b" w"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))


def tekken() -> bytes:
    vocab = [{"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode()} for byte in range(256)]
    config = {"pattern": r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+", "default_num_special_tokens": 20}
    return json.dumps({"config": {**config, "default_vocab_size": 276}, "vocab": vocab}).encode()


def tokenizer_json() -> bytes:
    return gguf_tokenizer.build(vocabularies.byte_level("qwen2")).to_str().encode()


def vocab_json() -> bytes:
    return json.dumps({**{spell(bytes([byte])): byte for byte in range(256)}, "He": 256, "ll": 257}).encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "bpe": ("tokenizer.model", lambda: sentencepiece_model("bpe")),
    "unigram": ("spiece.model", lambda: sentencepiece_model("unigram")),
    "tiktoken": ("x.tiktoken", tiktoken_lines),
    "tekken": ("tekken.json", tekken),
    "tokenizer.json": ("tokenizer.json", tokenizer_json),
    "vocab.json": ("vocab.json", vocab_json),
    "vocab.txt": ("vocab.txt", lambda: b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##lo\n,\n1\n##2\n"),
}


def mutated(content: bytes, random_: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random_.randint(1, 8)):
        if not changed:
            break
        at = random_.randrange(len(changed))
        kind = random_.randrange(4)
        if kind == 0:
            changed[at] = random_.randrange(256)
        elif kind == 1:
            del changed[at : at + random_.randint(1, 60)]
        elif kind == 2:
            changed[at:at] = changed[at : at + random_.randint(1, 60)]
        else:
            del changed[max(at, 1) :]
    return bytes(changed)


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files(kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiktoken_file.Family(
        "small", tiktoken_file.FAMILIES[128_000].pre, ("<|begin|>",), {"bos_token": "<|begin|>"}
    )
    monkeypatch.setattr(tiktoken_file, "FAMILIES", dict.fromkeys(range(200, 300), small))
    name, make = FILES[kind]
    (tmp_path / "merges.txt").write_text("#version: 0.2\nH e\nl l\n")
    random_ = random.Random(kind)
    refused = 0
    for number in range(60):
        (tmp_path / name).write_bytes(make() if number == 0 else mutated(make(), random_))
        try:
            tokenizer = Tokenizer.from_folder(tmp_path)
            ids = tokenizer.encode(TEXT, add_special_tokens=True)
        except OctavoError as error:
            assert number > 0 and len(error.message) < (600 if kind != "tiktoken" else 2000)
            assert name.split(".")[0] in error.message or "cannot encode" in error.message
            refused += 1
            continue
        assert isinstance(tokenizer.decode(ids), str)
        assert all(0 <= id_ < tokenizer.vocab_size for id_ in (*ids, *tokenizer.eos_ids))
    assert refused > 5 or kind == "vocab.txt"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ids_of_small_sentencepiece_models(kind: str, tmp_path: pathlib.Path) -> None:
    """User-defined and control symbols, a collapse of spaces and nmt_nfkc, against the format's own library."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    tokenizer = Tokenizer.from_folder(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))
    for text in ("Hello world", "  two  spaces ", "the 123, the.", "a\tb\nc", "class A(B): pass", "ﬁ ½ ￥"):
        assert tokenizer.encode(text, special=False) == processor.encode(text), text
    tool, turn = tokenizer.token_to_id("<tool>"), tokenizer.token_to_id("<turn>")
    assert tool in tokenizer.encode("a<tool>b") and turn in tokenizer.encode("a<turn>b")
    assert not tokenizer.is_special(tool or 0) and tokenizer.is_special(turn or 0)
    assert tokenizer.encode("a", True) == [
        *([1] if kind == "bpe" else []),
        *tokenizer.encode("a"),
        *[2] * (kind != "bpe"),
    ]


def test_what_is_in_the_folder_decides(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer\.json nor one of"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"what?")
    with pytest.raises(CheckpointError, match="neither a SentencePiece model nor a tiktoken file"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_lines())
    with pytest.raises(UnsupportedModel, match=r"260 ranks, of no family.*128000 \(Llama 3\)"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tekken.json").write_bytes(tekken())
    assert Tokenizer.from_folder(tmp_path).encode("a[INST]", True) == [1, 20 + ord("a"), 3]
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    assert Tokenizer.from_folder(tmp_path).token_to_id("<tool>") == 2


def test_kept_after_the_first_time(tmp_path: pathlib.Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    (folder / "tekken.json").write_bytes(tekken())
    first = Tokenizer.from_folder(folder, cache)
    assert len(list(cache.rglob("tokenizer.json"))) == 1
    assert Tokenizer.from_folder(folder, cache).encode(TEXT, True) == first.encode(TEXT, True)
    (folder / "tekken.json").write_bytes(tekken().replace(b"276", b"275"))
    with pytest.raises(CheckpointError, match="lacks a byte"):
        Tokenizer.from_folder(folder, cache)
