"""A SentencePiece model (tokenizer.model, spiece.model) read without its library.

The file is one protobuf message, ModelProto of sentencepiece_model.proto; a reader of the wire format takes what is
needed of it. It knows the fields; vocabulary knows what to build of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.tokenizer import vocabulary
from octavo.tokenizer.vocabulary import Pieces, SentenceRules, VocabularyFault, VocabularyFile

# Field numbers of sentencepiece_model.proto: of ModelProto, then of its pieces, trainer_spec and normalizer_spec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 3, 40, 41, 42, 43
_CHARSMAP, _ADD_PREFIX, _COLLAPSE = 2, 3, 4
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
_DEFAULTS = {_MODEL_TYPE: UNIGRAM, _UNK_ID: 0, _BOS_ID: 1, _EOS_ID: 2, _PAD_ID: -1}

Field = tuple[int, int | memoryview]  # number, value: an integer, or the bytes of a message, string or float


@dataclass(frozen=True)
class SentencePieceModel:
    """pieces: encoded, by id. ids: of unk, bos, eos and pad, -1 for none."""

    path: Path
    pieces: list[memoryview]
    model_type: int
    ids: dict[str, int]
    rules: SentenceRules

    def token(self, id_: int) -> str:
        """The text of one piece."""
        return _piece(self.pieces[id_])[0]


def is_sentencepiece(content: bytes) -> bool:
    """Whether a file begins as ModelProto does: with a piece."""
    return content[:1] == b"\x0a"


def open_sentencepiece(path: Path, content: bytes) -> VocabularyFile:
    """The vocabulary file; its pieces are read when it is built. Raises CheckpointError, UnsupportedModel."""
    try:
        model = _read(path, content)
        special = {f"{name}_token": model.token(id_) for name, id_ in model.ids.items() if 0 <= id_ < len(model.pieces)}
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}", path=str(path)) from error
    if model.model_type not in (UNIGRAM, BPE):
        raise UnsupportedModel(
            f"{path} is a SentencePiece model of type {model.model_type} (words or characters). Supported: 1 (Unigram) "
            "and 2 (BPE).",
            param="trainer_spec.model_type",
        )
    # Unigram models read texts (T5), BPE models continue them (Llama): the former's texts end, the latter's begin.
    bpe = model.model_type == BPE
    return VocabularyFile(path, lambda: _build(model), special, add_bos=bpe, add_eos=not bpe)


def _build(model: SentencePieceModel) -> tokenizers.Tokenizer:
    try:
        read = [_piece(piece) for piece in model.pieces]
        pieces = Pieces([text for text, _, _ in read], [kind for _, _, kind in read], [score for _, score, _ in read])
        unknown = model.ids["unk"]
        if not 0 <= unknown < len(read):
            raise ValueError(f"unk_id is {unknown}, outside of {len(read)} pieces")
        if model.model_type == BPE:
            return vocabulary.sentencepiece_bpe(pieces, None, unknown, model.rules)
        return vocabulary.unigram(pieces, unknown, model.rules)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{model.path} is no SentencePiece model: {error}", path=str(model.path)) from error
    except VocabularyFault as fault:
        raise CheckpointError(f"{model.path}: its {fault.part} {fault.message}", path=str(model.path)) from fault


def _read(path: Path, content: bytes) -> SentencePieceModel:
    pieces: list[memoryview] = []
    trainer, normalizer = dict[int, int | memoryview](_DEFAULTS), dict[int, int | memoryview]()
    for number, value in _fields(memoryview(content)):
        if number == _PIECES and isinstance(value, memoryview):
            pieces.append(value)
        elif number in (_TRAINER, _NORMALIZER) and isinstance(value, memoryview):
            (trainer if number == _TRAINER else normalizer).update(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(_CHARSMAP, b"")
    ids = {"unk": _UNK_ID, "bos": _BOS_ID, "eos": _EOS_ID, "pad": _PAD_ID}
    return SentencePieceModel(
        path,
        pieces,
        _integer(trainer[_MODEL_TYPE]),
        {name: _signed(_integer(trainer[number])) for name, number in ids.items()},
        SentenceRules(
            prefix=bool(_integer(normalizer.get(_ADD_PREFIX, 1))),
            collapse=bool(_integer(normalizer.get(_COLLAPSE, 1))),
            charsmap=b"" if isinstance(charsmap, int) else bytes(charsmap),
        ),
    )


def _piece(encoded: memoryview) -> tuple[str, float, int]:
    """Text, score and type."""
    text, score, kind = "", 0.0, vocabulary.NORMAL
    for number, value in _fields(encoded):
        if number == _PIECE_TEXT and isinstance(value, memoryview):
            text = str(value, "utf-8")
        elif number == _PIECE_SCORE and isinstance(value, memoryview):
            (score,) = struct.unpack("<f", value)
            if math.isnan(score):
                raise ValueError("a score is not a number")
        elif number == _PIECE_TYPE and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of an encoded message in order; groups, which the format has given up, are refused."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), at)
        if size < 0 or at + size > len(message):
            raise ValueError(f"field {number} is cut or of an unknown kind")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(integer, position behind it)."""
    value = shift = 0
    while shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("an integer has more than 64 bits")


def _integer(value: int | memoryview) -> int:
    if isinstance(value, int):
        return value
    raise ValueError("a number is no integer")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
