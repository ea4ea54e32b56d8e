"""The native node "sample" alone: a machine with a step, a slot table, logits and a workspace. No model.

It writes `Parameters` (the reference's) into the slot table and gives back the result fields; it checks nothing itself.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.execution.layout import HEADER, FlatLayout, slot_layout, step_layout
from octavo.execution.tape import Image, buffer, dimension, immediate, node_tape
from octavo.kernels import library
from octavo.kernels.reference.sample_filters import Parameters
from octavo.sampling_params import SAMPLER_CODES, pack_bad_words

RESULTS = ("out_token", "out_logprob", "out_rank", "out_status", "out_top_id", "out_top_logprob", "out_mu")
LISTS = ("ids", "stop_ids", "logit_bias", "bad_words", "allowed", "chain", "breakers")  # columns of another shape
SCALARS = tuple(each.name for each in fields(Parameters) if each.name not in LISTS)
Results = dict[str, npt.NDArray[Any]]


def workspace_bytes(vocab: int, threads: int) -> int:
    """The formula of native/kernels/sample.cc."""
    padded = -(-vocab // 256) * 256
    return threads * (16 * padded + padded // 2 + -(-(padded // 64) // 64) * 64)


class SamplerNode:
    """At most `rows` rows at a time; `ids` bounds the ids before the sampled one."""

    def __init__(self, vocab: int, *, rows: int = 64, ids: int = 256, isa: str = "auto", threads: int = 2) -> None:
        self.vocab, self.rows, self.ld = vocab, rows, -(-vocab // 32) * 32
        self.machine = library.new_machine(isa=isa, threads=threads, scratch_bytes=4096)
        step = step_layout(rows=rows, seqs=rows, groups=1, page_ops=1)
        slots = slot_layout(slots=rows, ids=ids, groups=1, pages=1, vocab=vocab)
        step_region, self.step = self._flat("step", step)
        slot_region, self.slots = self._flat("slots", slots)
        self.machine.bind_step(step_region, list(step.offsets), rows, rows, step.bounds["R"], 1, 1)
        self.machine.bind_slots(slot_region, list(slots.offsets), rows, ids, 1, 1, slots.bounds["V32"])
        logits_region, memory = self._region("logits", rows * self.ld * 4)
        self.logits = memory.view(np.float32).reshape(rows, self.ld)
        self.logits[:, vocab:] = np.nan  # padding must not be read
        nbytes = workspace_bytes(vocab, threads)
        workspace, scratch = self._region("workspace", nbytes)
        scratch[:] = 0xA5  # nothing may depend on what lies there
        image = Image()
        image.add("sample", [
            buffer(logits_region, 0, rows * self.ld * 4), immediate(self.ld), immediate(vocab),
            buffer(workspace, 0, nbytes), immediate(nbytes), dimension(1, "R"),
        ])  # fmt: skip
        self.tape = node_tape(self.machine.load(image.words(), image.names))

    def _region(self, kind: str, nbytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
        region = self.machine.allocate(kind, nbytes)
        return region, library.region_bytes(self.machine, region, nbytes)

    def _flat(self, kind: str, layout: FlatLayout) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        region, memory = self._region(kind, layout.nbytes)
        return region, layout.views(memory)

    def sample(
        self, logits: npt.NDArray[np.float32], rows: Sequence[Parameters], targets: Sequence[int] | None = None
    ) -> Results:
        """logits [n, V], one Parameters a row -> the result fields [n]; `nonfinite` is the header's count."""
        count = len(rows)
        self.logits[:count, : self.vocab] = logits
        self.step["header"][:] = 0
        self.step["logit_target"][:count] = -1 if targets is None else targets
        for index, row in enumerate(rows):
            slot = (5 * index + 3) % self.rows if self.rows % 5 else index
            self.step["logit_row"][index] = self.step["logit_seq"][index] = count - 1 - index
            self.step["seq_slot"][count - 1 - index] = slot
            self.step["row_pos"][count - 1 - index] = len(row.ids) - 1
            self._fill(slot, row)
        self.machine.run_nodes(self.tape, count)
        made = {name: self.step[name][:count].copy() for name in RESULTS}
        return made | {"nonfinite": self.step["header"][HEADER.index("nonfinite")].copy()}

    def _fill(self, slot: int, row: Parameters) -> None:
        put = self.slots
        put["ids"][slot] = -7  # what comes after the known ids must not be read
        put["ids"][slot, : len(row.ids)] = row.ids
        for name in SCALARS:
            put[name][slot] = getattr(row, name)
        put["chain"][slot] = 0
        put["chain"][slot, : len(row.chain)] = [SAMPLER_CODES[name] for name in row.chain]
        put["breaker"][slot] = 0 if row.breakers is None else self._bits(row.breakers)
        put["stop_ids"][slot] = len(row.stop_ids)
        put["stop_id"][slot, : len(row.stop_ids)] = row.stop_ids
        put["biases"][slot] = len(row.logit_bias)
        put["bias_id"][slot, : len(row.logit_bias)] = list(row.logit_bias)
        put["bias_value"][slot, : len(row.logit_bias)] = list(row.logit_bias.values())
        words = pack_bad_words(row.bad_words)
        put["bad_word"][slot, : len(words)] = words
        put["masked"][slot] = row.allowed is not None
        if row.allowed is not None:
            put["mask"][slot] = self._bits(row.allowed)

    def _bits(self, ids: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
        padded = np.zeros(self.slots["mask"].shape[1] * 32, bool)
        padded[: self.vocab] = ids
        return np.packbits(padded, bitorder="little").view(np.uint32)
