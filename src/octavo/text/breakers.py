"""Strings that end a repetition for DRY -> the ids that hold them, as a mask for the sampler. It knows bytes of tokens.

An id breaks where its text has one of the strings. A string that no id's text has, because it is always cut into
several, is stood for by the last id of its own tokens, as in text-generation-webui.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from octavo.tokenizer.tokenizer import Tokenizer

REMEMBERED = 64  # sets of strings; looking through 152,000 ids takes 15 ms a string


class Breakers:
    """Masks for one tokenizer and a model's number of ids."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.bits = lru_cache(REMEMBERED)(self._bits)

    def _bits(self, strings: Sequence[str]) -> bytes:
        """Bit id % 8 of byte id / 8 for each id that breaks; ceil(vocab_size / 8) bytes."""
        breaks = np.zeros(self._vocab_size, bool)
        table = self._tokenizer.all_bytes()[: self._vocab_size]
        for string in strings:
            wanted = string.encode("utf-8", "replace")
            found = [id_ for id_, data in enumerate(table) if wanted in data]
            breaks[found or self._tokenizer.encode("a" + string)[-1:]] = True  # "a": not at the beginning of a text
        return np.packbits(breaks, bitorder="little").tobytes()
