"""A mixture of experts: a router, and gated MLPs of which each row takes some; beside it one that every row takes."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.layers.linear import Linear
from octavo.layers.module import Layer, Module
from octavo.ops.activation import add, sigmoid_mul
from octavo.ops.moe import Gating, Routing, moe
from octavo.program.graph import Value


@dataclass(frozen=True)
class MoE(Module):
    """x [T, width] -> [T, width] through `inner` columns of each chosen expert.

    router: the name of the layer that gives logits. has_bias: the router and every product of the experts add one.
    """

    width: int
    inner: int
    experts: int
    routing: Routing
    router: str = "gate"
    gating: Gating = Gating()
    has_bias: bool = False

    def __call__(self, x: Value) -> Value:
        logits = Linear(self.child(self.router), self.width, self.experts, self.has_bias)(x)
        shapes = {"gate_proj": (self.inner, self.width), "up_proj": (self.inner, self.width)}
        shapes["down_proj"] = (self.width, self.inner)

        def of(layer: str, kind: str, *shape: int) -> Value:
            return self.weight(x.program, f"experts.{layer}.{kind}", (self.experts, *shape))

        weights = [of(layer, "weight", *shape) for layer, shape in shapes.items()]
        biases = [of(layer, "bias", shape[0]) for layer, shape in shapes.items()] if self.has_bias else []
        return moe(x, logits, weights, biases, routing=self.routing, gating=self.gating)


@dataclass(frozen=True)
class WithShared(Module):
    """x [T, width] -> routed(x) + sigmoid(gate(x)) * shared(x), the gate one column."""

    routed: MoE
    shared: Layer

    def __call__(self, x: Value) -> Value:
        # just before the router, which reads the same rows: one phase computes both
        gate = Linear(self.child("shared_expert_gate"), self.routed.width, 1)(x)
        routed = self.routed(x)
        return add(sigmoid_mul(self.shared(x), gate), routed)
