"""A vocabulary as lists -> a tokenizers.Tokenizer: byte-level BPE, SentencePiece BPE, Unigram and WordPiece.

What every file format comes down to: tokens with types and scores, and merges, stated or implied. It knows the shapes
that the families' published tokenizer.json have; it knows no file. A list that does not fit raises VocabularyFault,
which names the part, so that the reader of a file can say where that part stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

from octavo.tokenizer.pre_tokenizers import BytePre, make_pre_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    1,
    2,
    3,
    4,
    5,
    6,
)  # SentencePiece's, and tokenizer.ggml.token_type
SPACE = "▁"  # how SentencePiece spells a space
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))

# Control tokens that end a turn where no generation_config says which do, as in llama.cpp.
END_OF_TURN = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"}
    | {"<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>"}
    | {"<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|eot|>", "<|eom|>"}
)


class VocabularyFault(Exception):
    """part: `tokens`, `merges`, `scores` or another list that does not fit."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part
        self.message = message


def is_fault(error: BaseException) -> bool:
    """Whether the library tripped over its input: any Exception, or a panic of Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@dataclass(frozen=True)
class VocabularyFile:
    """A file that is no tokenizer.json: what builds its tokenizer, and what it says beside the vocabulary.

    special: names as in tokenizer_config.json -> tokens.
    """

    path: Path
    build: Callable[[], tokenizers.Tokenizer]
    special: Mapping[str, str]
    add_bos: bool = False
    add_eos: bool = False


@dataclass(frozen=True)
class Pieces:
    """tokens by id, their types, and in SentencePiece vocabularies their scores."""

    tokens: list[str]
    types: Sequence[int]
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class SentenceRules:
    """What a SentencePiece model does before it looks for pieces.

    prefix: a space in front of every text. collapse: runs of spaces become one, and none stays at the ends. charsmap:
    its compiled normalization, empty for none.
    """

    prefix: bool = True
    collapse: bool = False
    charsmap: bytes = b""


def byte_level(pieces: Pieces, merges: list[tuple[str, str]], pre: BytePre) -> tokenizers.Tokenizer:
    """Byte-level BPE; a byte is spelled as one printable character."""
    # Unused entries pad the embedding table ("[PAD151665]"); the published vocabularies do not list them.
    vocab = {token: i for i, token in enumerate(pieces.tokens) if pieces.types[i] != UNUSED}
    tokenizer = tokenizers.Tokenizer(_bpe(vocab, merges, fuse_unk=False, ignore_merges=pre.whole_words))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = make_pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    add_listed_tokens(tokenizer, pieces)
    return tokenizer


def sentencepiece_bpe(
    pieces: Pieces, merges: list[tuple[str, str]] | None, unknown: int, rules: SentenceRules
) -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback. merges None: those that the scores imply."""
    # Converters write user-defined runs of spaces (Gemma) with real spaces; the model sees every space as SPACE.
    tokens = [SPACE * len(t) if len(t) > 1 and not t.strip(" ") else t for t in pieces.tokens]
    pieces = Pieces(tokens, pieces.types, pieces.scores)
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = merges_from_scores(pieces) if merges is None else merges
    tokenizer = tokenizers.Tokenizer(_bpe(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=tokens[unknown]))
    spell: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    if rules.prefix:
        spell.insert(0, normalizers.Prepend(SPACE))
    steps = [*_clean(rules), *spell]
    tokenizer.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = _sentencepiece_decoder(rules.prefix)
    add_listed_tokens(tokenizer, pieces)
    return tokenizer


def unigram(pieces: Pieces, unknown: int, rules: SentenceRules, mask: str | None = None) -> tokenizers.Tokenizer:
    """SentencePiece Unigram; bytes as fallback where the vocabulary has all 256. mask: takes the space before it.

    Each word is cut by itself unless some piece goes over a word's end.
    """
    fallback = set(pieces.tokens) >= _BYTES
    try:
        vocab = list(zip(pieces.tokens, pieces.scores, strict=True))
        tokenizer = tokenizers.Tokenizer(Unigram(vocab, unk_id=unknown, byte_fallback=fallback))
    except BaseException as error:
        if not is_fault(error):
            raise
        raise VocabularyFault("scores", f"do not fit the tokens: {str(error)[:200]}") from error
    words = not any(
        SPACE in token[1:] for token, kind in zip(pieces.tokens, pieces.types, strict=True) if kind == NORMAL
    )
    spaces: pre_tokenizers.PreTokenizer = pre_tokenizers.Metaspace(
        SPACE, "always" if rules.prefix else "never", split=words
    )
    if words and rules.collapse:  # as T5 and XLM-RoBERTa are published
        rules = SentenceRules(rules.prefix, False, rules.charsmap)
        spaces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    tokenizer.pre_tokenizer = spaces
    steps = _clean(rules)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = _sentencepiece_decoder(rules.prefix)
    add_listed_tokens(tokenizer, pieces, lstrip={mask} if mask else ())
    return tokenizer


def word_piece(
    pieces: Pieces, unknown: int, lowercase: bool = True, strip_accents: bool | None = None
) -> tokenizers.Tokenizer:
    """WordPiece as BERT has it: words and punctuation apart, `##` in front of what goes on with a word."""
    vocab = {token: i for i, token in enumerate(pieces.tokens)}
    try:
        model = WordPiece(vocab, unk_token=pieces.tokens[unknown], max_input_chars_per_word=100)
    except BaseException as error:
        if not is_fault(error):
            raise
        raise VocabularyFault("tokens", str(error)[:200]) from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(True, True, strip_accents, lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    add_listed_tokens(tokenizer, pieces)
    return tokenizer


def surround(
    tokenizer: tokenizers.Tokenizer,
    before: str | None,
    after: str | None,
    between: Sequence[str] = (),
    second_type: int = 1,
) -> None:
    """Sets what add_special_tokens puts around a text.

    between: what stands between two texts, else the end of one and the beginning of the next. second_type: the type id
    of the second text. Raises VocabularyFault for a token that is not in the vocabulary.
    """
    used = {token: tokenizer.token_to_id(token) for token in (before, after, *between) if token is not None}
    missing = [token for token, id_ in used.items() if id_ is None]
    if missing:
        raise VocabularyFault("tokens", f"lack the special tokens {missing}")
    start, end = ([] if token is None else [token] for token in (before, after))
    last = [f"{token}:{second_type}" for token in end] if between else end
    try:  # the pieces go in as a list: a token's text may hold spaces
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *(between or [*end, *start]), f"$B:{second_type}", *last],
            special_tokens=list(used.items()),
        )
    except Exception as error:  # a token with a colon or a dollar; the library raises bare Exception
        raise VocabularyFault("tokens", f"have special tokens that cannot be put around a text: {error}") from error


def add_listed_tokens(tokenizer: tokenizers.Tokenizer, pieces: Pieces, lstrip: Sequence[str] | set[str] = ()) -> None:
    """Control tokens become special; user-defined ones are found whole in any text but are part of it.

    lstrip: those that swallow the spaces before them. Phi-3's are known by its placeholders and swallow those behind.
    """
    rstrip = set(pieces.tokens) - {"<unk>", "<s>", "<|endoftext|>"} if "<|placeholder1|>" in pieces.tokens else set()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(
                token, normalized=False, special=special, lstrip=token in lstrip, rstrip=special and token in rstrip
            )
            for token, type_ in zip(pieces.tokens, pieces.types, strict=True)
            if type_ == kind and token
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)


def turn_ends(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids of the special tokens in END_OF_TURN."""
    special = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = END_OF_TURN & special.keys()
    if "<|return|>" in named:
        named -= {"<|end|>"}  # Harmony: it ends a message of an answer, not the answer
    return sorted(special[token] for token in named)


def merges_from_scores(pieces: Pieces) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies: best result first, then the order of the left part's id.

    Source: the rule by which the published tokenizer.json files were made from tokenizer.model (every cut of a piece
    into two pieces, sorted by score); user-defined pieces come first, since SentencePiece never cuts them.
    """
    tokens, types, scores = pieces.tokens, pieces.types, pieces.scores
    ids = {token: i for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    order = sorted(ids.values(), key=lambda i: (types[i] != USER_DEFINED, -scores[i] if types[i] == NORMAL else 0.0, i))
    return _cuts([tokens[i] for i in order], ids)


def merges_from_ranks(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The merges of a vocabulary whose ids are ranks (tiktoken), spelled in GPT-2's alphabet."""
    return _cuts(tokens, {token: i for i, token in enumerate(tokens)})


def _cuts(tokens: Sequence[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """For each token the pairs that make it, by the ids of their parts."""
    merges: list[tuple[str, str]] = []
    for token in tokens:
        cuts = [
            (ids[token[:at]], ids[token[at:]], at)
            for at in range(1, len(token))
            if token[:at] in ids and token[at:] in ids
        ]
        merges.extend((token[:at], token[at:]) for _, _, at in sorted(cuts))
    return merges


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return BPE(vocab=vocab, merges=merges, **options)
    except BaseException as error:
        if not is_fault(error):
            raise
        raise VocabularyFault("merges", f"do not fit the tokens: {str(error)[:200]}") from error


def _clean(rules: SentenceRules) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if rules.charsmap:
        try:
            steps.append(normalizers.Precompiled(rules.charsmap))
        except BaseException as error:
            if not is_fault(error):
                raise
            raise VocabularyFault("precompiled_charsmap", f"cannot be read: {str(error)[:200]}") from error
    if rules.collapse:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _sentencepiece_decoder(prefix: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
