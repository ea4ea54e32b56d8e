"""The common step, without numpy: every run is one row that is sampled. Runner does all others.

A native step streams the weights through the caches, so that Python's own code and data come from memory again after
it: what takes 0.5 us in a loop takes 3 to 5 us then, and a numpy call touches most of all (its dispatch, its casts).
Slices of a memoryview take a fifth. What an earlier step wrote and this one needs again is not written again. It knows
the flat step, not the slot table.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.execution.step import Columns, ExecutionFacts, RowRun


class DecodeRows:
    """Writes the rows of such steps, and reads what they gave."""

    def __init__(self, facts: ExecutionFacts, step: dict[str, npt.NDArray[Any]]) -> None:
        self._step = step
        self._most = min(facts.max_seqs, facts.max_rows)
        self._counting = np.arange(self._most + 1)
        self._row_pos = step["row_pos"].data
        self._out_token = step["out_token"].data
        self._visible = [
            (step["row_lo"][group.index].data, step["row_hi"][group.index].data, group.window) for group in facts.groups
        ]
        self._slots: list[int] = []  # of the rows that lie in the step
        self._positions: list[int] = []

    def forget(self) -> None:
        """The step has been overwritten."""
        self._slots = []

    def write(self, runs: Sequence[RowRun]) -> bool:
        """Everything of the step but its header and its pages; one logit row each. False, and nothing is written, where
        a run has more than one row, is not sampled or wants prompt logprobs."""
        slots: list[int] = []
        positions: list[int] = []
        for run in runs:
            if run.count != 1 or not run.sample or run.prompt_logprobs_from is not None:
                return False
            slots.append(run.slot)
            positions.append(run.start)
        count = len(slots)
        if not 0 < count <= self._most:
            return False
        if slots != self._slots:
            self._write_slots(slots)
        self._positions = positions
        self._row_pos[:count] = array("i", positions)
        high = array("i", [position + 1 for position in positions])
        for row_lo, row_hi, window in self._visible:
            row_hi[:count] = high
            low = [max(end - window, 0) for end in high] if window else bytes(4 * count)
            row_lo[:count] = array("i", low)
        return True

    def _write_slots(self, slots: list[int]) -> None:
        """What stays as it is while the same sequences run."""
        view, count, counting = self._step, len(slots), self._counting
        self._slots = slots
        view["row_slot"][:count] = view["seq_slot"][:count] = slots
        view["seq_row"][: count + 1] = counting[: count + 1]
        view["logit_row"][:count] = view["logit_seq"][:count] = counting[:count]
        view["logit_target"][:count] = -1

    def visible_keys(self, loops: int) -> int:
        """That the rows saw in the last of so many steps of a loop."""
        return sum(self._positions) + len(self._positions) * max(loops, 1) if self._visible else 0

    def results(self, loops: int, finished: bool) -> Columns:
        """The sampled ids; no row had logprobs or a logit that is not finite."""
        return Columns(self._slots, self._out_token[: len(self._slots) * loops].tolist(), finished)
