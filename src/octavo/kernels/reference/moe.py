"""moe in torch, expert by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.kernels.reference import activation
from octavo.kernels.reference.linear import linear
from octavo.kernels.reference.quantize import QuantizedRows, quantize


def route(logits: Tensor, chosen: int, over_all: bool) -> tuple[Tensor, Tensor]:
    """logits [T, E] -> ids [T, chosen] of the greatest, of equal ones the lower, ascending in a row; weights."""
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
    ids = order[:, :chosen].sort(dim=-1).values
    kept = logits.gather(1, ids)
    return ids, torch.softmax(logits, -1).gather(1, ids) if over_all else torch.softmax(kept, -1)


def moe(
    x: Tensor | QuantizedRows,
    logits: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *biases: Tensor,
    **attrs: Any,
) -> Tensor:
    """x [T, D], logits [T, E], gate and up [E, I, D], down [E, D, I], biases [E, I], [E, I], [E, D] or none -> [T, D].

    attrs: those of the op; span: of the rows between the products, 0 where they are floats.
    """
    rows = x.dequantize() if isinstance(x, QuantizedRows) else x
    ids, weights = route(logits, attrs["chosen"], attrs["over_all"])
    join: Any = getattr(activation, attrs["gating"])
    numbers = {name: attrs[name] for name in ("alpha", "limit")} if attrs["gating"] == "clamped_swiglu" else {}
    out = torch.zeros(len(rows), down.shape[1])
    for expert in torch.unique(ids).tolist():
        row, place = torch.nonzero(ids == expert, as_tuple=True)
        product = [linear(rows[row], each[expert]) for each in (gate, up)]
        if biases:
            product = [each + bias[expert] for each, bias in zip(product, biases, strict=False)]
        inner = join(*product, **numbers)
        y = linear(quantize(inner, attrs["span"]) if attrs["span"] else inner, down[expert])
        if biases:
            y = y + biases[2][expert]
        out = out.index_add(0, row, y * weights[row, place].unsqueeze(1))
    return out
