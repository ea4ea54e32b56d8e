"""Step -> one native call -> vectors: the runner of a model that gives embeddings or scores in place of ids.

Rows of hidden states become one vector here, in token order over however many steps a sequence takes, so that chunks
change no bit; a classifier's scores come from its head. It knows how a step is laid out through the runner of ids.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from octavo.execution.native import NativeExecutor
from octavo.execution.runner import Runner
from octavo.execution.step import RowRun, RunResult, SlotOpen, Step, StepResult

CLS, LAST, MEAN = "cls", "last", "mean"


class PoolingRunner(Runner):
    """Runs Steps on an executor without a sampler. kind: the rows of a sequence that count (checkpoints/pooling.py).

    Vectors have the model's width, or are the scores of its labels; they are not normalized. A mean is a sum in float64
    from the first row to the last.
    """

    def __init__(self, executor: NativeExecutor, kind: str) -> None:
        super().__init__(executor)
        program, name = ("head", "scores") if "head" in executor.programs else ("body", "h")
        self._scores = name == "scores"
        self._output = executor.output(program, name)
        self._kind = kind
        self._sums: dict[int, NDArray[np.float64]] = {}  # slot -> sum of the rows of the steps before
        keeps = kind == LAST and not executor.facts.whole
        self.facts = replace(executor.facts, vector=self._output.shape[1], keeps_prefixes=keeps)

    def run(self, step: Step) -> StepResult:
        """Carry out `step`. Raises ValueError when it exceeds the bounds (a mistake of the engine)."""
        begin = time.perf_counter()
        for slot in step.closes:
            self._sums.pop(slot, None)
        for opened in step.opens:
            self._open(opened)
        page = self._slots["page"]
        for added in step.pages:
            page[added.slot, added.group, added.first : added.first + len(added.pages)] = added.pages
        self._decodes.forget()
        rows = self._write_rows(step.runs)
        ends = self._step["seq_row"][: len(step.runs) + 1].tolist()
        reads = ends[:-1] if self._kind == CLS else [end - 1 for end in ends[1:]]
        self._step["logit_row"][: len(reads)] = reads
        self._write_header(step, rows, len(reads))
        native = time.perf_counter()
        finished = self._executor.execute() if rows or step.zero_pages or step.copy_pages else True
        native = time.perf_counter() - native
        runs = tuple(
            self._result(run, index, (ends[index], ends[index + 1])) if finished else RunResult(run.slot)
            for index, run in enumerate(step.runs)
        )
        stats = self._stats(step, rows, (0, 0, 0), int(finished), self._visible_keys(rows), native, begin)
        return StepResult(step.number, runs, stats, not finished)

    def _open(self, opened: SlotOpen) -> None:
        super()._open(opened)
        self._sums.pop(opened.slot, None)

    def _result(self, run: RowRun, index: int, rows: tuple[int, int]) -> RunResult:
        """What a run gave: nothing before its last row is computed."""
        first, end = rows
        result = RunResult(run.slot)
        if self._scores:
            vector = self._output[index]
        elif self._kind == MEAN:
            total = self._sum(run, self._output[first:end])
            vector = (total / (run.start + run.count)).astype(np.float32)
        else:
            vector = self._output[first if self._kind == CLS else end - 1]
        if run.sample:
            result.nonfinite = not bool(np.isfinite(vector).all())
            result.vector = vector.astype("<f4").tobytes()
        return result

    def _sum(self, run: RowRun, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum of a sequence's rows so far, row by row: numpy's own sum takes another order for other counts."""
        total = self._sums.get(run.slot) if run.start else None
        total = np.zeros(rows.shape[1]) if total is None else total
        for row in rows:
            total += row
        self._sums[run.slot] = total
        return total
