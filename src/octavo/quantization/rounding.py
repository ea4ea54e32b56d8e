"""Float weights rounded to int8 or four bits while they are loaded: which format each gets, and the rounding itself.

Both have a scale and a minimum for 32 neighbours along k. The activations' groups are 32 as well, so a scale for a
whole output channel would save the kernels no operation and 11 % of the bytes, and an outlier would spoil a row.
int8 is our own block of 9 bits a weight: with Q8_0's 8.5, without a minimum, the perplexity of SmolLM2 was 0.58 % above
that of float32, where half a percent is allowed. q4 is Q4_1, fitted by least squares; what is looked up and what makes
the logits (embedding and head) stays int8. It knows nothing of files; figures are in docs/formats.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.quantization.format import Bytes, Codes, Floats, Format, format_named

GROUP = 32
VERSION = 1  # of the rounding: part of the fingerprint and of the packed file's name
# --quantization -> format of linears, format of embedding and head
TARGETS = {"int8": ("int8", "int8"), "q4": ("q4_1", "int8")}
REFITS = 2  # of scale and minimum to the codes; the second lowers the error by 2 %, a third by 1 %
MOST = float(np.finfo(np.float16).max)


def target(quantization: str, format_name: str, k: int, *, outer: bool) -> str | None:
    """The format that rows of `k` are rounded to; None where they stay: what is quantized already is never rounded
    again, and rows that are no whole groups keep their floats. outer: of the embedding or the head."""
    if quantization not in TARGETS or k % GROUP or format_named(format_name).split is not None:
        return None
    return TARGETS[quantization][outer]


def encode(format_name: str, values: Floats) -> Bytes:
    """float32 of whole groups -> blocks of `format_name` (int8 or q4_1), flat. Raises ValueError for values that are
    not finite, or so large that no float16 is their scale."""
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP)
    top = np.abs(groups).max(initial=0)
    if not top < MOST:
        raise ValueError(f"its values reach {top}")
    return _bytes(groups) if format_name == "int8" else _four_bits(groups)


def split_int8(raw: Bytes) -> Codes:
    """[d float16][m float16][32 bytes]; value = d * (q - 128) + m."""
    halves = np.ascontiguousarray(raw[:, :4]).view("<f2")
    return Codes(raw[:, 4:], halves[:, :1], halves[:, 1:])


def _bytes(groups: Floats) -> Bytes:
    """m is the middle of a group's range, so that codes of 128 stand for it."""
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    d, m = _halves((high - low) / np.float32(255), low + (high - low) * np.float32(128 / 255))
    codes = np.rint((groups - m.astype(np.float32)) * _inverse(d)).clip(-128, 127) + np.float32(128)
    return np.concatenate([d.view(np.uint8), m.view(np.uint8), codes.astype(np.uint8)], axis=1).reshape(-1)


def _four_bits(groups: Floats) -> Bytes:
    low = groups.min(axis=1, keepdims=True)
    d, m = _halves((groups.max(axis=1, keepdims=True) - low) / np.float32(15), low)
    codes = _codes(groups, d, m)
    for _ in range(REFITS):
        d, m = _halves(*_line(groups, codes))
        codes = _codes(groups, d, m)
    packed = codes[:, :16] | codes[:, 16:] << np.uint8(4)
    return np.concatenate([d.view(np.uint8), m.view(np.uint8), packed], axis=1).reshape(-1)


def _halves(d: Floats, m: Floats) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    return d.astype(np.float16), m.astype(np.float16)


def _inverse(d: NDArray[np.float16]) -> Floats:
    """1 / d, 0 where d is 0: codes are made for the scale as it is stored."""
    wide = d.astype(np.float32)
    return np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)


def _codes(groups: Floats, d: NDArray[np.float16], m: NDArray[np.float16]) -> Bytes:
    codes: Bytes = np.rint((groups - m.astype(np.float32)) * _inverse(d)).clip(0, 15).astype(np.uint8)
    return codes


def _line(groups: Floats, codes: Bytes) -> tuple[Floats, Floats]:
    """The scale and minimum of least squares for given codes; where all codes are equal, no scale and the mean."""
    q = codes.astype(np.float32)
    mean_q, mean = q.mean(axis=1, keepdims=True), groups.mean(axis=1, keepdims=True)
    centred = q - mean_q
    spread = (centred * centred).sum(axis=1, keepdims=True)
    covariance = (centred * groups).sum(axis=1, keepdims=True)
    d = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    return d, mean - d * mean_q


INT8 = Format("int8", GROUP, 36, "int8.p32.k4.1", split_int8, group=GROUP, zero_point=128)
