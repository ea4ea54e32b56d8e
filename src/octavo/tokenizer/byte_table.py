"""The bytes of every token, and which rule joins them to text. Knows decoders of tokenizer.json; no ids' meaning.

Byte-level BPE spells a byte as one printable character; SentencePiece spells a space as U+2581 and a byte as `<0xHH>`;
WordPiece leaves spaces out. Under the latter rules the first token of a text stands for other bytes than later ones.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Any

import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DecoderKind(enum.Enum):
    BYTE_LEVEL = "byte-level"  # bytes joined, then UTF-8
    SENTENCEPIECE = "sentencepiece"  # the same with U+2581 for a space
    SENTENCEPIECE_STRIP = "sentencepiece, first space dropped"
    METASPACE = "U+2581 is a space, dropped in the first token"
    WORDPIECE = "a space before each token but those that go on with a word"
    WORDPIECE_CLEANED = "the same without spaces before punctuation"
    SPACED = "a space between tokens"
    OTHER = "other"  # only the library decodes it


SPACED_KINDS = (DecoderKind.WORDPIECE, DecoderKind.WORDPIECE_CLEANED, DecoderKind.SPACED)
HEADED_KINDS = (*SPACED_KINDS, DecoderKind.METASPACE)  # where the first token differs
# What WordPiece's decoder replaces, in this order, within one token and the space before it.
_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")) + (
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def decoder_kind(backend: tokenizers.Tokenizer) -> DecoderKind:
    """The rule of a tokenizer.json's `decoder`."""
    if backend.decoder is None:
        return DecoderKind.SPACED
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps = state.get("decoders", [state])
    kinds = [step.get("type") for step in steps]
    if kinds == ["Metaspace"] and steps[0].get("replacement") == "▁":
        return DecoderKind.SENTENCEPIECE if steps[0].get("prepend_scheme") == "never" else DecoderKind.METASPACE
    if kinds == ["WordPiece"] and steps[0].get("prefix") == "##":
        return DecoderKind.WORDPIECE_CLEANED if steps[0].get("cleanup") else DecoderKind.WORDPIECE
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return DecoderKind.BYTE_LEVEL
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0].get("pattern") == {"String": "▁"}:
        rest = steps[3:]
        if not rest:
            return DecoderKind.SENTENCEPIECE
        if rest == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return DecoderKind.SENTENCEPIECE_STRIP
    return DecoderKind.OTHER


def head_bytes(token: str, kind: DecoderKind) -> bytes:
    """The bytes of the first token of a text, under HEADED_KINDS."""
    if kind is DecoderKind.METASPACE:
        return token.replace("▁", "").encode()
    return _cleaned(token).encode() if kind is DecoderKind.WORDPIECE_CLEANED else token.encode()


def byte_table(backend: tokenizers.Tokenizer, kind: DecoderKind) -> list[bytes]:
    """Bytes by id inside a text, to the last one that has a token; empty where there is none."""
    vocab = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    if kind is DecoderKind.BYTE_LEVEL:
        spelled = _byte_spelling()
        for token, id_ in vocab.items():
            try:
                table[id_] = token.translate(spelled).encode("latin-1")
            except UnicodeEncodeError:  # a character outside of the alphabet: an added token, spelled as it is
                table[id_] = token.encode()
        return table
    if kind in SPACED_KINDS:
        for token, id_ in vocab.items():
            goes_on = kind is not DecoderKind.SPACED and token.startswith("##")
            text = token[2:] if goes_on else " " + token
            table[id_] = (_cleaned(text) if kind is DecoderKind.WORDPIECE_CLEANED else text).encode()
        return table
    for token, id_ in vocab.items():
        byte = None if kind is DecoderKind.METASPACE else _BYTE_PIECE.fullmatch(token)
        table[id_] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    return table


def _cleaned(text: str) -> str:
    for before, after in _CLEANED:
        text = text.replace(before, after)
    return text


def spell(token: bytes) -> str:
    """Bytes in GPT-2's alphabet."""
    return token.decode("latin-1").translate(_SPELLED)


def _byte_spelling() -> dict[int, int]:
    """Character -> byte of GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for
    U+0100 and on. Latin-1 characters that spell no byte map outside of Latin-1, so that encoding refuses them."""
    outside = 0x10FFFF
    return dict.fromkeys(_SPELLED, outside) | {character: byte for byte, character in _SPELLED.items()}


_PLAIN = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
_SPELLED = {byte: 0x100 + n for n, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)}
