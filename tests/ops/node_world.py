"""Native nodes run alone: a machine with a step, a slot table, pages and a region for operands. No model, no lowering.

It writes argument lists by hand as native/kernel.h describes them, and checks nothing itself.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.execution.kv_pages import KvPages
from octavo.execution.layout import HEADER, FlatLayout, slot_layout, step_layout
from octavo.execution.tape import Image, Word, buffer, dimension, float_bits, immediate, node_tape
from octavo.kernels import library
from octavo.lowering.layouts import group_layout
from octavo.program.graph import StateGroup
from octavo.quantization.i_quants import GRIDS
from octavo.quantization.kv import KV_DTYPES
from octavo.quantization.panels import LAYOUTS, SUPER, PackedLayout, kernel_name, packed_bytes

Floats = NDArray[np.float32]
VARIANTS = library.runnable_variants()
SUMMED = [kernel_name(layout.id, SUPER) for layout in LAYOUTS.values() if layout.span == SUPER]
KERNELS = [*LAYOUTS, *SUMMED]  # native formats
ROWS, SLOTS, IDS = 512, 4, 1024
SLOT_PAGES = 20  # 320 positions: more than a split of keys
SCRATCH = 4 << 20
GUARD = 32  # columns and a row beyond an output that must stay as they were


class World:
    """Operands live until `forget`; one group of pages where `group` is given."""

    def __init__(
        self, isa: str, *, threads: int = 2, operands: int = 24 << 20, group: StateGroup | None = None,
        kv_dtype: str = "float32",
    ) -> None:  # fmt: skip
        self.isa = isa
        self.machine = library.new_machine(isa=isa, threads=threads, scratch_bytes=SCRATCH)
        step = step_layout(rows=ROWS, seqs=SLOTS, groups=1, page_ops=1)
        slots = slot_layout(slots=SLOTS, ids=IDS, groups=1, pages=IDS // 16, vocab=64)
        region, self.step = self._flat("step", step)
        self.machine.bind_step(region, list(step.offsets), ROWS, SLOTS, step.bounds["R"], 1, 1)
        region, self.slots = self._flat("slots", slots)
        self.machine.bind_slots(region, list(slots.offsets), SLOTS, IDS, 1, IDS // 16, slots.bounds["V32"])
        self._operands = self.machine.allocate("operands", operands)
        self._memory = library.region_bytes(self.machine, self._operands, operands)
        self._end = 0
        if group is not None:
            layout, pages = group_layout(group, kv_dtype), 1 + SLOTS * SLOT_PAGES
            pool = self.machine.allocate("kv", pages * layout.page_bytes)
            self.pool = library.region_bytes(self.machine, pool, pages * layout.page_bytes)
            self.pages = KvPages(layout, self.pool, layout.page_bytes)
            self.machine.add_group(
                pool, pages, layout.page_bytes, 0, group.layers, group.kv_heads, group.head_dim,
                KV_DTYPES[kv_dtype].number, group.window,
            )  # fmt: skip

    def _flat(self, kind: str, layout: FlatLayout) -> tuple[int, dict[str, NDArray[Any]]]:
        region = self.machine.allocate(kind, layout.nbytes)
        return region, layout.views(library.region_bytes(self.machine, region, layout.nbytes))

    def forget(self) -> None:
        self._end = 0

    def room(self, nbytes: int) -> tuple[Word, NDArray[np.uint8]]:
        """Memory of all ones: a NaN as floats."""
        begin, self._end = self._end, -(-(self._end + nbytes) // 64) * 64
        view = self._memory[begin : begin + nbytes]
        view[:] = 0xFF
        return buffer(self._operands, begin, nbytes), view

    def put(self, values: NDArray[Any]) -> Word:
        data = np.ascontiguousarray(values)
        word, view = self.room(data.nbytes)
        view[:] = data.reshape(-1).view(np.uint8)
        return word

    def floats(self, rows: int, columns: int) -> tuple[Word, int, Floats]:
        """An output [rows + 1, columns + GUARD]: word, ld, view."""
        ld = columns + GUARD
        word, view = self.room((rows + 1) * ld * 4)
        return word, ld, view.view(np.float32).reshape(rows + 1, ld)

    def run(self, kernel: str, args: Sequence[Word | str], rows: int) -> None:
        """Words, and names of entries."""
        image = Image()
        words = [image.entry(arg) if isinstance(arg, str) else arg for arg in args]
        image.add(kernel, words)
        self.step["header"][[HEADER.index("rows"), HEADER.index("logit_rows")]] = rows
        self.machine.run_nodes(node_tape(self.machine.load(image.words(), image.names)), rows)

    def rows(self, runs: Sequence[tuple[int, int, int]], window: int = 0) -> None:
        """The step's rows: (slot, first position, count), causal; each slot owns SLOT_PAGES pages in no order."""
        slot = np.repeat([run[0] for run in runs], [run[2] for run in runs])
        position = np.concatenate([np.arange(start, start + count) for _, start, count in runs] or [[]])
        count = len(slot)
        self.step["row_slot"][:count], self.step["row_pos"][:count] = slot, position
        self.step["row_hi"][0, :count] = position + 1
        self.step["row_lo"][0, :count] = np.maximum(position + 1 - window, 0) if window else 0
        self.step["seq_slot"][: len(runs)] = [run[0] for run in runs]
        self.step["seq_row"][: len(runs) + 1] = np.cumsum([0] + [run[2] for run in runs])
        self.step["header"][HEADER.index("seqs")] = len(runs)
        self.slots["page"][:] = -1
        owned = 1 + np.random.default_rng(0).permutation(SLOTS * SLOT_PAGES)
        self.slots["page"][:, 0, :SLOT_PAGES] = owned.reshape(SLOTS, SLOT_PAGES)


@cache
def world(isa: str, threads: int = 2) -> World:
    """One without pages, shared by tests."""
    return World(isa, threads=threads)


def one(name: str, *args: Word | str) -> list[Word | str]:
    """An inlined op: {function, count, args...}."""
    return [name, immediate(len(args)), *args]


Group = tuple[int, Sequence[tuple[Word, str]], Sequence[list[Any]]]  # columns, [(weight, layout id)], epilogue ops


def linear(
    acts: Word, k: int, *, span: int, groups: Sequence[Group],
    src: tuple[Word, int] | None = None, prologue: Sequence[list[Any]] = (), share: int = 16, unit: int = 32,
) -> list[Word | str]:  # fmt: skip
    """Arguments of a linear."""
    source = (immediate(0), immediate(0)) if src is None else (src[0], immediate(src[1]))
    args: list[Word | str] = [dimension(1, "T"), immediate(k), *source, acts]
    args += [immediate(span), immediate(share), immediate(0), immediate(len(prologue))]
    args += [arg for op in prologue for arg in op]
    args.append(immediate(len(groups)))
    for columns, weights, epilogue in groups:
        args += [immediate(unit), immediate(-(-columns // unit)), immediate(columns), immediate(len(weights))]
        for weight, layout in weights:
            args += [weight, f"format.{layout}"]
        args += [immediate(len(epilogue)), *(arg for op in epilogue for arg in op)]
    return args


def norm_op(weight: Word, eps: float) -> list[Word | str]:
    return one("row.rms_norm", weight, float_bits(eps))


def store_op(out: Word, ld: int) -> list[Word | str]:
    return one("tile.store", out, immediate(ld))


# Where the float16 scales stand in a block; every other byte may be any byte.
SCALES = {
    "u4": (512, 640), "u5": (640, 768), "u8": (1024, 1152), "q2_k": (2560, 2688), "q3_k": (3072, 3136),
    "q4_k": (4096, 4224), "q5_k": (5120, 5248), "q6_k": (6656, 6720), "iq4_nl": (512, 576), "tq2_0": (2048, 2112),
    **dict.fromkeys(("iq4_xs", *GRIDS), (4096, 4160)),
}  # fmt: skip


def whole_k(kernel: str, k: int) -> int:
    """`k`, or the next K that the layout has blocks for."""
    block = layout_of(kernel).k_block
    return -(-k // block) * block


def layout_of(kernel: str) -> PackedLayout:
    """What a native format reads (quantization/panels.py, kernel_name)."""
    return LAYOUTS[kernel.removesuffix(f".s{SUPER}")]


def act_span(kernel: str) -> int:
    """Values of a row that share a scale where a native format reads it; 0 where it reads floats."""
    return SUPER if kernel in SUMMED else 32 if layout_of(kernel).k_block > 1 else 0


def skip_unbuilt(isa: str, kernel: str) -> None:
    """Only variants that are compiled with a matrix unit in mind sum super-blocks in integers."""
    if kernel in SUMMED and isa not in ("amx", "avx512bf16"):
        pytest.skip(f"{isa} has no {kernel}")


def packed_weight(kernel: str, n: int, k: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A packed weight of random codes and scales, or of random floats."""
    layout = layout_of(kernel)
    out = np.zeros(packed_bytes(layout, n, k), np.uint8)
    if layout.k_block == 1:
        values = random.standard_normal(len(out) // (layout.block_bytes // 32)).astype(np.float32)
        return _narrowed(values, layout).view(np.uint8)
    blocks = out.reshape(-1, layout.block_bytes)
    blocks[:] = random.integers(0, 256, blocks.shape)
    if layout.elements == "mxfp4":  # exponents of about 1/64 of what a table entry is
        blocks[:, 512:] = random.integers(118, 126, (len(blocks), 32))
        return out
    scales = blocks[:, slice(*SCALES[layout.elements])]
    halves = random.standard_normal((len(blocks), scales.shape[1] // 2)) * 0.02
    scales[:] = halves.astype(np.float16).view(np.uint8)
    return out


def _narrowed(values: Floats, layout: PackedLayout) -> NDArray[Any]:
    if layout.elements == "f32":
        return values
    if layout.elements == "f16":
        return values.astype(np.float16)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def float_panels(weight: Floats) -> NDArray[np.uint8]:
    """A float32 weight [n, k] in panels of 32 columns, ragged ones filled with zeros."""
    n, k = weight.shape
    padded = np.zeros((-(-n // 32) * 32, k), np.float32)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, 32, k).transpose(0, 2, 1)).reshape(-1).view(np.uint8)


def through(at: World, x: Floats, epilogue: Sequence[list[Any]], *, unit: int = 32) -> None:
    """Run tile ops on the tile x [rows, columns]: a product with the identity is exact."""
    rows, columns = x.shape
    weight = at.put(float_panels(np.eye(columns, dtype=np.float32)))
    groups = [(columns, [(weight, "f32.p32.k1.1")], epilogue)]
    at.run("linear", linear(at.put(x), columns, span=0, groups=groups, unit=unit), rows)
