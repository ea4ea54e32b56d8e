"""The vocabulary inside a GGUF file -> a tokenizers.Tokenizer, kept as tokenizer.json in a cache folder.

It knows the meaning of the `tokenizer.ggml.*` keys; vocabulary builds what they describe. It does not know how a GGUF
file is read, nor what encode and decode do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import tokenizers

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.tokenizer import vocabulary
from octavo.tokenizer.kept import kept_or_built
from octavo.tokenizer.pre_tokenizers import BYTE_PRES, SENTENCEPIECE_PRES, BytePre
from octavo.tokenizer.vocabulary import NORMAL, SPACE, Pieces, SentenceRules, VocabularyFault, surround

KEY = "tokenizer.ggml."
VERSION = 2  # of this conversion; a change makes new cache entries

MODELS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece BPE",
    "gemma4": "SentencePiece BPE with merges",
    "bert": "WordPiece",
    "t5": "SentencePiece Unigram",
}

# Name as in tokenizer_config.json -> the middle of `tokenizer.ggml.*_token_id`; "seperator" is how the key is spelled.
SPECIAL_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_BERT_IDS = {"unknown": 100, "cls": 101, "seperator": 102}  # where the file does not say; also llama.cpp's


def load(
    metadata: Mapping[str, Any],
    cache_folder: Path | None,
    digest: str | None = None,
    whole: Callable[[], Mapping[str, Any]] | None = None,
) -> tokenizers.Tokenizer:
    """The tokenizer that the `tokenizer.ggml.*` keys describe, from the cache folder where it is kept.

    digest: names the content, if the caller has it already; then a hit reads no array of `metadata`. whole: where
    `metadata` lacks the arrays, gives all of it when the tokenizer must be built. A kept file whose checksum is wrong
    is built again. Raises CheckpointError (broken arrays) and UnsupportedModel (unknown kind).
    """
    check_kind(metadata)
    entry = None
    if cache_folder is not None:
        entry = cache_folder / entry_name(metadata, content_digest(metadata) if digest is None else digest)
    return kept_or_built(entry, lambda: build(metadata if whole is None else whole()))


def build(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The same without a cache."""
    check_kind(metadata)
    tokens = _strings(metadata, "tokens")
    if not tokens:
        raise CheckpointError(f"{KEY}tokens is empty: this file holds no vocabulary.", key=f"{KEY}tokens")
    try:
        return _build(metadata, tokens, _types(metadata, len(tokens)))
    except VocabularyFault as fault:
        raise CheckpointError(f"{KEY}{fault.part} {fault.message}", key=KEY + fault.part) from fault


def check_kind(metadata: Mapping[str, Any]) -> None:
    """Refuses a kind of vocabulary or a pre-tokenizer that is not built, by key and with the list of what is."""
    model = metadata.get(f"{KEY}model")
    if not isinstance(model, str) or model not in MODELS:
        known = ", ".join(f"{name} ({kind})" for name, kind in MODELS.items())
        raise UnsupportedModel(
            f"{KEY}model is {model!r:.60}, which is not supported. Supported: {known}. Use the model's Hugging Face "
            "folder with its tokenizer.json instead.",
            param=f"{KEY}model",
        )
    pre = metadata.get(f"{KEY}pre", "default")
    if model == "gpt2" and (not isinstance(pre, str) or pre not in BYTE_PRES.keys() | SENTENCEPIECE_PRES):
        raise UnsupportedModel(
            f"{KEY}pre is {pre!r:.60}, which is not known.{_nearest(pre)} Use the model's Hugging Face folder with its "
            "tokenizer.json instead.",
            param=f"{KEY}pre",
        )


def _nearest(pre: object) -> str:
    import difflib  # for this error only

    close = difflib.get_close_matches(str(pre)[:60], BYTE_PRES, 3, 0.5)
    return f" Known and near it: {', '.join(close)}." if close else ""


def special_tokens(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Names as in tokenizer_config.json -> the tokens that the file names by id."""
    defaults = _BERT_IDS if metadata.get(f"{KEY}model") == "bert" else {}
    found = {
        name: token_at(backend, {f"{KEY}{key}_token_id": defaults.get(key), **metadata}, f"{KEY}{key}_token_id")
        for name, key in SPECIAL_KEYS.items()
    }
    return {name: token for name, token in found.items() if token is not None}


def token_at(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], key: str) -> str | None:
    """The token whose id stands under `key`; None where nothing does."""
    id_ = metadata.get(key)
    if id_ is None:
        return None
    token: str | None = backend.id_to_token(id_) if isinstance(id_, int) and 0 <= id_ < 2**31 else None
    if token is None:
        raise CheckpointError(f"{key} is {id_!r:.60}, which is no token of the vocabulary.", key=key)
    return token


def eos_ids(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any]) -> list[int | None]:
    """Every id that ends a turn: those that the file names, then the control tokens known for it."""
    ends = [token_at(backend, metadata, f"{KEY}{name}_token_id") for name in ("eos", "eot", "eom")]
    return [*(backend.token_to_id(token) for token in ends if token is not None), *vocabulary.turn_ends(backend)]


def set_surroundings(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """What add_special_tokens adds: as the file states by `add_bos_token` and so on, else as its kind does."""
    model, pre = metadata.get(f"{KEY}model"), _byte_pre(metadata)
    bos_default = model in ("llama", "gemma4", "bert") or pre.add_bos
    add_bos = bool(metadata.get(f"{KEY}add_bos_token", bos_default))
    add_eos = bool(metadata.get(f"{KEY}add_eos_token", model == "t5"))
    add_sep = bool(metadata.get(f"{KEY}add_sep_token", model == "bert" or pre.add_sep))
    begin = special.get("cls_token", special.get("bos_token")) if model == "bert" else special.get("bos_token")
    eos = special.get("eos_token") if add_eos else None
    end = special.get("sep_token", eos) if add_sep else eos
    bos = begin if add_bos else None
    try:
        if model == "bert" and end is not None:
            surround(backend, bos, end, between=[end])
        elif (model == "t5" or pre.add_sep) and end is not None:
            surround(backend, bos, end, between=[end] if bos is None else [end, end], second_type=0)
        else:
            surround(backend, bos, end)
    except VocabularyFault as fault:
        raise CheckpointError(f"{KEY}tokens {fault.message}", key=f"{KEY}tokens") from fault


def _byte_pre(metadata: Mapping[str, Any]) -> BytePre:
    pre = metadata.get(f"{KEY}pre", "default")
    return BYTE_PRES.get(pre, BytePre()) if metadata.get(f"{KEY}model") == "gpt2" else BytePre()


def entry_name(metadata: Mapping[str, Any], digest: str) -> str:
    """Also names the small keys, this conversion and the library, whatever the caller's digest covers."""
    scalars = sorted(
        (key, repr(value))
        for key, value in metadata.items()
        if key.startswith(KEY) and isinstance(value, (str, int, float))
    )
    return hashlib.sha256(repr((VERSION, tokenizers.__version__, digest, scalars)).encode()).hexdigest()


def content_digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over every `tokenizer.ggml.*` key: equal digests, equal tokenizers."""
    total = hashlib.sha256()
    for key in sorted(key for key in metadata if key.startswith(KEY)):
        value = metadata[key]
        total.update(f"\n{key}\n".encode())
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            total.update(repr(value).encode())
        else:
            total.update("\0".join(map(str, value)).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _build(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    model, pre = metadata[f"{KEY}model"], metadata.get(f"{KEY}pre", "default")
    if model == "gpt2" and pre in BYTE_PRES:
        return vocabulary.byte_level(Pieces(tokens, types), _byte_merges(metadata, tokens, pre), BYTE_PRES[pre])
    if model in ("gpt2", "gemma4"):
        merges = _stated_merges(metadata, set(tokens))
        unknown = _id(metadata, "unknown", len(tokens), 0)
        return vocabulary.sentencepiece_bpe(Pieces(tokens, types), merges, unknown, SentenceRules(prefix=False))
    if model == "bert":
        strip = metadata.get(f"{KEY}normalizer.strip_accents")
        lowercase = bool(metadata.get(f"{KEY}normalizer.lowercase", True))
        unknown = _id(metadata, "unknown", len(tokens), _BERT_IDS["unknown"])
        pieces = Pieces([_word_piece(token) for token in tokens], types)
        return vocabulary.word_piece(pieces, unknown, lowercase, None if strip is None else bool(strip))
    pieces = Pieces(tokens, types, _scores(metadata, len(tokens)))
    rules = SentenceRules(
        prefix=bool(metadata.get(f"{KEY}add_space_prefix", True)),
        collapse=bool(metadata.get(f"{KEY}remove_extra_whitespaces", False)),
        charsmap=_charsmap(metadata),
    )
    if model == "t5":
        mask = tokens[_id(metadata, "mask", len(tokens), 0)] if f"{KEY}mask_token_id" in metadata else None
        return vocabulary.unigram(pieces, _id(metadata, "unknown", len(tokens), 2), rules, mask)
    stated = _stated_merges(metadata, set(tokens)) if f"{KEY}merges" in metadata else None
    return vocabulary.sentencepiece_bpe(pieces, stated, _id(metadata, "unknown", len(tokens), 0), rules)


def _word_piece(token: str) -> str:
    """llama.cpp marks the beginnings of words, the published vocabulary their continuations."""
    if token.startswith(SPACE):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else "##" + token


def _byte_merges(metadata: Mapping[str, Any], tokens: list[str], pre: str) -> list[tuple[str, str]]:
    if pre == "kimi-k2" and f"{KEY}merges" not in metadata:  # its ids are ranks
        return vocabulary.merges_from_ranks(tokens)
    return _stated_merges(metadata, set(tokens))


def _stated_merges(metadata: Mapping[str, Any], known: set[str]) -> list[tuple[str, str]]:
    merges = []
    for index, line in enumerate(_strings(metadata, "merges")):
        at = line.find(" ", 1)  # from 1: the left part is never empty, but may begin with a space
        left, right = line[:at], line[at + 1 :]
        if at < 0 or left not in known or right not in known or left + right not in known:
            raise CheckpointError(
                f"{KEY}merges[{index}] is {line[:80]!r}: not two known tokens whose union is a token.",
                key=f"{KEY}merges",
            )
        merges.append((left, right))
    return merges


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(KEY + name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{KEY}{name} is missing or not an array of strings.", key=KEY + name)
    return value


def _id(metadata: Mapping[str, Any], name: str, count: int, default: int) -> int:
    value = metadata.get(f"{KEY}{name}_token_id", default)
    if not isinstance(value, int) or not 0 <= value < count:
        raise CheckpointError(
            f"{KEY}{name}_token_id is {value!r:.60}, outside of {count} tokens.", key=f"{KEY}{name}_token_id"
        )
    return value


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    value = metadata.get(f"{KEY}scores")
    if not _is_array(value, count, (int, float)) or any(math.isnan(score) for score in value):
        raise CheckpointError(f"{KEY}scores is not one number for each of {count} tokens.", key=f"{KEY}scores")
    return [float(score) for score in value]


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    value = metadata.get(f"{KEY}token_type", [NORMAL] * count)
    if not _is_array(value, count, (int,)):
        raise CheckpointError(f"{KEY}token_type is not one integer for each of {count} tokens.", key=f"{KEY}token_type")
    return list(value)


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    value = metadata.get(f"{KEY}precompiled_charsmap", b"")
    try:
        return bytes(value) if isinstance(value, bytes) else bytes(byte & 0xFF for byte in value)  # int8 or uint8
    except TypeError as error:
        raise CheckpointError(
            f"{KEY}precompiled_charsmap is no array of bytes.", key=f"{KEY}precompiled_charsmap"
        ) from error


def _is_array(value: Any, count: int, kinds: tuple[type, ...]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == count and all(isinstance(item, kinds) for item in value)
