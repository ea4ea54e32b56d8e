"""ReferenceExecutor: Programs in torch float32, node by node: the oracle of tests and of `verify`, and differentiable.

It runs a traced Program, one after the numerics pass, or the origin of a lowered node, on torch tensors by input name,
over a paged cache that it owns. It knows no lowering and no native code; the serving path never imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.kernels.reference.attention import PAGE, attention, kv_write
from octavo.models.source import WeightSource, read_floats
from octavo.program.graph import Node, Program, StateGroup, Value
from octavo.program.trace import states_of

# op -> module:function of its reference; those of the cache are called by the executor
KERNELS = {
    "embedding": "embedding", "gather_rows": "embedding", "linear": "linear", "rope": "rope", "quantize": "quantize",
    "rms_norm": "norm", "head_norm": "norm", "layer_norm": "norm", "silu_mul": "activation", "gelu_mul": "activation",
    "gelu": "activation", "gelu_erf": "activation", "softcap": "activation", "add": "activation", "bias": "activation",
    "scale": "activation", "sigmoid_mul": "activation", "clamped_swiglu": "activation", "moe": "moe",
}  # fmt: skip

Observer = Callable[[Node, Any], None]


def load_weights(checkpoint: Checkpoint, sources: Mapping[str, WeightSource]) -> dict[str, Tensor]:
    """Every weight dequantized to float32, in the model's row order."""
    return {name: torch.from_numpy(read_floats(checkpoint, source).copy()) for name, source in sources.items()}


@dataclass(frozen=True)
class Cache:
    """Keys and values of a state group: (layer, 0 or 1) -> pool [pages, 16, kv_heads, head_dim] float32."""

    pools: dict[tuple[int, int], Tensor]
    dtype: str

    @staticmethod
    def empty(group: StateGroup, pages: int, kv_dtype: str) -> Cache:
        """A zeroed cache of `pages` pages (page 0 is the null page)."""
        shape = (pages, PAGE, group.kv_heads, group.head_dim)
        pools = {(layer, which): torch.zeros(shape) for layer in range(group.layers) for which in (0, 1)}
        return Cache(pools, kv_dtype)


class ReferenceExecutor:
    """Runs Programs over weights (name -> float32 tensor) and one Cache per state group."""

    def __init__(self, weights: Mapping[str, Tensor], caches: Sequence[Cache] = ()) -> None:
        self.weights = weights
        self.caches = list(caches)
        self._tables: dict[str, Tensor] = {}
        self._kernels = {
            name: getattr(importlib.import_module(f"octavo.kernels.reference.{module}"), name)
            for name, module in KERNELS.items()
        }

    def run(self, program: Program, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """Output name -> tensor (or QuantizedRows). `observe(node, result)` is told of every node.

        Raises KeyError for a missing input or weight. Inputs that only order writes (dtype state) are not asked for.
        """
        values: dict[Value, Any] = {}
        for name, value in program.inputs.items():
            if value.dtype != "state":
                values[value] = inputs[name]
        for name, value in program.weights.items():
            values[value] = self.weights[name]
        for name, value in program.table_values.items():
            values[value] = self._table(value.program, name)
        for node in program.nodes:
            result = self._node(node, values)
            values[node.output] = result
            if observe is not None:
                observe(node, result)
        return {name: values[value] for name, value in program.outputs.items() if value.dtype != "state"}

    def evaluate(self, node: Node, given: Mapping[Value, Any]) -> Any:
        """One node on numpy arrays (or quantized rows) by operand; weights, tables and the cache are our own.

        Gives a numpy array, or the quantized rows.
        """
        values: dict[Value, Any] = {}
        for value in node.operands:
            if value.kind == "weight":
                values[value] = self.weights[value.name]
            elif value.kind == "table":
                values[value] = self._table(value.program, value.name)
            elif value.dtype != "state":
                found = given[value]
                values[value] = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        with torch.no_grad():
            result = self._node(node, values)
        return result.numpy() if isinstance(result, Tensor) else result

    def call(self, name: str, *arrays: np.ndarray[Any, Any], **attrs: Any) -> np.ndarray[Any, Any]:
        """The kernel of a row op on numpy arrays."""
        with torch.no_grad():
            result: Tensor = self._kernels[name](*map(torch.from_numpy, arrays), **attrs)
        return result.numpy()

    def _table(self, program: Program, name: str) -> Tensor:
        if name not in self._tables:
            self._tables[name] = torch.from_numpy(program.tables[name].make())
        return self._tables[name]

    def _node(self, node: Node, values: Mapping[Value, Any]) -> Any:
        attrs = dict(node.attrs)
        if node.op.name == "kv_write":
            return self._write(attrs, [values[value] for value in node.operands])
        if node.op.name == "attention":
            return self._attend(attrs, values[node.operands[0]], [values[value] for value in node.operands[3:]])
        return self._kernels[node.op.name](*(values[value] for value in node.operands), **attrs)

    def _write(self, attrs: Mapping[str, Any], operands: Sequence[Tensor]) -> None:
        x, positions, slots, page = operands
        cache, group = self.caches[attrs["group"]], attrs["group"]
        key = (attrs["layer"], attrs["which"])
        cache.pools[key] = kv_write(x, cache.pools[key], positions, slots, page[:, group], dtype=cache.dtype)

    def _attend(self, attrs: Mapping[str, Any], q: Tensor, operands: Sequence[Tensor]) -> Tensor:
        slots, lo, hi, page, *sinks = operands
        group, layer = attrs["group"], attrs["layer"]
        pools = self.caches[group].pools
        return attention(
            q, pools[layer, 0], pools[layer, 1], (slots, lo[group], hi[group], page[:, group]),
            head_dim=attrs["head_dim"], scale=attrs["scale"], softcap=attrs["softcap"],
            sinks=sinks[0] if sinks else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Token ids of one slot at positions start, start + 1, ... second: position of the second text of a pair."""

    slot: int
    start: int
    ids: Sequence[int]
    second: int | None = None


class ReferenceModel:
    """A decoder's `body` and `head` over a cache in which slot s owns pages 1 + s * P .. (s + 1) * P."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        weights: Mapping[str, Tensor],
        *,
        positions: int,
        slots: int = 1,
        kv_dtype: str = "float32",
    ) -> None:
        self.programs = programs
        self.groups = states_of(programs)
        per_slot = -(-positions // PAGE)
        table = 1 + torch.arange(slots * per_slot, dtype=torch.int32).reshape(slots, 1, per_slot)
        self.page = table.expand(slots, len(self.groups), per_slot)
        caches = [Cache.empty(group, 1 + slots * per_slot, kv_dtype) for group in self.groups]
        self.executor = ReferenceExecutor(weights, caches)

    def inputs(self, runs: Sequence[Rows]) -> dict[str, Tensor]:
        """The row inputs of `body` for these rows, causal within each group's window, or whole."""
        position = torch.tensor([run.start + i for run in runs for i in range(len(run.ids))], dtype=torch.int32)
        hi = position + 1
        lo = [(hi - group.window).clamp(min=0) if group.window else torch.zeros_like(hi) for group in self.groups]
        ends = torch.tensor([run.start + len(run.ids) for run in runs for _ in run.ids], dtype=torch.int32)
        seconds = [run.second is not None and at >= run.second for run in runs for at in _positions(run)]
        return {
            "ids": torch.tensor([token for run in runs for token in run.ids], dtype=torch.int32),
            "row_pos": position,
            "row_slot": torch.tensor([run.slot for run in runs for _ in run.ids], dtype=torch.int32),
            "row_lo": torch.stack(lo),
            "row_hi": torch.stack([ends if group.kind == "whole" else hi for group in self.groups]),
            "parts": torch.tensor(seconds, dtype=torch.int32),
            "page": self.page,
        }

    def hidden(self, runs: Sequence[Rows], observe: Observer | None = None) -> Tensor:
        """The body's `h` [rows, width]; keys and values are written."""
        h: Tensor = self.executor.run(self.programs["body"], self.inputs(runs), observe)["h"]
        return h

    def scores(self, runs: Sequence[Rows], rows: Sequence[int]) -> Tensor:
        """What a classification head gives for a row of each sequence [S, labels]."""
        index = torch.tensor(rows, dtype=torch.int64)
        inputs = {"h": self.hidden(runs), "logit_row": index}
        scores: Tensor = self.executor.run(self.programs["head"], inputs)["scores"]
        return scores

    def logits(self, runs: Sequence[Rows], rows: Sequence[int] | None = None) -> Tensor:
        """Logits of the given rows of the step (default: all) [R, vocab]."""
        h = self.hidden(runs)
        index = torch.arange(len(h)) if rows is None else torch.tensor(rows, dtype=torch.int64)
        logits: Tensor = self.executor.run(self.programs["head"], {"h": h, "logit_row": index})["logits"]
        return logits


def _positions(run: Rows) -> range:
    return range(run.start, run.start + len(run.ids))
