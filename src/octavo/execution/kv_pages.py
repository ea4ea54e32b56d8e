"""Pages of the KV pool as numpy arrays: what lies where in a page of 16 tokens (native/kernel.h, KvGroup).

Layouts kv.bf16.t16.1, kv.f32.t16.1, kv.f16.t16.1 and kv.int8.t16.1. For verify and tests; the serving path never looks
into a page from Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.lowering.lowered import GroupLayout
from octavo.quantization.kv import kv_layout, round_to_bf16, round_to_fp16, round_to_int8

PAGE = 16
KEYS, VALUES = 0, 1
ELEMENTS = {"bf16": np.uint16, "float32": np.float32, "fp16": np.float16, "int8": np.int8}
ALONE = ("float32", "fp16")  # pages of single elements; others keep pairs of columns and of tokens


class KvPages:
    """One state group over the bytes of its pool ([pages * page_bytes] uint8)."""

    def __init__(self, layout: GroupLayout, pool: NDArray[np.uint8], page_bytes: int) -> None:
        group = layout.group
        self.dtype = kv_layout(layout.layout)
        self._head_dim = d = group.head_dim
        heads = pool.reshape(-1, page_bytes)[:, : layout.page_bytes]
        heads = heads.reshape(len(heads), group.layers, group.kv_heads, -1)
        codes = 2 * PAGE * d * self.dtype.element_bytes
        # [page, layer, head, K or V, 16 tokens of the head in the layout's order], and the scales that follow, if any
        self._elements = heads[..., :codes].view(ELEMENTS[self.dtype.name]).reshape(*heads.shape[:3], 2, PAGE * d)
        self._scales = heads[..., codes:].view(np.float32).reshape(*heads.shape[:3], 2, -1)

    def bits(self, layer: int, which: int) -> NDArray[Any]:
        """A copy [pages, 16, kv_heads, head_dim] as stored: uint16 of bf16, fp16, float32, or what int8 codes mean."""
        flat = self._elements[:, layer, :, which]
        d = self._head_dim
        if self.dtype.name in ALONE:
            keys = flat.reshape(*flat.shape[:2], d, PAGE).transpose(0, 3, 1, 2)
            tokens = keys if which == KEYS else flat.reshape(*flat.shape[:2], PAGE, d).transpose(0, 2, 1, 3)
        elif which == KEYS:
            tokens = flat.reshape(*flat.shape[:2], d // 2, PAGE, 2).transpose(0, 3, 1, 2, 4)
        else:
            tokens = flat.reshape(*flat.shape[:2], PAGE // 2, d, 2).transpose(0, 2, 4, 1, 3)
        stored = np.ascontiguousarray(tokens).reshape(len(flat), PAGE, flat.shape[1], d)
        if self.dtype.name == "int8":
            return stored.astype(np.float32) * self._scales[:, layer, :, which].transpose(0, 2, 1)[..., None]
        return stored

    def write(self, layer: int, which: int, values: NDArray[np.float32]) -> None:
        """All pages of a layer from [pages, 16, kv_heads, head_dim], rounded to the dtype."""
        pages, _, heads, d = values.shape
        if self.dtype.name == "int8":
            stored, scales = round_to_int8(values)
            self._scales[:pages, layer, :, which] = scales.transpose(0, 2, 1)
        else:
            stored = self.rounded(values)
        by_head = stored.transpose(0, 2, 1, 3)  # [page, head, token, d]
        if self.dtype.name in ALONE:
            flat = by_head.transpose(0, 1, 3, 2) if which == KEYS else by_head
        elif which == KEYS:
            flat = by_head.reshape(pages, heads, PAGE, d // 2, 2).transpose(0, 1, 3, 2, 4)
        else:
            flat = by_head.reshape(pages, heads, PAGE // 2, 2, d).transpose(0, 1, 2, 4, 3)
        self._elements[:pages, layer, :, which] = flat.reshape(pages, heads, -1)

    def rounded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """As `bits` must give them after kv_write: to nearest, ties to even."""
        if self.dtype.name == "bf16":
            return round_to_bf16(values)
        if self.dtype.name == "fp16":
            return round_to_fp16(values)
        if self.dtype.name == "int8":
            codes, scales = round_to_int8(values)
            return codes.astype(np.float32) * scales[..., None]
        return np.ascontiguousarray(values, np.float32)
