"""Philox4x32-10 in Python integers: the definition that native/kernels/philox.h is held against.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). It keeps no state: the
words depend on key and counter alone. It knows no sampling beyond the meaning of the counter.
"""

from __future__ import annotations

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words of a 64-bit key (low word first) and four 32-bit counter words."""
    k0, k1 = key & _WORD, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _WORD, (a >> 32) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int, choice: int, draw: int = 0) -> float:
    """The number in [0, 1), a multiple of 2^-53, that chooses the token at `position` of answer `choice`."""
    words = philox(seed, (position, choice, draw, 0))
    return ((words[0] >> 5 << 26) | (words[1] >> 6)) * 2.0**-53
