"""A vocabulary small enough to try every id: all bytes, and some tokens of several characters."""

from functools import cache

import numpy as np

from octavo.grammar.matcher import Compiler, Vocabulary
from octavo.structured_outputs import StructuredOutputsParams

EOS, SPECIAL = 256, 257
WORDS = [
    b'{"', b'":', b'", "', b'"}', b"true", b"false", b"null", b"  ", b"\n  ", b"ab", b"abc", b"bc", b"12", b"0.", b"-1",
    b"red", b"re", b"green", b"\xc3\xa9", "日本".encode(), b"\xe6\x97", b'"a"', b"[]", b"{}", b"],", b"<f", b"<f>",
]  # fmt: skip
TOKENS = [bytes([each]) for each in range(256)] + [b"</s>", b"<|call|>"] + WORDS


def encode(text: str) -> list[int]:
    """Bytes, one by one: a tokenizer that knows no words, so that none is expected where bytes are forced."""
    return list(text.encode())


VOCABULARY = Vocabulary(TOKENS, [EOS, SPECIAL], [EOS], encode)


@cache
def compiler() -> Compiler:
    return Compiler(VOCABULARY)


class Walk:
    """A matcher under way."""

    def __init__(self, asked: StructuredOutputsParams) -> None:
        self.matcher = compiler().compile(asked).deep_copy()
        self._mask = np.zeros((len(TOKENS) + 31) // 32, np.uint32)

    def allowed(self) -> set[int]:
        self.matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        assert not self.matcher.is_error(), self.matcher.get_error()
        return set(np.unpackbits(self._mask.view(np.uint8), bitorder="little").nonzero()[0].tolist())

    def take(self, token: int) -> None:
        assert self.matcher.consume_token(token)


def accepts(asked: StructuredOutputsParams, text: str | bytes) -> bool:
    """Whether a text, byte by byte, is a whole answer."""
    matcher = compiler().compile(asked).deep_copy()
    data = list(text.encode() if isinstance(text, str) else text)
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
