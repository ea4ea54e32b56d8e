"""What a model asks of a machine at least: the bytes of a decode step, the multiplications of a prompt.

The computed ceiling of a prefill is sum over linears of operations / (int8 peak x share of dots) + operations of the
attention / bf16 peak. The share of dots is counted from the tiles (native/kernels/linear_tile.h, `group`): of what the
pipes that multiply execute for 16 columns x 32 k of one row, `vpdpbusd` are 8; the others are, per activation group and
scale, a product of the two scales and the fma that adds the group, and an fma for the minimum where the format has one.
Loads, masks, shifts and conversions go elsewhere, and what is done once for many rows (a panel unpacked, the scales of
Q4_K and Q6_K) vanishes in a prompt. Holds for the AVX-512 variants; AVX2 has no dot product of its own. On
`amx` it is the ceiling of the same machine's vector units, which the matrix unit may pass (decision 0020).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.execution.ceilings import Ceilings
from octavo.execution.step import PAGE_TOKENS
from octavo.lowering.lowered import Lowered
from octavo.ops.op import op_of


@dataclass(frozen=True)
class Slots:
    """Multiplier instructions of 16 columns x 32 k x 1 row."""

    scales: int  # groups of a weight scale: a product and an fma each
    minima: int  # an fma each
    dots: int = 8

    @property
    def share(self) -> float:
        return self.dots / (self.dots + 2 * self.scales + self.minima)


SLOTS = {
    "q4_0": Slots(1, 0),  # 80 %
    "q5_0": Slots(1, 0),
    "q8_0": Slots(1, 0),
    "q4_1": Slots(1, 1),  # 73 %
    "q5_1": Slots(1, 1),
    "int8": Slots(1, 1),
    "q4_k": Slots(1, 1),
    "q5_k": Slots(1, 1),
    "q3_k": Slots(2, 0),  # 67 %
    "q6_k": Slots(2, 0),
    "q2_k": Slots(2, 3),  # 53 %: the sums of 16 activations are scaled for each pair of vectors
    **dict.fromkeys(
        ("iq4_nl", "iq4_xs", "mxfp4", "iq3_s", "iq3_xxs", "iq2_xxs", "iq1_s", "tq1_0", "tq2_0"), Slots(1, 0)
    ),
    **dict.fromkeys(("iq2_s", "iq2_xs", "iq1_m"), Slots(2, 0)),
}


@dataclass(frozen=True)
class Work:
    """Of one prompt: operations at the int8 peak, slots that are no dots counted as such, and at the bf16 peak."""

    int8: float
    bf16: float

    def seconds(self, ceilings: Ceilings) -> float:
        return self.int8 / ceilings.int8_ops_per_second + self.bf16 / ceilings.bf16_flops_per_second


def prefill_work(lowered: Lowered, prompt: int) -> Work:
    """Of `prompt` ids with one row of logits."""
    values = _values(lowered, 1, prompt, prompt)
    values["R"] = 1
    int8 = bf16 = 0.0
    for node in lowered.nodes():
        for each in node.origin.nodes:
            operations = op_of(each).operations(each).at(values)
            if each.op.name == "linear" and each.operands[0].dtype == "acts":
                int8 += operations / SLOTS[lowered.weights[each.operands[1].name].format].share
            elif each.op.name in ("linear", "attention"):
                bf16 += operations
    return Work(int8, bf16)


def decode_bytes(lowered: Lowered, batch: int, keys: int) -> int:
    """Packed weights that the linears read, each once, and the visible KV of `batch` sequences of `keys` keys."""
    values = _values(lowered, batch, 1, keys)
    read: dict[str, int] = {}
    cache = 0
    for node in lowered.nodes():
        for each in node.origin.nodes:
            if each.op.name == "linear":
                packed = lowered.weights[each.operands[1].name]
                read[packed.name] = packed.nbytes
            elif each.op.name == "attention":
                cache += op_of(each).state(each).at(values)
    return sum(read.values()) + cache


def _values(lowered: Lowered, batch: int, rows: int, keys: int) -> dict[str, int]:
    """Symbols of a step in which `batch` sequences have `rows` rows each, the last of which sees `keys` keys."""
    values = {"T": batch * rows, "S": batch, "R": batch}
    for layout in lowered.groups:
        group, window = layout.group, layout.group.window or keys
        token = layout.page_bytes // (PAGE_TOKENS * group.layers)
        visible = sum(min(window, keys - row) for row in range(rows))
        values[f"visible_keys.{group.index}"] = batch * visible
        values[f"kv_seen.{group.index}"] = batch * min(keys, window + rows - 1) * token
        values[f"kv_written.{group.index}"] = batch * rows * token
    return values
