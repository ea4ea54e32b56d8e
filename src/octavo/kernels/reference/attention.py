"""kv_write and attention in torch over a paged pool [pages, 16, kv_heads, head_dim] per layer, keys and values apart.

Rows of one slot are done together, at most ROWS at a time. Nothing is changed in place while gradients are recorded.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAGE = 16
ROWS = 128  # rows at a time: bounds the scores


def kv_write(x: Tensor, pool: Tensor, positions: Tensor, slots: Tensor, pages: Tensor, *, dtype: str) -> Tensor:
    """x [T, kv_heads * head_dim] into `pool` at each row's position; the new pool. pages [slots, pages of a sequence].

    dtype: of the cache (quantization/kv.py); rows are rounded to it, to nearest, ties to even, and kept as float32.
    """
    rows = _rounded(x.unflatten(-1, tuple(pool.shape[2:])), dtype)
    at = pages[slots.long(), positions.long() // PAGE].long()
    index = (at, positions.long() % PAGE)
    if torch.is_grad_enabled():
        return pool.index_put(index, rows)
    return pool.index_put_(index, rows)


def _rounded(rows: Tensor, dtype: str) -> Tensor:
    """[T, kv_heads, head_dim] as read back from a cache of the dtype."""
    if dtype == "bf16":
        return rows.to(torch.bfloat16).to(torch.float32)
    if dtype == "fp16":
        return rows.to(torch.float16).to(torch.float32)
    if dtype == "int8":  # code * scale, the scale per token and head; see quantization/kv.py round_to_int8
        top = rows.abs().amax(-1, keepdim=True)
        inverse = torch.where(top >= 1e-36, 127 / top, 0.0)
        return torch.round(rows * inverse) * (top / 127)
    return rows


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    head_dim: int,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """q [T, heads * head_dim] -> the same shape. keys, values: pools of one layer. rows: (slot, lo, hi) [T] and pages
    [slots, pages of a sequence]. A row without visible keys gives zeros."""
    slots, lo, hi, pages = rows
    queries = q.unflatten(-1, (-1, head_dim))
    out: list[Tensor] = []
    order: list[Tensor] = []
    for slot in torch.unique(slots).tolist():
        mine = torch.nonzero(slots == slot).flatten()
        for some in mine.split(ROWS):
            first, last = int(lo[some].min()) // PAGE, -(-int(hi[some].max()) // PAGE)
            at = pages[slot, first:last].long()
            k, v = (pool[at].flatten(0, 1) for pool in (keys, values))
            position = torch.arange(first * PAGE, first * PAGE + len(k))
            seen = (position >= lo[some].unsqueeze(1)) & (position < hi[some].unsqueeze(1))
            out.append(_one_slot(queries[some], k, v, seen, scale, softcap, sinks))
            order.append(some)
    if not out:
        return torch.zeros_like(q)
    return torch.cat(out)[torch.argsort(torch.cat(order))].flatten(-2)


def _one_slot(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """q [M, heads, d], k and v [keys, kv_heads, d], seen [M, keys] -> [M, heads, d]."""
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = q.unflatten(1, (kv_heads, heads // kv_heads))
    scores = torch.einsum("mhgd,khd->hgmk", grouped, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf).flatten(0, 1)
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, len(q), 1)), dim=-1)
    weights = torch.nan_to_num(torch.softmax(scores, dim=-1))[..., : len(k)]
    mixed = torch.einsum("hgmk,khd->mhgd", weights.unflatten(0, (kv_heads, -1)), v)
    return mixed.flatten(1, 2)
