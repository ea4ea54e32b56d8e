"""Ids of published vocabularies: against transformers' classes, the libraries that define a format, and llama.cpp's
record of what the families' published tokenizers gave.
"""

import base64
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers

from octavo.checkpoints.gguf import read_arrays, read_gguf
from octavo.tokenizer.pre_tokenizers import GPT4O, LLAMA3, QWEN2
from octavo.tokenizer.tokenizer import Tokenizer
from tests.real import FOLDER
from tests.tokenizer import carriers
from tests.tokenizer.corpus import PIECES, documents

Ids = Callable[[str], list[int]]
RECORDED = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
) + ("mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder")
SEPARATOR = "\n__ggml_vocab_test__\n"


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    return read_arrays(read_gguf(carriers.files("llama.cpp")[f"ggml-vocab-{name}.gguf"]), "tokenizer.")


@functools.cache
def of_gguf(name: str) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(name), FOLDER / "vocabularies" / "kept")


@functools.cache
def of_file(carrier: str, file: str) -> Tokenizer:
    """The tokenizer of a folder that has just this vocabulary file."""
    source = carriers.files(carrier)[file]
    folder = FOLDER / "vocabularies" / "folders" / f"{carrier}-{file.replace('/', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    if not target.exists():
        shutil.copy(source, target.with_suffix(".partial"))
        target.with_suffix(".partial").replace(target)
    return Tokenizer.from_folder(folder, FOLDER / "vocabularies" / "kept")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_ids(name: str) -> None:
    """What the published tokenizers gave for llama.cpp's texts."""
    files = carriers.files("llama.cpp")
    texts = files[f"ggml-vocab-{name}.gguf.inp"].read_bytes().decode().split(SEPARATOR)
    lines = files[f"ggml-vocab-{name}.gguf.out"].read_text().split("\n")
    compared = 0
    for text, line in zip(texts, lines, strict=False):
        if name == "qwen35" and "\u0300" <= max(text, default="") <= "\u036f":
            continue  # the record was made without the NFC that transformers' Qwen3_5Tokenizer has
        assert of_gguf(name).encode(text) == [int(id_) for id_ in line.split()], text
        compared += 1
    assert compared >= 44


def ranks_of(path: Path) -> dict[bytes, int]:
    lines = [line.split() for line in path.read_bytes().splitlines()]
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def by_tiktoken(carrier: str, file: str, pattern: str) -> Ids:
    """The definition of such a file. Qwen's code normalizes to NFC first; Unicode's version is the library's here."""
    encoding = tiktoken.Encoding(
        "x", pat_str=pattern, mergeable_ranks=ranks_of(carriers.files(carrier)[file]), special_tokens={}
    )
    if carrier == "qwen":
        return lambda text: encoding.encode_ordinary(tokenizers.normalizers.NFC().normalize_str(text))
    return encoding.encode_ordinary


def by_tekken(file: str) -> Ids:
    """As mistral-common reads it: tiktoken's ids behind 1,000 special tokens."""
    whole = json.loads(carriers.files("mistral")[file].read_bytes())
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in whole["vocab"][:130_072]}
    encoding = tiktoken.Encoding("x", pat_str=whole["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    return lambda text: [1000 + id_ for id_ in encoding.encode_ordinary(text)]


def by_sentencepiece(carrier: str, file: str) -> Ids:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(carriers.files(carrier)[file]))
    return lambda text: list(processor.encode(text))


def by_transformers(name: str, class_name: str, spaces: bool = False) -> Ids:
    """A class of transformers around the vocabulary of a GGUF. spaces: GPT-NeoX's runs of spaces are added tokens."""
    import transformers

    model = json.loads(of_gguf(name).backend.to_str())["model"]
    if model["type"] == "BPE":
        given: dict[str, Any] = {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
    elif model["type"] == "Unigram":
        charsmap = bytes(byte & 0xFF for byte in metadata(name)["tokenizer.ggml.precompiled_charsmap"])
        given = {"vocab": [tuple(piece) for piece in model["vocab"]], "_spm_precompiled_charsmap": charsmap}
    else:
        given = {"vocab": model["vocab"]}
    made = getattr(transformers, class_name)(**given)
    if spaces:
        plain = [token for token in of_gguf(name).backend.get_added_tokens_decoder().values() if not token.special]
        made.add_tokens(plain)
    return lambda text: list(made.encode(text, add_special_tokens=False, split_special_tokens=not spaces))


def by_folder(carrier: str) -> Ids:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(carriers.files(carrier)["tokenizer.json"].parent)
    return lambda text: list(made.encode(text, add_special_tokens=False))


# Family -> (ours, oracle); each made when first needed.
FAMILIES: dict[str, tuple[Callable[[], Tokenizer], Callable[[], Ids]]] = {
    "Llama 3 (tiktoken)": (
        lambda: of_file("llama", "llama3/tokenizer.model"),
        lambda: by_tiktoken("llama", "llama3/tokenizer.model", LLAMA3),
    ),
    "Llama 4 (tiktoken)": (
        lambda: of_file("llama", "llama4/tokenizer.model"),
        lambda: by_tiktoken("llama", "llama4/tokenizer.model", GPT4O),
    ),
    "Qwen (tiktoken)": (lambda: of_file("qwen", "qwen.tiktoken"), lambda: by_tiktoken("qwen", "qwen.tiktoken", QWEN2)),
    "Mistral Nemo (tekken)": (
        lambda: of_file("mistral", "tekken_240911.json"),
        lambda: by_tekken("tekken_240911.json"),
    ),
    "Mistral 7B (SentencePiece)": (
        lambda: of_file("mistral", "tokenizer.model.v1"),
        lambda: by_sentencepiece("mistral", "tokenizer.model.v1"),
    ),
    "Mistral 7B v0.3 (SentencePiece)": (
        lambda: of_file("mistral", "mistral_instruct_tokenizer_240323.model.v3"),
        lambda: by_sentencepiece("mistral", "mistral_instruct_tokenizer_240323.model.v3"),
    ),
    "DeepSeek V4 (tokenizer.json)": (
        lambda: Tokenizer.from_folder(carriers.files("deepseek")["tokenizer.json"].parent),
        lambda: by_folder("deepseek"),
    ),
    "Claude 2 (tokenizer.json)": (
        lambda: Tokenizer.from_folder(carriers.files("anthropic")["tokenizer.json"].parent),
        lambda: by_tokenizers("anthropic"),
    ),
    "GPT-2 (GGUF)": (lambda: of_gguf("gpt-2"), lambda: by_transformers("gpt-2", "GPT2Tokenizer")),
    "MPT, GPT-NeoX (GGUF)": (lambda: of_gguf("mpt"), lambda: by_transformers("mpt", "GPTNeoXTokenizer", True)),
    "Command R (GGUF)": (lambda: of_gguf("command-r"), lambda: by_transformers("command-r", "CohereTokenizer")),
    "Qwen 2 (GGUF)": (lambda: of_gguf("qwen2"), lambda: by_transformers("qwen2", "Qwen2Tokenizer")),
    "Qwen 3.5 (GGUF)": (lambda: of_gguf("qwen35"), lambda: by_transformers("qwen35", "Qwen3_5Tokenizer")),
    "Gemma 4 (GGUF)": (lambda: of_gguf("gemma-4"), lambda: by_transformers("gemma-4", "GemmaTokenizer")),
    "BGE, BERT (GGUF)": (lambda: of_gguf("bert-bge"), lambda: by_transformers("bert-bge", "BertTokenizer")),
    "Nomic, XLM-RoBERTa (GGUF)": (
        lambda: of_gguf("nomic-bert-moe"),
        lambda: by_transformers("nomic-bert-moe", "XLMRobertaTokenizer"),
    ),
}


def by_tokenizers(carrier: str) -> Ids:
    made = tokenizers.Tokenizer.from_file(str(carriers.files(carrier)["tokenizer.json"]))
    return lambda text: list(made.encode(text, add_special_tokens=False).ids)


def check(family: str, texts: tuple[str, ...]) -> None:
    ours, oracle = (make() for make in FAMILIES[family])
    literal = "GGUF" in family and family != "MPT, GPT-NeoX (GGUF)" or "tiktoken" in family
    for text in texts:
        assert ours.encode(text, special=not literal) == oracle(text), text[:200]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_a_part_of_the_corpus(family: str) -> None:
    check(family, (*PIECES, *documents()[30::12]))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_the_corpus(family: str) -> None:
    check(family, documents())


def test_unigram_finds_cuts_as_good_as_sentencepiece() -> None:
    """Jurassic's pieces go over words and tie with one another, so scores are compared where texts are normalized
    alike: the tokenizers library normalizes by grapheme, the format's own library by its longest match."""
    ours = of_file("jurassic", "j2-tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(carriers.files("jurassic")["j2-tokenizer.model"]))
    alike = 0
    for text in (*PIECES, *documents()[30::25]):
        ids, expected = ours.encode(text, special=False), processor.encode(text)
        if "".join(map(str, map(ours.id_to_token, ids))) != "".join(processor.id_to_piece(expected)):
            continue
        assert sum(map(processor.get_score, ids)) == pytest.approx(sum(map(processor.get_score, expected)), abs=1e-2)
        alike += 1
    assert alike > 15


def test_one_family_in_two_formats() -> None:
    tiktoken_file, gguf = of_file("llama", "llama3/tokenizer.model"), of_gguf("llama-bpe")
    for text in documents()[::20]:
        assert tiktoken_file.encode(text) == gguf.encode(text)
    assert tiktoken_file.encode("a", True) == gguf.encode("a", True) == [128000, 64]


def test_facts_of_the_files() -> None:
    llama3, llama4 = (of_file("llama", f"llama{n}/tokenizer.model") for n in (3, 4))
    assert (llama3.vocab_size, llama3.bos_id, llama3.eos_ids) == (128_256, 128_000, (128_001, 128_008, 128_009))
    assert (llama4.vocab_size, llama4.bos_id, llama4.eos_ids) == (202_048, 200_000, (200_001, 200_007, 200_008))
    assert llama3.encode("<|start_header_id|>user<|end_header_id|>") == [128_006, 882, 128_007]
    assert llama4.token_to_id("<|image|>") == 200_090
    qwen = of_file("qwen", "qwen.tiktoken")
    assert (qwen.vocab_size, qwen.bos_id, qwen.eos_ids) == (151_851, None, (151_643, 151_645))
    tekken = of_file("mistral", "tekken_240911.json")
    assert (tekken.vocab_size, tekken.bos_id, tekken.eos_ids) == (131_072, 1, (2,))
    assert tekken.encode("[INST]Hi[/INST]", True)[:2] == [1, 3] and tekken.id_to_token(500) == "<SPECIAL_500>"
    mistral = of_file("mistral", "mistral_instruct_tokenizer_240323.model.v3")
    assert (mistral.vocab_size, mistral.bos_id, mistral.eos_ids) == (32_768, 1, (2,))
    assert mistral.encode("[INST]", True) == [1, 3]


def test_special_tokens_around_one_text_and_two() -> None:
    bert = of_gguf("bert-bge")
    assert bert.encode("Hello there", True) == [101, *bert.encode("hello there"), 102]
    ids, types = bert.encode_pair("a", "b c")
    assert ids == [101, *bert.encode("a"), 102, *bert.encode("b c"), 102]
    assert types == [0] * 3 + [1] * 3
    roberta = of_gguf("nomic-bert-moe")
    assert roberta.encode("a", True) == [0, *roberta.encode("a"), 2]
    ids, types = roberta.encode_pair("a", "b")
    assert ids == [0, *roberta.encode("a"), 2, 2, *roberta.encode("b"), 2] and types == [0] * 6
    assert of_gguf("deepseek-llm").encode("a", True)[0] == 100_000
    assert of_gguf("starcoder").encode("a", True) == of_gguf("starcoder").encode("a")


def test_phi_3_swallows_the_spaces_behind_its_tokens() -> None:
    phi = of_gguf("phi-3")
    assert phi.encode("<|user|>\n\nHi<|end|>\n") == phi.encode("<|user|>Hi<|end|>")


def test_templates_by_name() -> None:
    assert of_gguf("command-r").facts.chat_templates.keys() == {"default", "tool_use", "rag"}
