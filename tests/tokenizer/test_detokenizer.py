"""Every way to cut a sequence of ids gives pieces that join to the full decode, and no piece ever changes."""

import functools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from octavo.errors import UnsupportedModel
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import Tokenizer, TokenizerFacts
from tests.tokenizer import vocabularies
from tests.tokenizer.corpus import documents

KINDS = ["smollm2", "bytes", "sentencepiece", "no prefix", "metaspace", "metaspace, no prefix", "wordpiece"]
KINDS += ["wordpiece, not cleaned", "no decoder"]


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "smollm2":
        return Tokenizer.from_gguf(vocabularies.metadata(vocabularies.SMOLLM2))
    if kind == "bytes":
        return Tokenizer.from_gguf(vocabularies.byte_level("qwen2"))
    if kind not in ("sentencepiece", "no prefix"):
        return other_decoder(kind)
    prefix = {"tokenizer.ggml.add_space_prefix": kind == "sentencepiece"}
    return Tokenizer.from_gguf({**vocabularies.sentencepiece(), **prefix})


def other_decoder(kind: str) -> Tokenizer:
    """A small vocabulary of pieces under the decoders of tokenizer.json files beside the two usual ones."""
    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "<tool>",
        *"ab.,!?'é🙂▁",
        "do",
        "not",
        "do not",
        "n't",
        "'s",
        "'m",
        "' ",
        "x've",
    ]
    pieces = [*words, *("##" + word for word in words[4:]), *("▁" + word for word in words[4:]), "▁▁", "a▁b", "<0x41>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind.startswith("metaspace"):
        backend.decoder = decoders.Metaspace(prepend_scheme="never" if "no" in kind else "always")
    elif kind != "no decoder":
        backend.decoder = decoders.WordPiece(cleanup="not" not in kind)
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.add_tokens(["<tool>"])
    return Tokenizer(backend, TokenizerFacts())


def pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool, prompt: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip, prompt)
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    out = [detokenizer.push(ids[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    return [*out, detokenizer.finish()]


# Low ids are special tokens, all of the smallest vocabularies, and in the SentencePiece vocabulary the 256 bytes; the
# highest are in no small table.
ids_lists = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 260), st.integers(0, 3100)), max_size=25)
cut_lists = st.lists(st.integers(0, 25), max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(ids=ids_lists, cuts=cut_lists, skip=st.booleans())
def test_any_ids_any_cut(kind: str, ids: list[int], cuts: list[int], skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    full = tokenizer.decode(ids, skip)
    assert "".join(pieces(tokenizer, ids, cuts, skip, [])) == full
    library = tokenizer.backend.decode(ids, skip_special_tokens=skip)
    if kind not in ("sentencepiece", "no prefix") or "\ufffd" not in full:
        assert full == library  # else: a run of byte tokens that is no UTF-8, see Tokenizer.decode


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40), cuts=cut_lists, skip=st.booleans())
def test_any_text_any_cut(kind: str, text: str, cuts: list[int], skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, special=False)
    out = pieces(tokenizer, ids, cuts, skip, [])
    assert "".join(out) == tokenizer.backend.decode(ids, skip_special_tokens=skip)
    if kind in ("sentencepiece", "no prefix"):  # of the others one normalizes, one lacks a few bytes
        assert "".join(out) == text
        assert all(piece in text for piece in out)  # so no character was cut


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=ids_lists, ids=ids_lists, skip=st.booleans())
def test_after_a_prompt_the_text_goes_on(kind: str, prompt: list[int], ids: list[int], skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    whole = Detokenizer(tokenizer, skip)
    whole.push(prompt)
    expected = whole.push(ids) + whole.finish()
    assert "".join(pieces(tokenizer, ids, [1, 2, 3], skip, prompt)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_over_the_corpus(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for document in documents()[:40]:
        ids = tokenizer.encode(document, special=False)
        detokenizer = Detokenizer(tokenizer)
        out = "".join([detokenizer.push((id_,)) for id_ in ids]) + detokenizer.finish()
        assert out == tokenizer.backend.decode(ids, skip_special_tokens=True)


def test_a_cut_character_waits() -> None:
    tokenizer = tokenizer_of("sentencepiece")
    first, *rest = (3 + byte for byte in "🙂".encode())
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push((first,)), *(detokenizer.push((id_,)) for id_ in rest)] == ["", "", "", "🙂"]
    assert detokenizer.push((first,)) == "" and detokenizer.finish() == "\ufffd"
    completed = Detokenizer(tokenizer, prompt_ids=(first, rest[0]))
    assert completed.push(rest[1:]) == "🙂"


def test_leading_space_of_sentencepiece() -> None:
    tokenizer = tokenizer_of("sentencepiece")
    the = tokenizer.encode("the")
    assert Detokenizer(tokenizer).push(the) == "the"
    assert Detokenizer(tokenizer, prompt_ids=[1]).push(the) == "the"  # a hidden <s> is no text
    assert Detokenizer(tokenizer, prompt_ids=[1, *the]).push(the) == " the"
    assert Detokenizer(tokenizer, skip_special_tokens=False, prompt_ids=[1]).push(the) == " the"


def test_spaces_between_special_tokens() -> None:
    """As in vLLM: without them a special token right behind another one has no space in front."""
    tokenizer = tokenizer_of("wordpiece")
    ids = [1, 2, 3, 4, 2, 1]
    assert tokenizer.decode(ids, False) == "[CLS] [SEP] <tool> a [SEP] [CLS]"
    assert tokenizer.decode(ids, False, spaces_between_special_tokens=False) == "[CLS][SEP]<tool> a [SEP][CLS]"
    assert tokenizer.decode(ids, True, spaces_between_special_tokens=False) == "<tool> a"
    detokenizer = Detokenizer(tokenizer, False, spaces_between_special_tokens=False)
    assert "".join(detokenizer.push_one(id_) for id_ in ids) == "[CLS][SEP]<tool> a [SEP][CLS]"
    for kind in ("smollm2", "sentencepiece"):
        special = [1, 2, 1]
        assert tokenizer_of(kind).decode(special, False, False) == tokenizer_of(kind).decode(special, False)


def test_other_decoders_are_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a</w>": 1, "b</w>": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.BPEDecoder()
    tokenizer = Tokenizer(backend, TokenizerFacts())
    assert tokenizer.decode([1, 2]) == "a b"
    with pytest.raises(UnsupportedModel, match="decoder"):
        Detokenizer(tokenizer)
