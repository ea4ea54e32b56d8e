"""How long a step will take: seconds = fixed + rows x per_row + visible keys x per_key, times a running correction.

Fitted at start from a few timed steps, corrected while running by the ratio of measured to predicted time, apart for
steps of decode rows alone (bound by reading weights) and for steps with prefill (bound by arithmetic). It knows no
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST_FEW = 512  # rows up to which the times of small steps are tabulated: 8 sequences of 64 rows
SMOOTHING = 0.1  # weight of the newest step: ten steps forget a disturbance
CORRECTION = (0.125, 8.0)  # bounds of the running correction: beyond, the fit is of another machine


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step that was run to fit the model."""

    rows: int
    visible_keys: int
    seconds: float


class CostModel:
    """Predicts the native time of a step. Without a fit it starts from figures of a 135M model on two cores."""

    def __init__(self, fixed: float = 3e-3, per_row: float = 2.5e-4, per_key: float = 5e-8) -> None:
        self.fixed = fixed
        self.per_row = per_row
        self.per_key = per_key
        self._ratio = [1.0, 1.0]  # decode only, with prefill
        self.tabulate({1: fixed + per_row, MOST_FEW: fixed + MOST_FEW * per_row})

    @classmethod
    def fitted(cls, timed: Sequence[TimedStep]) -> CostModel:
        """Least squares over `timed`; a coefficient that comes out negative is noise and becomes 0.

        Each equation is divided by its time, so that short steps count as much as long ones."""
        if len(timed) < 3:
            raise ValueError(f"a fit of three coefficients needs at least three timed steps, got {len(timed)}")
        scale = np.array([1.0 / step.seconds for step in timed])
        matrix = np.array([[1.0, step.rows, step.visible_keys] for step in timed]) * scale[:, None]
        columns = [0, 1, 2]
        found = np.zeros(3)
        while columns:
            solved, *_ = np.linalg.lstsq(matrix[:, columns], np.ones(len(timed)), rcond=None)
            if (solved >= 0).all():
                found[columns] = solved
                break
            columns.pop(int(np.argmin(solved)))
        return cls(float(found[0]), max(float(found[1]), 1e-9), float(found[2]))

    def predict(self, rows: int, visible_keys: int, prefill: bool) -> float:
        """Seconds of a step of `rows` token rows that see `visible_keys` keys in all."""
        return (self.fixed + self.per_row * rows + self.per_key * visible_keys) * self._ratio[prefill]

    def rows_within(self, seconds: float, start: int) -> int:
        """Prefill rows from position `start` on that fit into `seconds` beside what is in the step already."""
        seconds /= self._ratio[1]
        if seconds <= 0:
            return 0
        rows = seconds / (self.per_row + self.per_key * start)
        # Row i sees start + i keys: the mean row of the chunk sees start + rows / 2.
        return int(seconds / (self.per_row + self.per_key * (start + rows / 2)))

    def prefill_seconds(self, rows: int, start: int) -> float:
        """What a chunk adds to a step."""
        return rows * (self.per_row + self.per_key * (start + rows / 2)) * self._ratio[1]

    def tabulate(self, timed: Mapping[int, float]) -> None:
        """Seconds of steps of few rows that all need logits, by rows (two of them at least): straight lines between.

        A line from one row on would not do: while reading the weights takes longest, a further row is free."""
        rows = sorted(timed)
        seconds = np.maximum.accumulate([timed[each] for each in rows])  # what gets faster with more rows is noise
        slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
        each = np.arange(MOST_FEW + 1)
        beyond = seconds[-1] + slope * (each - rows[-1])
        self._few = tuple(np.where(each > rows[-1], beyond, np.interp(each, rows, seconds)).tolist())

    def few_rows(self, rows: int, more: int) -> Sequence[float]:
        """Seconds of steps of `rows` rows, of one more, ... of `more` more, as tabulated; fewer at the table's end."""
        return self._few[rows : rows + more + 1]

    def observe(self, rows: int, visible_keys: int, prefill: bool, seconds: float) -> None:
        """A step of this shape took `seconds`."""
        expected = self.fixed + self.per_row * rows + self.per_key * visible_keys
        low, high = CORRECTION
        ratio = min(high, max(low, seconds / expected)) if expected > 0 else 1.0
        self._ratio[prefill] += SMOOTHING * (ratio - self._ratio[prefill])
