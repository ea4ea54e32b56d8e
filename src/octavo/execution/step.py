"""Step and StepResult: what the engine asks of the execution, and what comes back.

A Step is complete as a difference: slots that open (with everything native code must know of the sequence), slots that
close, pages that are appended, and the rows to run. The runner applies it to the slot table; nothing is rebuilt per
step. Blocks of `--block-size` tokens are the engine's; here everything is in pages of 16 tokens.

What is made in every step is a struct of msgspec, at a fifth of a frozen dataclass's time.

It knows ids and pages; it does not know text, requests or who waits for the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from octavo.sampling_params import SamplingParams
from octavo.stats import StepStats

PAGE_TOKENS = 16


@dataclass(frozen=True)
class SlotOpen:
    """A sequence enters the slot table: `ids` are its prompt ids, then the ids it has emitted before (resume)."""

    slot: int
    ids: tuple[int, ...]
    prompt_len: int
    params: SamplingParams
    seed: int  # 64 bits, the key of the sampler
    choice: int  # index of the choice (n > 1), part of the sampler's counter
    length_limit: int  # the sequence ends when it has this many ids
    stop_ids: tuple[int, ...]  # eos ids (unless ignore_eos) and stop_token_ids
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    breaker_bits: bytes = b""  # ids that end a repetition for DRY: bit id % 8 of byte id / 8
    mu: float | None = None  # Mirostat's state after `ids`; None: at its beginning
    second: int | None = None  # position at which the second text of a pair begins
    opening: int = 0  # not 0: ids need masks, which are told apart from those of others in this slot by this number


@dataclass(frozen=True)
class PagesAppended:
    """`pages` become the pages of positions 16 * first, 16 * (first + 1), ... of a slot in a paged group."""

    slot: int
    group: int
    first: int
    pages: tuple[int, ...]


class RowRun(msgspec.Struct, frozen=True):
    """Positions [start, start + count) of a slot are computed in this step; their rows are adjacent.

    sample: the last row's logits give the next token (the run reaches the last known id).
    prompt_logprobs_from: position p >= 1 whose id is the first to get a prompt logprob in this run (its logits come
    from row p - 1), or None. Logprobs are given for positions p .. start + count (those that are prompt ids).
    draft: guessed ids after the last known one; the last of the `count` positions are theirs. Every row from the last
    known id on is sampled as long as what it gave is what was drafted: 1 to len(draft) + 1 ids come back.
    """

    slot: int
    start: int
    count: int
    sample: bool
    prompt_logprobs_from: int | None = None
    draft: tuple[int, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One call of the executor. With loop > 1 every run is a single sampled decode row."""

    number: int
    runs: tuple[RowRun, ...] = ()
    opens: tuple[SlotOpen, ...] = ()
    closes: tuple[int, ...] = ()
    pages: tuple[PagesAppended, ...] = ()
    zero_pages: tuple[int, ...] = ()  # pages that changed owner
    copy_pages: tuple[tuple[int, int], ...] = ()  # (from, to), after zeroing, before the rows run
    loop: int = 1
    epoch: int = 0

    @property
    def rows(self) -> int:
        return sum(run.count for run in self.runs)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Raw log-probability and rank of one id, and the most likely ids at its position (descending)."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class RunResult(msgspec.Struct):
    """What one RowRun gave: up to `loop` sampled ids, or up to one more than were drafted, in order."""

    slot: int
    token_ids: list[int] = []  # each has its own: msgspec copies it
    logprobs: list[TokenLogprobs] | None = None  # one per token id, when the request asked for them
    prompt_logprobs: list[TokenLogprobs] | None = None  # for the positions that RowRun.prompt_logprobs_from names
    mu: float | None = None  # Mirostat's state after token_ids
    nonfinite: bool = False  # the row had a NaN or infinite logit: the request must end with an error
    # The same in a run with drafts, which then gave nothing: they may be to blame, and its KV is bad.
    broken: bool = False
    barred: bool = False  # no id might be chosen
    late: bool = False  # the mask of a constrained row was not there: it gave nothing, and is to be computed again
    vector: bytes | None = None  # float32, little-endian: of a whole sequence, where the model gives no ids


class Columns(msgspec.Struct, frozen=True):
    """What single sampled rows gave, without an object for each: the ids of all runs, in order, for one step of the
    loop after the other. finished: a sequence has come to its end with its last id; else none has."""

    slots: list[int]
    ids: list[int]
    finished: bool

    def runs(self) -> tuple[RunResult, ...]:
        """The same as an object for each run."""
        count = len(self.slots)
        return tuple([RunResult(slot, self.ids[at::count]) for at, slot in enumerate(self.slots)])


class StepResult(msgspec.Struct, frozen=True):
    """Results in the order of Step.runs. aborted: the step was stopped inside and committed nothing. columns: in place
    of `given`, where every run was a plain decode row."""

    number: int
    given: tuple[RunResult, ...]
    stats: StepStats
    aborted: bool = False
    columns: Columns | None = None

    @property
    def runs(self) -> tuple[RunResult, ...]:
        return self.given if self.columns is None else self.columns.runs()


@dataclass(frozen=True)
class PagedGroup:
    """A paged state group as the engine sees it: which keys of a sequence must stay."""

    name: str
    index: int
    window: int  # 0: all keys; w: the last w keys are visible
    whole: bool = False  # rows see each other in both directions: a sequence is computed in one step, and not kept


@dataclass(frozen=True)
class ExecutionFacts:
    """What the engine must know of the executor: fixed at start."""

    groups: tuple[PagedGroup, ...]
    pages: int  # pages of 16 tokens in the shared pool (page 0 is the null page and never given out)
    max_rows: int  # T: token rows of a step at most
    max_seqs: int  # slots
    max_model_len: int
    vocab_size: int
    fingerprint: str
    vector: int = 0  # numbers that a sequence gives in place of ids (an embedding, or scores); 0: it gives ids
    keeps_prefixes: bool = True  # rows of a prefix need not be computed again

    @property
    def whole(self) -> bool:
        """Sequences are computed in one step each."""
        return any(group.whole for group in self.groups)

    def named(self, fingerprint: str) -> ExecutionFacts:
        """The same facts under the fingerprint of loaded weights."""
        return replace(self, fingerprint=fingerprint)
