"""kv_write and attention: keys and values are written in pages (rounded to the cache's dtype) before they are read.

Attention is one op: causal, window, bidirectional and cross attention are values of the key interval [lo, hi) of each
row. Keys outside of it change no bit. Tiles of 32 keys and splits of 256 are aligned to position 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.ops.op import EPS, TINY, Array, Attrs, Contract, Floats64, Locality, Op, Results, bit_equal, gamma
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum, Values, kv_seen, kv_written, visible_keys

SPLIT = 256  # keys of a split (native/kernel.h kSplit)
PARTIAL_ROWS = 64  # rows whose partial results have room at once; more rows go in blocks


def _written(operands: Sequence[Value], attrs: Attrs) -> Results:
    return [((), "state")]


def _half(node: Node) -> Sum:
    """Keys or values of the rows."""
    return Sum((kv_written(node.attrs["group"]).ceil_div(2),))


KV_WRITE = Op(
    "kv_write", "row", Locality.HEAD, Contract("none", "none", exact=True, note="to nearest, ties to even"),
    _written, bit_equal, state=_half,
)  # fmt: skip


def _attended(operands: Sequence[Value], attrs: Attrs) -> Results:
    return [(operands[0].shape, "f32")]


def _bound(attrs: Attrs, q: Array, k: Array, v: Array, *, rounding: float = EPS, codes: bool = False) -> Floats64:
    """exp of a score's gamma(head_dim + 3) on |q| |k|, and gamma(2 keys + 8), on the weighted sum of magnitudes |v|.

    One row: q [heads, head_dim], the visible keys k and v [keys, kv_heads, head_dim]; the result like q. A score errs
    by gamma(head_dim + 3) (and `rounding` of q: 2^-9 where the variant rounds q and p to bf16) on the magnitudes
    |q| |k|; exp turns that into a relative error of a weight, and the weighted sum adds gamma(keys). The normalisation
    sees the same relative error once more. codes: over int8 pages q has codes of 1 / 16383 of its largest element, and
    the products of weight and scale of a split codes of 1 / 32767 of the largest one, each off by half
    (native/kernels/attention_tile.h).
    """
    heads, head_dim = q.shape
    repeat = heads // k.shape[1]
    keys = np.repeat(k.astype(np.float64), repeat, axis=1)
    values = np.repeat(v.astype(np.float64), repeat, axis=1)
    queries = q.astype(np.float64)
    scores = np.einsum("hd,khd->hk", queries, keys) * attrs["scale"]
    magnitude = np.einsum("hd,khd->hk", np.abs(queries), np.abs(keys)) * attrs["scale"]
    error = 2 * ((gamma(head_dim + 3) + 2 * rounding) * magnitude).max(axis=1, initial=0.0)
    if codes:
        largest = np.abs(queries).max(axis=1)
        error += 2 * (np.abs(keys).sum(axis=2).max(axis=0, initial=0.0) * largest * attrs["scale"] / 16383 / 2)
    cap = attrs.get("softcap", 0.0)
    if cap:  # its slope is at most 1; tanh from an exp and a quotient errs by some roundings of a number below 1
        scores = cap * np.tanh(scores / cap)
        error += 2 * gamma(16) * cap
    weights = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    weights /= weights.sum(axis=1, keepdims=True)
    spread = np.abs(scores).max(axis=1, initial=0.0) * EPS * 4  # argument of exp, and exp itself to 4 ulp
    relative = 2 * np.expm1(error + spread + 8 * EPS) + 2 * gamma(2 * len(k) + 8) + 4 * rounding
    result: Floats64 = relative[:, None] * np.einsum("hk,khd->hd", weights, np.abs(values)) + TINY
    if codes:
        most = (weights * np.abs(values).max(axis=2).T).max(axis=1, initial=0.0)
        result += (len(k) * most * (1 + relative) / 32767 / 2)[:, None]
    return result


def _operations(node: Node) -> Sum:
    return Sum((visible_keys(node.attrs["group"]) * (4 * node.operands[0].width),))


def _seen(node: Node) -> Sum:
    return Sum((kv_seen(node.attrs["group"]),))


def _workspace(node: Node, bounds: Values) -> int:
    """Partial results of splits: per row, head and split a maximum, a sum and head_dim accumulators, float32."""
    heads, head_dim = int(node.attrs["heads"]), int(node.attrs["head_dim"])
    splits = -(-bounds["L"] // SPLIT)
    rows = min(bounds["T"], PARTIAL_ROWS)
    return -(-4 * rows * heads * splits * (head_dim + 2) // 64) * 64


ATTENTION = Op(
    "attention", "anchor", Locality.SEQUENCE,
    Contract("float32", "keys ascending in tiles of 32, splits of 256 from position 0 merged ascending"),
    _attended, _bound, _operations, _workspace, state=_seen,
)  # fmt: skip


def kv_write(
    x: Value, rows: Sequence[Value], *, group: int, layer: int, which: int, kv_heads: int, head_dim: int
) -> Value:
    """x [T, kv_heads * head_dim] into the pages of each row's position; which 0: keys, 1: values.

    rows: row_pos [T], row_slot [T], page [slots, groups, pages]. The result stands for the state after the write.
    """
    return KV_WRITE(x, *rows, group=group, layer=layer, which=which, kv_heads=kv_heads, head_dim=head_dim)


def attention(
    q: Value,
    state: tuple[Value, Value],
    rows: Sequence[Value],
    *,
    group: int,
    layer: int,
    shape: tuple[int, int, int],
    scale: float,
    softcap: float = 0.0,
    sinks: Value | None = None,
) -> Value:
    """q [T, heads * head_dim] -> the same shape. shape: (heads, kv_heads, head_dim).

    state: what kv_write gave for keys and values. rows: row_slot [T], row_lo and row_hi [groups, T], page. softcap 0:
    none. sinks: [heads] f32, one more logit per head without a value.
    """
    heads, kv_heads, head_dim = shape
    extra = () if sinks is None else (sinks,)
    return ATTENTION(
        q, *state, *rows, *extra, group=group, layer=layer, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        scale=scale, softcap=softcap,
    )  # fmt: skip
