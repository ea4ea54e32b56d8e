"""Pages of the KV pool as numpy arrays: what lies where in a page of 16 tokens (native/kernel.h, KvGroup).

Layouts kv.bf16.t16.1 and kv.f32.t16.1. For verify and tests; the serving path never looks into a page from Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.lowering.lowered import GroupLayout
from octavo.quantization.kv import round_to_bf16

PAGE = 16
KEYS, VALUES = 0, 1


class KvPages:
    """One state group over the bytes of its pool ([pages * page_bytes] uint8)."""

    def __init__(self, layout: GroupLayout, pool: NDArray[np.uint8], page_bytes: int) -> None:
        group = layout.group
        self._bf16 = layout.layout.startswith("kv.bf16")
        element = np.dtype(np.uint16 if self._bf16 else np.float32)
        pages = pool.reshape(-1, page_bytes)[:, : layout.page_bytes].view(element)
        # [page, layer, head, K or V, 16 tokens of the head in the layout's order]
        self._pages = pages.reshape(len(pages), group.layers, group.kv_heads, 2, PAGE * group.head_dim)
        self._head_dim = group.head_dim

    @property
    def narrow(self) -> bool:
        """Whether it holds bf16."""
        return self._bf16

    def bits(self, layer: int, which: int) -> NDArray[np.generic]:
        """A copy [pages, 16, kv_heads, head_dim] as stored: uint16 of bf16, or float32."""
        flat = self._pages[:, :, :, which][:, layer]
        d = self._head_dim
        if self._bf16 and which == KEYS:
            tokens = flat.reshape(*flat.shape[:2], d // 2, PAGE, 2).transpose(0, 3, 1, 2, 4)
        elif self._bf16:
            tokens = flat.reshape(*flat.shape[:2], PAGE // 2, d, 2).transpose(0, 2, 4, 1, 3)
        elif which == KEYS:
            tokens = flat.reshape(*flat.shape[:2], d, PAGE).transpose(0, 3, 1, 2)
        else:
            tokens = flat.reshape(*flat.shape[:2], PAGE, d).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(tokens).reshape(len(flat), PAGE, flat.shape[1], d)

    def write(self, layer: int, which: int, values: NDArray[np.float32]) -> None:
        """All pages of a layer from [pages, 16, kv_heads, head_dim], rounded to the dtype."""
        stored = self.rounded(values)
        pages, _, heads, d = stored.shape
        by_head = stored.transpose(0, 2, 1, 3)  # [page, head, token, d]
        if self._bf16 and which == KEYS:
            flat = by_head.reshape(pages, heads, PAGE, d // 2, 2).transpose(0, 1, 3, 2, 4)
        elif self._bf16:
            flat = by_head.reshape(pages, heads, PAGE // 2, 2, d).transpose(0, 1, 2, 4, 3)
        elif which == KEYS:
            flat = by_head.transpose(0, 1, 3, 2)
        else:
            flat = by_head
        self._pages[:pages, layer, :, which] = flat.reshape(pages, heads, -1)

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """As kv_write must store them: to nearest, ties to even."""
        return round_to_bf16(values) if self._bf16 else np.ascontiguousarray(values, np.float32)
