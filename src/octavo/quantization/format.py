"""Weight formats: the bytes of a checkpoint, and the float32 numbers they stand for.

A quantized format is known by how it takes its blocks apart (`Codes`); dequantizing is then the same line for all of
them. This file knows nothing of files, tensors' names or the panels that kernels read (see panels.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# name -> module:object; the object is a Format
FORMATS = {
    "f32": "octavo.quantization.floats:F32",
    "f16": "octavo.quantization.floats:F16",
    "bf16": "octavo.quantization.floats:BF16",
    "q4_0": "octavo.quantization.ggml_blocks:Q4_0",
    "q4_1": "octavo.quantization.ggml_blocks:Q4_1",
    "q5_0": "octavo.quantization.ggml_blocks:Q5_0",
    "q5_1": "octavo.quantization.ggml_blocks:Q5_1",
    "q8_0": "octavo.quantization.ggml_blocks:Q8_0",
    "q2_k": "octavo.quantization.k_quants:Q2_K",
    "q3_k": "octavo.quantization.k_quants:Q3_K",
    "q4_k": "octavo.quantization.k_quants:Q4_K",
    "q5_k": "octavo.quantization.k_quants:Q5_K",
    "q6_k": "octavo.quantization.k_quants:Q6_K",
    "iq4_nl": "octavo.quantization.codebooks:IQ4_NL",
    "iq4_xs": "octavo.quantization.codebooks:IQ4_XS",
    "mxfp4": "octavo.quantization.codebooks:MXFP4",
    "iq3_s": "octavo.quantization.i_quants:IQ3_S",
    "iq3_xxs": "octavo.quantization.i_quants:IQ3_XXS",
    "iq2_s": "octavo.quantization.i_quants:IQ2_S",
    "iq2_xs": "octavo.quantization.i_quants:IQ2_XS",
    "iq2_xxs": "octavo.quantization.i_quants:IQ2_XXS",
    "iq1_m": "octavo.quantization.i_quants:IQ1_M",
    "iq1_s": "octavo.quantization.i_quants:IQ1_S",
    "tq2_0": "octavo.quantization.ternary:TQ2_0",
    "tq1_0": "octavo.quantization.ternary:TQ1_0",
    "int8": "octavo.quantization.rounding:INT8",
}

# GGML's type numbers (ggml.h); those that FORMATS lacks are here so that an error can say what the file holds
GGML_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k",
    16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs",
    24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16",
    34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """Blocks taken apart: value = d * (q - zero_point) + m, each product and sum rounded once to float32."""

    q: Bytes  # [blocks, block] unsigned, before the zero point
    d: NDArray[np.floating[Any]]  # [blocks, block / group] float16 as stored, or float32 where it is a product
    m: NDArray[np.floating[Any]] | None = None  # like d; None where the format has no minimum


@dataclass(frozen=True)
class Format:
    """How `block` consecutive elements of a row become `block_bytes` bytes.

    Quantized formats have `split` (raw [blocks, block_bytes] -> Codes), a `group` of elements that share a scale and
    a `zero_point`; float formats have `widen` (raw [n, block_bytes] -> float32 [n]). `layout` is the id of the packed
    layout that holds the format without loss.
    """

    name: str
    block: int
    block_bytes: int
    layout: str
    split: Callable[[Bytes], Codes] | None = None
    widen: Callable[[Bytes], Floats] | None = None
    group: int = 0
    zero_point: int = 0

    def row_bytes(self, elements: int) -> int:
        """Bytes of one row. Raises UnsupportedModel where `elements` is not a whole number of blocks."""
        if elements % self.block:
            raise UnsupportedModel(
                f"{self.name} stores {self.block} elements a block, a row of {elements} elements does not fit"
            )
        return elements // self.block * self.block_bytes

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape, rows last. A scalar is one row of one element."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1] if shape else 1)

    def dequantize(self, raw: Bytes, shape: Sequence[int]) -> Floats:
        """float32 numbers of `shape` (HF order, rows last); bit for bit what ggml's definition gives."""
        if raw.size != self.nbytes(shape):
            raise ValueError(f"{self.name} of shape {tuple(shape)} takes {self.nbytes(shape)} bytes, not {raw.size}")
        blocks = np.ascontiguousarray(raw).reshape(-1, self.block_bytes)
        if self.widen is not None:
            return self.widen(blocks).reshape(tuple(shape))
        return self._scaled(self.codes(blocks)).reshape(tuple(shape))

    def codes(self, blocks: Bytes) -> Codes:
        """Raw blocks [blocks, block_bytes] taken apart; only for quantized formats."""
        if self.split is None:
            raise ValueError(f"{self.name} has no codes")
        return self.split(blocks)

    def _scaled(self, codes: Codes) -> Floats:
        values = codes.q.astype(np.float32).reshape(-1, self.block // self.group, self.group)
        values -= np.float32(self.zero_point)
        with np.errstate(invalid="ignore", over="ignore"):  # hostile scales: inf and NaN pass through as in ggml
            values *= codes.d.astype(np.float32)[:, :, None]
            if codes.m is not None:
                values += codes.m.astype(np.float32)[:, :, None]
        return values


def format_named(name: str) -> Format:
    """The Format of a name of FORMATS, imported when used. Raises UnsupportedModel."""
    if name not in FORMATS:
        raise UnsupportedModel(unsupported(name))
    module, _, attribute = FORMATS[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, Format):
        raise TypeError(f"{FORMATS[name]} is not a Format")
    return found


def unsupported(name: str) -> str:
    """The words for a format that is not built: what it is and what is supported."""
    return f"{name.upper()} is not supported yet; supported: {', '.join(known.upper() for known in FORMATS)}"
