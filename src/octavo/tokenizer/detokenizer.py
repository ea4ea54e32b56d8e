"""Incremental detokenization: ids in, text that is final out.

What comes out never changes later: no character is cut, an unfinished one waits for its bytes or for finish(). It knows
the byte tables of a Tokenizer; it does not know stop strings, nor when a sequence ends.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from octavo.errors import UnsupportedModel
from octavo.tokenizer.byte_table import HEADED_KINDS, DecoderKind
from octavo.tokenizer.tokenizer import Tokenizer

_LONGEST = 4  # bytes of a UTF-8 character
_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence: all pushes and finish() joined equal decode() of all ids.

    prompt_ids: what stands before the first id that is pushed. SentencePiece drops the space in front of a text, so a
    word right after a visible prompt keeps it; a character whose first bytes end the prompt is completed.
    spaces_between_special_tokens: matters only where tokens are joined by spaces (WordPiece). shown: texts whose
    special tokens are not skipped.
    """

    __slots__ = ("_decoder", "_drop_space", "_headed", "_last", "_size", "_spaces", "_table", "_whole")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        spaces_between_special_tokens: bool = True,
        shown: frozenset[str] = frozenset(),
    ) -> None:
        if tokenizer.kind is DecoderKind.OTHER:
            raise UnsupportedModel(
                "the decoder in tokenizer.json is of a kind whose text cannot be streamed. Supported: ByteLevel, "
                "Metaspace, WordPiece, none, and Replace + ByteFallback + Fuse (+ Strip).",
                param="tokenizer.json:decoder",
            )
        self._table = tokenizer.visible_bytes(shown) if skip_special_tokens else tokenizer.all_bytes()
        self._size = len(self._table)
        self._decoder = _new_decoder("replace")
        self._headed = tokenizer if tokenizer.kind in HEADED_KINDS else None
        self._spaces = spaces_between_special_tokens
        self._last: int | None = None  # the last visible token, where tokens are joined by rule
        before = self._last_bytes(prompt_ids)
        self._drop_space = tokenizer.kind is DecoderKind.SENTENCEPIECE_STRIP and not before
        partial = _unfinished(before)
        self._decoder.decode(partial)
        if self._headed is not None:
            _, self._last = self._headed.join(prompt_ids, self._table, None, True)
        self._whole = not (
            partial or self._drop_space or self._headed
        )  # nothing is held back: the next token stands for itself

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids make final; often one word, possibly nothing."""
        table, size = self._table, self._size
        if self._headed is not None:
            joined, self._last = self._headed.join(ids, table, self._last, self._spaces)
            return self._decoder.decode(joined)
        text = self._decoder.decode(b"".join([table[i] for i in ids if 0 <= i < size]))
        if self._drop_space and text:
            self._drop_space = False
            text = text[1:] if text[0] == " " else text
        self._whole = not (self._drop_space or self._decoder.getstate()[0])
        return text

    def push_one(self, id_: int) -> str:
        """push((id_,)); most tokens are whole characters and need no decoder."""
        if self._whole and 0 <= id_ < self._size:
            try:
                return self._table[id_].decode()
            except UnicodeDecodeError:
                pass  # a part of a character: push() keeps it
        return self.push((id_,))

    @property
    def between_characters(self) -> bool:
        """No character waits for its last bytes."""
        return not self._decoder.getstate()[0]

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", True)

    def _last_bytes(self, ids: Sequence[int]) -> bytes:
        """At least the last character's bytes of `ids`, empty if nothing of them is visible."""
        last = b""
        for id_ in reversed(ids):
            if 0 <= id_ < self._size:
                last = self._table[id_] + last
            if len(last) >= _LONGEST:
                break
        return last


def _unfinished(tail: bytes) -> bytes:
    """The start of a character at the end of `tail`, if it is cut there."""
    for length in range(1, min(_LONGEST, len(tail) + 1)):
        end = tail[-length:]
        if end[0] >= 0xC0:
            decoder = _new_decoder("replace")
            return end if decoder.decode(end) == "" else b""
    return b""
