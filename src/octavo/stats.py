"""StepStats: what one step tells the cost model, the metrics and the dashboard. Plain numbers, nothing else."""

from __future__ import annotations

import msgspec

STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # bounds of token rows of a step


class StepStats(msgspec.Struct, frozen=True):
    """Figures of one executed step. Times in seconds, monotonic clock."""

    step: int
    prefill_rows: int  # token rows of runs that did not sample by decode (chunks of prompts)
    decode_rows: int  # token rows of sampled runs of one known id, loops counted
    draft_rows: int  # token rows of drafted ids
    accepted: int  # drafted ids that were sampled
    sequences: int
    visible_keys: int  # sum over rows of keys seen by full attention: makes attention bytes exact
    loops: int  # decode steps that ran natively
    native_seconds: float  # inside the native call
    total_seconds: float  # the runner's whole call
