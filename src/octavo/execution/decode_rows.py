"""The common step, in few numpy calls: every run is one row that is sampled. Runner does all others.

A native step leaves the caches cold for Python, so that a numpy call takes 3 to 5 us instead of 0.5; what an earlier
step wrote and this one needs again is not written again. It knows the flat step, not the slot table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.execution.step import ExecutionFacts, RowRun, RunResult


class DecodeRows:
    """Writes the rows of such steps, and reads what they gave."""

    def __init__(self, facts: ExecutionFacts, step: dict[str, npt.NDArray[Any]]) -> None:
        self._step = step
        self._most = min(facts.max_seqs, facts.max_rows)
        self._counting = np.arange(self._most + 1)
        self._windows = [(group.index, group.window) for group in facts.groups]
        self._slots: list[int] = []  # of the rows that lie in the step
        self._positions: list[int] = []

    def fits(self, runs: Sequence[RowRun]) -> bool:
        """One row each, sampled, and no prompt logprobs."""
        for run in runs:
            if run.count != 1 or not run.sample or run.prompt_logprobs_from is not None:
                return False
        return 0 < len(runs) <= self._most

    def forget(self) -> None:
        """The step has been overwritten."""
        self._slots = []

    def write(self, runs: Sequence[RowRun]) -> None:
        """Everything of the step but its header and its pages; one logit row each."""
        view, count = self._step, len(runs)
        slots = [run.slot for run in runs]
        if slots != self._slots:
            self._slots = slots
            counting = self._counting
            view["row_slot"][:count] = view["seq_slot"][:count] = slots
            view["seq_row"][: count + 1] = counting[: count + 1]
            view["logit_row"][:count] = view["logit_seq"][:count] = counting[:count]
            view["logit_target"][:count] = -1
        self._positions = positions = [run.start for run in runs]
        rows = view["row_pos"][:count]
        rows[:] = positions
        high = rows + 1
        for index, window in self._windows:
            view["row_hi"][index, :count] = high
            view["row_lo"][index, :count] = np.maximum(high - window, 0) if window else 0

    def visible_keys(self, loops: int) -> int:
        """That the rows saw in the last of so many steps of a loop."""
        return sum(self._positions) + len(self._positions) * max(loops, 1) if self._windows else 0

    def results(self, loops: int) -> tuple[RunResult, ...]:
        """The sampled ids of each run; none had logprobs or a logit that is not finite."""
        slots = self._slots
        count = len(slots)
        tokens = self._step["out_token"][: count * loops].tolist()
        return tuple([RunResult(slot, tokens[at::count]) for at, slot in enumerate(slots)])
