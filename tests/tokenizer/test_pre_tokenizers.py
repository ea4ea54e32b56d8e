"""The table behind tokenizer.ggml.pre: what each kind of step does to a text."""

import pytest

from octavo.tokenizer.byte_table import spell
from octavo.tokenizer.pre_tokenizers import BYTE_PRES, make_pre_tokenizer
from tests.tokenizer import carriers


def cut(name: str, text: str) -> list[str]:
    return [piece for piece, _ in make_pre_tokenizer(BYTE_PRES[name]).pre_tokenize_str(text)]


def spelled(*pieces: str) -> list[str]:
    return [spell(piece.encode()) for piece in pieces]


# Pieces as the families' pattern defines them, worked out by hand.
@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'll  go 123", ["I", "'ll", " ", " go", " 123"]),
        ("starcoder", "x 123", ["x", " ", "1", "2", "3"]),
        ("falcon", "a,,b 12345", ["a", ",,", "b", " ", "123", "45"]),
        ("qwen2", "DON'T 12", ["DON", "'T", " ", "1", "2"]),
        ("ufakzeka", "Ali'den 12", ["Ali", "'den", " ", "1", "2"]),
        ("llama-bpe", "ab 12345", ["ab", " ", "123", "45"]),
        ("minicpm5", "ab 12345", ["ab", " ", "123", "45"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("gpt-4o", "camelCase's 1234", ["camel", "Case's", " ", "123", "4"]),
        ("deepseek-v3", "a_b 1234你好x", ["a", "_b", " ", "123", "4", "你好", "x"]),
        ("deepseek-coder", "a b\n12", ["a", " b", "\n", "1", "2"]),
        ("kimi-k2", "你好ab", ["你好", "ab"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
        ("tiny_aya", "12345", ["12", "345"]),
        ("superbpe", "1234567", ["1", "234", "567"]),
        ("bloom", "a b, c", ["a", " b", ",", " c"]),
        ("viking", "a 12", ["a", " ", "1", "2"]),
        ("chameleon", "a.b  12", ["a", ".", "b", "  ", "1", "2"]),
        ("laguna", "a \n b", ["a", " ", "\n", " b"]),
        ("jais-2", "a" + " " * 5 + "b", ["a", "    ", " b"]),
        ("youtu", "한국어ab", ["한국어", "ab"]),
        ("exaone-moe", "ab cd", ["ab cd"]),
        ("seed-coder", "a!\nb", ["a", "!", "\n", "b"]),
        ("bailingmoe", "a \n \nb", ["a", " \n \n", "b"]),
    ],
)
def test_pieces(name: str, text: str, pieces: list[str]) -> None:
    assert cut(name, text) == spelled(*pieces)


def test_every_name_that_llama_cpp_knows_has_a_pattern_that_compiles() -> None:
    for name in BYTE_PRES:
        text = "Hello, World's 1234567 你好 \r\n\n  é!!"
        assert "".join(cut(name, text)) == spell(text.encode()), name
    recorded = {file.split("vocab-")[1].split(".gguf")[0] for file in carriers.files("llama.cpp") if ".inp" in file}
    assert recorded - {"bert-bge", "gemma-4", "llama-spm", "phi-3"} <= BYTE_PRES.keys()


@pytest.mark.parametrize("name", ["afmoe", "tiny_aya", "superbpe"])
def test_long_numbers_are_cut_in_threes_from_the_right_and_soon(name: str) -> None:
    assert all(len(piece) == 3 for piece in cut(name, "7" * 1200))
    assert cut(name, "7" * 1000)[:2] == ["7", "777"]
    assert "".join(cut(name, "7" * 60_000)) == "7" * 60_000  # without a bound: half a minute
