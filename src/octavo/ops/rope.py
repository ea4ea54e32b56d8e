"""rope(x, positions, cos, sin): rotation of each head's first `rotary` elements, halves: x[i], x[i + rotary/2]."""

from __future__ import annotations

import numpy as np

from octavo.ops.op import TINY, Array, Attrs, Contract, Floats64, Locality, Op, gamma, same_rows
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum


def _bound(attrs: Attrs, x: Array, positions: Array, cos: Array, sin: Array) -> Floats64:
    """Each result is a sum of two products: three roundings, on magnitudes |x1 cos| + |x2 sin|."""
    head_dim, rotary = attrs["head_dim"], attrs["rotary"]
    heads = np.abs(x.astype(np.float64)).reshape(len(x), x.shape[1] // head_dim, head_dim)
    c, s = (np.abs(table[positions].astype(np.float64))[:, None, :] for table in (cos, sin))
    first, second = heads[..., : rotary // 2], heads[..., rotary // 2 : rotary]
    magnitude = np.zeros_like(heads)
    magnitude[..., : rotary // 2] = first * c + second * s
    magnitude[..., rotary // 2 : rotary] = second * c + first * s
    bound: Floats64 = (2 * gamma(3) * magnitude + 2 * TINY * (magnitude > 0)).reshape(x.shape)
    return bound


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (3 * node.operands[0].width),))


ROPE = Op(
    "rope", "row", Locality.HEAD, Contract("float32", "none", note="tables rounded once from float64"),
    same_rows, _bound, _operations,
)  # fmt: skip


def rope(x: Value, positions: Value, cos: Value, sin: Value, *, head_dim: int, rotary: int) -> Value:
    """x [T, heads * head_dim], positions [T] i32, cos and sin [max positions, rotary / 2] -> like x."""
    return ROPE(x, positions, cos, sin, head_dim=head_dim, rotary=rotary)
