"""The bytes of every token, and which rule joins them to text. Knows decoders of tokenizer.json; no ids' meaning.

Byte-level BPE spells a byte as one printable character; SentencePiece spells a space as U+2581 and a byte as `<0xHH>`.
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
    OTHER = "other"  # only the library decodes it


def decoder_kind(backend: tokenizers.Tokenizer) -> DecoderKind:
    """The rule of a tokenizer.json's `decoder`."""
    state: dict[str, Any] = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = state.get("decoders", [state]) if state else []
    kinds = [step.get("type") for step in steps]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return DecoderKind.BYTE_LEVEL
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0].get("pattern") == {"String": "▁"}:
        rest = steps[3:]
        if not rest:
            return DecoderKind.SENTENCEPIECE
        if rest == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return DecoderKind.SENTENCEPIECE_STRIP
    return DecoderKind.OTHER


def byte_table(backend: tokenizers.Tokenizer, kind: DecoderKind) -> list[bytes]:
    """Bytes by id, to the last one that has a token; empty where there is none."""
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
    for token, id_ in vocab.items():
        byte = _BYTE_PIECE.fullmatch(token)
        table[id_] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    return table


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
