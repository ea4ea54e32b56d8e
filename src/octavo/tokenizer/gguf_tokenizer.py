"""The vocabulary inside a GGUF file -> a tokenizers.Tokenizer, kept as tokenizer.json in a cache folder.

A GGUF names its pre-tokenizer and lists tokens, types, scores and merges; normalizer, split pattern and decoder are
those of the published tokenizer.json, written down here by the name in `tokenizer.ggml.pre`. It knows the meaning of
the keys; it does not know how a GGUF file is read, nor what encode and decode do.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from octavo.errors import CheckpointError, UnsupportedModel

log = logging.getLogger(__name__)

KEY = "tokenizer.ggml."
VERSION = 1  # of this conversion; a change makes new cache entries

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
SPACE = "▁"  # how SentencePiece spells a space

# A GGUF has no generation_config, so these control tokens also end a turn, as in llama.cpp.
END_OF_TURN = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"}
)


@dataclass(frozen=True)
class BytePre:
    """How a byte-level BPE family cuts text before merging.

    split: pattern of the published tokenizer.json, None for GPT-2's own inside ByteLevel. digits: every digit alone
    first. nfc: normalized to NFC first. whole_words: a piece that is a token is taken whole, without its merges.
    add_bos: what the family does when the file does not say.
    """

    split: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)

BYTE_PRES: Mapping[str, BytePre] = {
    "default": BytePre(),
    "gpt-2": BytePre(),
    "smollm": BytePre(digits=True),
    "qwen2": BytePre(_QWEN2, nfc=True),
    "llama-bpe": BytePre(_LLAMA3, whole_words=True, add_bos=True),
    "tekken": BytePre(_TEKKEN, whole_words=True, add_bos=True),  # Mistral Nemo and later
}


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
    if cache_folder is None:
        return build(metadata if whole is None else whole())
    entry = cache_folder / _entry_name(metadata, content_digest(metadata) if digest is None else digest)
    kept = _read_entry(entry)
    if kept is not None:
        return kept
    built = build(metadata if whole is None else whole())
    _write_entry(entry, built)
    return built


def build(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The same without a cache."""
    check_kind(metadata)
    tokens = _strings(metadata, "tokens")
    if not tokens:
        raise CheckpointError(f"{KEY}tokens is empty: this file holds no vocabulary.", key=f"{KEY}tokens")
    types = _types(metadata, len(tokens))
    if metadata[f"{KEY}model"] == "llama":
        return _sentencepiece(metadata, tokens, types)
    return _byte_level(metadata, tokens, types)


def check_kind(metadata: Mapping[str, Any]) -> None:
    """Refuses a kind of vocabulary or a pre-tokenizer that is not built, by key and with the list of what is."""
    model = metadata.get(f"{KEY}model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModel(
            f"{KEY}model is {model!r:.60}, which is not supported. Supported: gpt2 (byte-level BPE), llama "
            "(SentencePiece BPE). Use the model's Hugging Face folder with its tokenizer.json instead.",
            param=f"{KEY}model",
        )
    pre = metadata.get(f"{KEY}pre", "default")
    if model == "gpt2" and (not isinstance(pre, str) or pre not in BYTE_PRES):
        raise UnsupportedModel(
            f"{KEY}pre is {pre!r:.60}, which is not supported. Supported: {', '.join(sorted(BYTE_PRES))}. Use the "
            "model's Hugging Face folder with its tokenizer.json instead.",
            param=f"{KEY}pre",
        )


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """`add_bos_token`, or what the family does where the file does not say."""
    stated = metadata.get(f"{KEY}add_bos_token")
    if stated is not None:
        return bool(stated)
    if metadata.get(f"{KEY}model") == "llama":
        return True
    return BYTE_PRES[metadata.get(f"{KEY}pre", "default")].add_bos


def _entry_name(metadata: Mapping[str, Any], digest: str) -> str:
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


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    pre = BYTE_PRES[metadata.get(f"{KEY}pre", "default")]
    # Unused entries pad the embedding table ("[PAD151665]"); the published vocabularies do not list them.
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    model = _bpe(vocab, _stated_merges(metadata, vocab), fuse_unk=False, ignore_merges=pre.whole_words)
    tokenizer = tokenizers.Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    # Converters write user-defined runs of spaces (Gemma) with real spaces; the model sees every space as SPACE.
    tokens = [SPACE * len(t) if len(t) > 1 and not t.strip(" ") else t for t in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    if f"{KEY}merges" in metadata:
        merges = _stated_merges(metadata, vocab)
    else:
        merges = _merges_from_scores(tokens, types, _scores(metadata, len(tokens)))
    unknown = metadata.get(f"{KEY}unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise CheckpointError(
            f"{KEY}unknown_token_id is {unknown!r:.60}, outside of {len(tokens)} tokens.", key=f"{KEY}unknown_token_id"
        )
    model = _bpe(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=tokens[unknown])
    tokenizer = tokenizers.Tokenizer(model)
    prefix = bool(metadata.get(f"{KEY}add_space_prefix", True))
    spell = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spell]) if prefix else spell
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # the library raises bare Exception for every inconsistency between the two
        raise CheckpointError(
            f"{KEY}merges does not fit {KEY}tokens: {str(error)[:200]}", key=f"{KEY}merges"
        ) from error


def _add_tokens(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: Sequence[int]) -> None:
    """Control tokens become special; user-defined ones are found whole in any text but are part of it."""
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == kind and token
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)


def _stated_merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for index, line in enumerate(_strings(metadata, "merges")):
        at = line.find(" ", 1)  # from 1: the left part is never empty, but may begin with a space
        left, right = line[:at], line[at + 1 :]
        if at < 0 or left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"{KEY}merges[{index}] is {line[:80]!r}: not two known tokens whose union is a token.",
                key=f"{KEY}merges",
            )
        merges.append((left, right))
    return merges


def _merges_from_scores(tokens: list[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies: best result first, then the order of the left part's id.

    Source: the rule by which the published tokenizer.json files were made from tokenizer.model (every cut of a piece
    into two pieces, sorted by score); user-defined pieces come first, since SentencePiece never cuts them.
    """
    ids = {token: i for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    order = sorted(ids.values(), key=lambda i: (types[i] != USER_DEFINED, -scores[i] if types[i] == NORMAL else 0.0, i))
    merges: list[tuple[str, str]] = []
    for i in order:
        token = tokens[i]
        cuts = [
            (ids[token[:at]], ids[token[at:]]) for at in range(1, len(token)) if token[:at] in ids and token[at:] in ids
        ]
        merges.extend((tokens[left], tokens[right]) for left, right in sorted(cuts))
    return merges


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(KEY + name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{KEY}{name} is missing or not an array of strings.", key=KEY + name)
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


def _is_array(value: Any, count: int, kinds: tuple[type, ...]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == count and all(isinstance(item, kinds) for item in value)


def _read_entry(entry: Path) -> tokenizers.Tokenizer | None:
    """The kept tokenizer; None if there is none or its checksum does not hold."""
    try:
        content = (entry / "tokenizer.json").read_bytes()
        stated = (entry / "sha256").read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() != stated:
        log.warning("tokenizer cache %s is damaged and is built again", entry)
        return None
    return tokenizers.Tokenizer.from_buffer(content)


def _write_entry(entry: Path, tokenizer: tokenizers.Tokenizer) -> None:
    content = tokenizer.to_str().encode()
    try:
        entry.mkdir(parents=True, exist_ok=True)
        _replace(entry / "tokenizer.json", content)
        _replace(entry / "sha256", hashlib.sha256(content).hexdigest().encode())
    except OSError as error:  # a read-only cache costs time at every start, not the start itself
        log.warning("cannot keep the tokenizer in %s: %s", entry, error)


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, also when two processes write at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
