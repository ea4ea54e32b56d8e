"""Every way to cut a sequence of ids gives pieces that join to the full decode, and no piece ever changes."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import UnsupportedModel
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import Tokenizer, TokenizerFacts
from tests.tokenizer import vocabularies
from tests.tokenizer.corpus import documents

KINDS = ["smollm2", "bytes", "sentencepiece", "no prefix"]


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "smollm2":
        return Tokenizer.from_gguf(vocabularies.metadata(vocabularies.SMOLLM2))
    if kind == "bytes":
        return Tokenizer.from_gguf(vocabularies.byte_level("qwen2"))
    prefix = {"tokenizer.ggml.add_space_prefix": kind == "sentencepiece"}
    return Tokenizer.from_gguf({**vocabularies.sentencepiece(), **prefix})


def pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool, prompt: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip, prompt)
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    out = [detokenizer.push(ids[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    return [*out, detokenizer.finish()]


# Low ids are special tokens and, in the SentencePiece vocabulary, the 256 bytes; the highest are in no small table.
ids_lists = st.lists(st.one_of(st.integers(0, 260), st.integers(0, 3100)), max_size=25)
cut_lists = st.lists(st.integers(0, 25), max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(ids=ids_lists, cuts=cut_lists, skip=st.booleans())
def test_any_ids_any_cut(kind: str, ids: list[int], cuts: list[int], skip: bool) -> None:
    tokenizer = tokenizer_of(kind)
    full = tokenizer.decode(ids, skip)
    assert "".join(pieces(tokenizer, ids, cuts, skip, [])) == full
    library = tokenizer.backend.decode(ids, skip_special_tokens=skip)
    if kind in ("smollm2", "bytes") or "\ufffd" not in full:
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


def test_other_decoders_are_refused() -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = tokenizers.decoders.WordPiece()
    tokenizer = Tokenizer(backend, TokenizerFacts())
    assert tokenizer.decode([1, 2]) == "ab"
    with pytest.raises(UnsupportedModel, match="decoder"):
        Detokenizer(tokenizer)
