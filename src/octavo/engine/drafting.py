"""Which sequences of a step run drafted ids, and how many: rows that others need less than these are worth.

Only where few sequences run: each row more then costs little beside reading the weights, and in a full batch it never
pays. It asks each sequence's drafter, and gives blocks only where they are spare. It does not know who runs.
"""

from __future__ import annotations

from octavo.engine.cache_groups import CacheGroups
from octavo.engine.cost_model import CostModel
from octavo.engine.roster import SchedulerConfig
from octavo.engine.sequence import Sequence
from octavo.speculation.drafter import Drafter

MOST_SEQUENCES = 8  # decode rows from which on nobody drafts: a further row costs a tenth of the step and more


class Drafting:
    """Drafts of one step after the other."""

    def __init__(self, config: SchedulerConfig, cache: CacheGroups, cost: CostModel) -> None:
        self._proposer, self._most = config.proposer, config.draft_tokens
        self._cache, self._cost = cache, cost
        self._rows = 0  # decode rows of the step, drafted ones included
        self._expected = 0.0  # ids that the step is expected to give
        self.open = False  # whether anyone may draft in this step

    def begin(self, decodes: int) -> None:
        """A step with `decodes` decode rows is made."""
        self.open = self._proposer is not None and 0 < decodes <= MOST_SEQUENCES
        self._rows, self._expected = decodes, float(decodes)

    def of(self, sequence: Sequence, rows: int, spare_blocks: int) -> tuple[int, ...]:
        """Guessed ids that join the decode row of `sequence`: at most `rows`, on at most `spare_blocks` new blocks."""
        if not self.open or self._proposer is None or sequence.next_logprob < sequence.prompt_len:
            return ()
        known = len(sequence.ids)
        limit = min(self._most, rows, sequence.length_limit - known - 1)
        drafter = sequence.drafter
        if drafter is None:
            drafter = sequence.drafter = Drafter(self._proposer())
        # Mirostat's mu takes row after row, and so does a mask.
        if limit <= 0 or drafter.off or sequence.constrained or sequence.live.request.params.stateful:
            return ()
        seconds = self._cost.few_rows(self._rows, limit)
        draft, expected = drafter.draft(sequence.ids, limit, self._expected, seconds)
        if draft and self._cache.shortage(sequence, known + len(draft)) > max(0, spare_blocks):
            return ()
        self._rows += len(draft)
        self._expected = expected
        return draft
