"""Mutated vocabularies: one clear error of ours, or a tokenizer that works."""

import random
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import vocabularies
from tests.tokenizer.test_families import metadata

TEXT = "Hello <tool> wörld 123"

ODD: list[Any] = [
    None,
    -1,
    0,
    5,
    2**40,
    1.5,
    float("nan"),
    float("inf"),
    "",
    [],
    {},
    True,
    "x" * 1000,
    b"x",
    ["a"],
    [1],
]
PLACES = ["\x00", " ", "\ud800", "a" * 70_000, "a b c"]
MORE_KEYS = ["add_eos_token", "add_sep_token", "mask_token_id", "precompiled_charsmap", "remove_extra_whitespaces"]
MORE_KEYS += [
    "normalizer.strip_accents",
    "add_bos_token",
    "add_space_prefix",
    "eot_token_id",
    "unknown_token_id",
    "pre",
    "scores",
]


def mutate(data: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    changed = dict(data)
    for _ in range(random_.randint(1, 2)):
        key = random_.choice([*data, *(f"tokenizer.ggml.{name}" for name in MORE_KEYS)])
        value = changed.get(key)
        if isinstance(value, list) and value and random_.random() < 0.8:
            changed[key] = array = list(value)
            for _ in range(random_.randint(1, 3)):
                array[random_.randrange(len(array))] = random_.choice([*ODD, *PLACES, random_.choice(array)])
            if random_.random() < 0.2:
                array.pop()
        else:
            changed[key] = random_.choice([*ODD, *PLACES])
    return changed


@pytest.mark.parametrize("part", range(4))
def test_mutated_vocabularies(part: int) -> None:
    random_ = random.Random(part)
    refused = 0
    for _ in range(60):
        kinds = [vocabularies.byte_level("qwen2"), vocabularies.byte_level("llama-bpe"), vocabularies.sentencepiece()]
        kinds += [vocabularies.word_piece(), vocabularies.unigram()]
        data = mutate(random_.choice(kinds), random_)
        try:
            tokenizer = Tokenizer.from_gguf(data)
            tokenizer.encode(TEXT, add_special_tokens=True)
        except OctavoError as error:
            refused += 1
            assert error.message.startswith(("tokenizer.ggml.", "the model's tokenizer")) and len(error.message) < 600
            continue
        ids = tokenizer.encode(TEXT, add_special_tokens=True)
        assert isinstance(tokenizer.decode(ids), str)
        assert all(0 <= id_ < tokenizer.vocab_size for id_ in (*ids, *tokenizer.eos_ids))
    assert refused > 10


@pytest.mark.parametrize("part", range(4))
def test_mutated_normalization_maps(part: int) -> None:
    """The library reads such a map without checking its links: what it trips over ends one request, not the process."""
    whole = metadata("nomic-bert-moe")["tokenizer.ggml.precompiled_charsmap"]
    random_ = random.Random(part)
    broken = 0
    for _ in range(12):
        charsmap = list(whole)
        for _ in range(200):
            charsmap[random_.randrange(4, len(charsmap))] = random_.randrange(-128, 128)
        try:
            tokenizer = Tokenizer.from_gguf(
                {
                    **vocabularies.unigram(),
                    "tokenizer.ggml.precompiled_charsmap": charsmap[: random_.choice([5, 900, None])],
                }
            )
            tokenizer.encode("".join(map(chr, range(1, 0x3000))) + TEXT)
        except OctavoError:
            broken += 1
    assert broken > 0
