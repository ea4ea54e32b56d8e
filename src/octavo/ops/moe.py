"""moe(x, logits, experts): each row through the experts that its logits choose; their results by weight, added.

One op: choose, put rows in the order of experts, multiply expert by expert, add in the order of experts. How many
rows an expert gets is a fact of the step and never a shape. Experts are stacked weights [experts, columns, K]; a shared
expert is an MLP of its own beside the op.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.ops import activation, linear
from octavo.ops.op import EPS, TINY, Array, Attrs, Contract, Floats64, Locality, Op, Results, gamma
from octavo.ops.quantize import GROUP, act_row_bytes, span_of
from octavo.program.graph import Node, Value
from octavo.program.symbols import Dim, Sum, Values, experts_active

MOST_CHOSEN = 64  # experts of a row (native/kernels/moe.cc)
MOST_EXPERTS = 4096  # far above any model's: bounds a thread's scratch
BLOCK_BYTES = 384 << 10  # of an expert's gathered rows: they stay in L2 while its panels pass
BLOCK_ROWS = 96  # from which products take a panel in one piece (native/kernels/packed_linear.h)
SHARE_ROWS = 16  # up to this many rows every thread chooses for itself
GATINGS = {op.name: op for op in (activation.SILU_MUL, activation.GELU_MUL, activation.CLAMPED_SWIGLU)}
STEEPEST = 1.2  # of x * sigmoid(a x) and of gelu: their slopes stay below


@dataclass(frozen=True)
class Routing:
    """How rows choose: `chosen` experts of the greatest logits, weighted by a softmax over these or over all."""

    chosen: int
    over_all: bool = False


@dataclass(frozen=True)
class Gating:
    """How gate and up become one: silu_mul, gelu_mul, or clamped_swiglu with its two numbers."""

    name: str = "silu_mul"
    alpha: float = 0.0
    limit: float = 0.0

    @property
    def attrs(self) -> Mapping[str, float]:
        return {"alpha": self.alpha, "limit": self.limit} if self.name == "clamped_swiglu" else {}


def routes(attrs: Attrs, logits: Array) -> tuple[NDArray[np.int32], Floats64]:
    """Ids [T, chosen] of the greatest logits, of equal ones the lower ids, ascending in a row; their weights."""
    chosen = attrs["chosen"]
    ids = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :chosen], axis=1).astype(np.int32)
    wide = logits.astype(np.float64)
    share = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
    kept = np.take_along_axis(share, ids, axis=1)
    return ids, kept / (share if attrs["over_all"] else kept).sum(axis=1, keepdims=True)


def route_error(attrs: Attrs, logits: Array) -> float:
    """Relative error between two float32 evaluations of a weight: two exps of 4 ulp, the sum, the quotient."""
    spread = float(np.ptp(logits, axis=1).max(initial=0.0)) if logits.size else 0.0
    return 2 * (gamma(logits.shape[1] + 12) + 2 * EPS * spread)


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    x, logits, gate, up, down = operands[:5]
    experts, inner, width = (size.at({}) for size in gate.shape)
    fits = gate.shape == up.shape and [size.at({}) for size in down.shape] == [experts, width, inner]
    if not fits or x.width != width or logits.width != experts or logits.shape[0] != x.shape[0]:
        raise ValueError(f"{x!r}, {logits!r}, {gate!r}, {up!r} and {down!r} do not meet")
    if (
        not 1 <= attrs["chosen"] <= min(experts, MOST_CHOSEN)
        or experts > MOST_EXPERTS
        or attrs["gating"] not in GATINGS
    ):
        raise ValueError(f"a mixture of {experts} experts with {dict(attrs)} is not built")
    return [((x.shape[0], down.shape[1]), "f32")]


def gating_attrs(attrs: Attrs) -> Attrs:
    """The attributes of the op that joins gate and up."""
    return {"alpha": attrs["alpha"], "limit": attrs["limit"]}


def _bound(
    attrs: Attrs, x: Array, logits: Array, gate: Array, up: Array, down: Array, *biases: Array, quantized: bool = False
) -> Floats64:
    """Those of its products and of what joins them, one through the other, on float64 values of the chosen experts.

    quantized: of the weights. Where the rows between the products are quantized, two evaluations may fall on either
    side of a tie: a whole step of a group's scale apart.
    """
    ids, weights = routes(attrs, logits)
    relative = route_error(attrs, logits)
    wide = x.astype(np.float64)
    found = np.zeros((len(x), down.shape[1]))
    sums = np.zeros_like(found)
    gate_bias, up_bias, down_bias = biases or (np.zeros((len(gate), 1)),) * 3
    for expert in np.unique(ids):
        row, place = np.nonzero(ids == expert)
        g, dg = _product(wide[row], gate[expert], gate_bias[expert], quantized)
        u, du = _product(wide[row], up[expert], up_bias[expert], quantized)
        h, dh = _joined(attrs, g, dg, u, du)
        if attrs["span"]:
            largest = (np.abs(h) + dh).reshape(len(h), -1, GROUP).max(axis=2, initial=0.0)
            dh = dh + np.repeat(largest, GROUP, axis=1) / 127
        y, dy = _product(h, down[expert], down_bias[expert], quantized)
        dy += dh @ np.abs(down[expert].astype(np.float64)).T
        weight = weights[row, place][:, None]
        found[row] += weight * (dy + relative * (np.abs(y) + dy))
        sums[row] += weight * (np.abs(y) + dy)
    return found + 2 * gamma(attrs["chosen"] + 2) * sums + TINY


def _product(x: Floats64, weight: Array, bias: Array, quantized: bool) -> tuple[Floats64, Floats64]:
    """x @ weight.T + bias, and how far two evaluations of it may be apart."""
    value = x @ weight.astype(np.float64).T + bias
    return value, linear.LINEAR.bound({}, x, weight, quantized=quantized) + 2 * EPS * np.abs(value)


def _joined(attrs: Attrs, g: Floats64, dg: Floats64, u: Floats64, du: Floats64) -> tuple[Floats64, Floats64]:
    """What joins gate and up, in float64, and its error: its own, and those of its arguments by their slopes."""
    name = attrs["gating"]
    own = GATINGS[name].bound(gating_attrs(attrs), g, u)
    if name == "clamped_swiglu":
        limit = attrs["limit"]  # beyond it both evaluations are the limit itself
        dg, du = np.where(g - dg > limit, 0.0, dg), np.where(np.abs(u) - du > limit, 0.0, du)
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit) + 1
        slope = attrs["alpha"]
    else:
        slope = 1.0
    inner = slope * g if name != "gelu_mul" else 2 * (2 / np.pi) ** 0.5 * (g + 0.044715 * g**3)
    swish = g * np.exp(-np.logaddexp(0.0, -inner))
    return swish * u, own + STEEPEST * (np.abs(u) + du) * dg + np.abs(swish) * du


def _operations(node: Node) -> Sum:
    x, gate = node.operands[0], node.operands[2]
    inner, width = (size.at({}) for size in gate.shape[1:])
    return Sum((x.shape[0] * (6 * inner * width * int(node.attrs["chosen"])),))


def _parts(node: Node) -> Dim:
    return experts_active(node.attrs["mixture"])


def _workspace(node: Node, bounds: Values) -> int:
    """The routes: an id and a weight of each pair of a row and one of its experts."""
    return 8 * pairs(node).at(bounds)


def _scratch(node: Node, bounds: Values) -> int:
    """The routes of few rows, the pairs in order with where each expert's begin, and a block of gathered rows."""
    experts, chosen = node.operands[2].shape[0].at({}), int(node.attrs["chosen"])
    routed = 8 * SHARE_ROWS * chosen
    order = 4 * (pairs(node).at(bounds) + experts + 1)
    return routed + order + block_rows(node) * row_bytes(node) + 8 * 64


MOE = Op(
    "moe", "anchor", Locality.ROW,
    Contract(
        "int32 or float32", "ascending, then experts ascending", 32,
        note="greatest logits, ties to the lower id; products as linear; sum of products rounded twice a term",
    ),
    _results, _bound, _operations, _workspace, scratch=_scratch, parts=_parts,
)  # fmt: skip


def pairs(node: Node) -> Dim:
    """Pairs of a row and one of its experts."""
    return node.operands[0].shape[0] * int(node.attrs["chosen"])


def row_bytes(node: Node) -> int:
    """Of a row of x, as products read it."""
    x = node.operands[0]
    return act_row_bytes(x.width, span_of(x)) if x.dtype == "acts" else 4 * x.width


def block_rows(node: Node) -> int:
    """Pairs of an expert that go through its panels together at most."""
    return max(16, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes(node)))


def moe(
    x: Value, logits: Value, experts: Sequence[Value], biases: Sequence[Value] = (), *, routing: Routing, gating: Gating
) -> Value:
    """x [T, D], logits [T, E]; experts: gate, up [E, I, D], down [E, D, I]; biases: all or none -> [T, D]."""
    before = sum(node.op.name == MOE.name for node in x.program.nodes)
    return MOE(
        x, logits, *experts, *biases, mixture=before, chosen=routing.chosen, over_all=routing.over_all,
        gating=gating.name, alpha=gating.alpha, limit=gating.limit, span=0,
    )  # fmt: skip
