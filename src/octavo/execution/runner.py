"""Step -> flat arrays -> one native call -> StepResult.

The runner applies a Step to the slot table (the only copy of per-sequence state that native code reads) and to the flat
step, calls the executor, and reads the results back. It knows where everything lies; it does not know requests, text,
or which tokens should run next.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from octavo.execution.decode_rows import DecodeRows
from octavo.execution.layout import ABI, HEADER, LAYOUT_HASH, MAGIC, MAX_STOP_IDS
from octavo.execution.step import ExecutionFacts, RowRun, RunResult, SlotOpen, Step, StepResult, TokenLogprobs
from octavo.sampling_params import SamplingParams, pack_bad_words
from octavo.stats import StepStats

FINISHED = 1  # `left_because` of a step after which a sequence is at its end
BARRED, REJECTED, LATE = 2, 3, 4  # status of a row: no id is allowed, behind a draft that was not sampled, no mask yet
H = {name: i for i, name in enumerate(HEADER)}
_SAID = struct.Struct("=9q")  # header words from `epoch` on: what a step says to native code, in one go
_DONE = struct.Struct("=3q")  # from `loops_done` on: what native code says
Views = dict[str, npt.NDArray[Any]]


class Executor(Protocol):
    """What a runner needs: the two flat memories, and a call that runs the step lying in them."""

    facts: ExecutionFacts
    step: Views
    slots: Views

    def execute(self) -> bool:
        """Run the step; False when it was stopped and committed nothing."""


class Runner:
    """Runs Steps on an executor."""

    def __init__(self, executor: Executor) -> None:
        self.facts = executor.facts
        self._executor = executor
        self._step = executor.step
        self._slots = executor.slots
        header = executor.step["header"]
        self._words = header.data.cast("B")
        self._windows = [(group.index, group.window) for group in executor.facts.groups]
        self._whole = executor.facts.whole
        self._decodes = DecodeRows(executor.facts, executor.step)
        self._wants_logprobs: dict[int, int] = {}  # slot -> number of top logprobs asked for
        self._prompt_tops: dict[int, int] = {}  # the same for the prompt's
        self._stateful: set[int] = set()  # slots whose sampler has a state
        header[H["magic"]], header[H["abi"]], header[H["hash"]] = MAGIC, ABI, LAYOUT_HASH

    def run(self, step: Step) -> StepResult:
        """Carry out `step`. Raises ValueError when it exceeds the bounds (a mistake of the engine)."""
        begin = time.perf_counter()
        for slot in step.closes:
            self._forget(slot)
        for opened in step.opens:
            self._open(opened)
        page = self._slots["page"]
        for added in step.pages:
            page[added.slot, added.group, added.first : added.first + len(added.pages)] = added.pages
        decodes = self._decodes.write(step.runs)
        if decodes:
            rows, logit_rows = len(step.runs), [(index, -1) for index in range(len(step.runs))]
        else:
            self._decodes.forget()
            rows, logit_rows = self._write_rows(step.runs), self._write_logit_rows(step.runs)
        self._write_header(step, rows, len(logit_rows))
        native = time.perf_counter()
        finished = self._executor.execute() if rows or step.zero_pages or step.copy_pages else True
        native = time.perf_counter() - native
        loops, left_because, nonfinite = _DONE.unpack_from(self._words, H["loops_done"] * 8)
        columns = None
        runs: tuple[RunResult, ...] = ()
        if decodes and not self._wants_logprobs and not self._stateful and not nonfinite:
            columns = self._decodes.results(loops, left_because == FINISHED)
        else:
            runs = self._results(step, logit_rows, loops)
            for result in runs:
                if result.slot in self._stateful:
                    result.mu = float(self._slots["mu"][result.slot])
        if decodes:
            split, keys = (rows, 0, 0), self._decodes.visible_keys(loops)
        else:
            split, keys = _split(step.runs, runs), self._visible_keys(rows)
        stats = self._stats(step, rows, split, loops, keys, native, begin)
        return StepResult(step.number, runs, stats, not finished and loops == 0, columns)

    # -- the slot table ------------------------------------------------------------------------------------------------

    def _open(self, opened: SlotOpen) -> None:
        """Write everything native code knows of a sequence into its row."""
        slot, slots, params = opened.slot, self._slots, opened.params
        known = len(opened.ids)
        slots["ids"][slot, :known] = opened.ids
        slots["page"][slot] = -1
        slots["prompt_len"][slot] = opened.prompt_len
        slots["second"][slot] = opened.prompt_len if opened.second is None else opened.second
        slots["known"][slot] = known
        slots["length_limit"][slot] = opened.length_limit
        slots["min_known"][slot] = opened.prompt_len + params.min_tokens
        slots["seed"][slot] = opened.seed
        slots["choice"][slot] = opened.choice
        stops = opened.stop_ids[:MAX_STOP_IDS]
        slots["stop_id"][slot, : len(stops)] = stops
        slots["stop_ids"][slot] = len(stops)
        self._open_sampler(slot, params)
        slots["grammar"][slot] = opened.opening
        words = pack_bad_words(opened.bad_word_ids)
        slots["bad_word"][slot, : len(words)] = words
        if params.dry_multiplier > 0:
            slots["breaker"][slot] = 0
            slots["breaker"][slot].view(np.uint8)[: len(opened.breaker_bits)] = bytearray(opened.breaker_bits)
        slots["mu"][slot] = 2 * params.mirostat_tau if opened.mu is None else opened.mu
        self._forget(slot)
        if params.stateful:
            self._stateful.add(slot)
        if params.logprobs is not None:
            self._wants_logprobs[slot] = params.logprobs
        if params.prompt_logprobs is not None:
            self._prompt_tops[slot] = params.prompt_logprobs

    def _forget(self, slot: int) -> None:
        self._wants_logprobs.pop(slot, None)
        self._prompt_tops.pop(slot, None)
        self._stateful.discard(slot)

    def _open_sampler(self, slot: int, params: SamplingParams) -> None:
        slots = self._slots
        for column, value in params.columns().items():
            slots[column][slot] = value
        slots["logprobs"][slot] = max(-1 if n is None else n for n in (params.logprobs, params.prompt_logprobs))
        bias = params.logit_bias
        slots["bias_id"][slot, : len(bias)] = list(bias)
        slots["bias_value"][slot, : len(bias)] = list(bias.values())
        slots["biases"][slot] = len(bias)
        chain = params.chain()
        slots["chain"][slot, : len(chain) + 1] = (*chain, 0)
        slots["masked"][slot] = params.allowed_token_ids is not None
        if params.allowed_token_ids is not None:
            slots["mask"][slot] = _mask(params.allowed_token_ids, slots["mask"].shape[1])

    # -- the flat step -------------------------------------------------------------------------------------------------

    def _write_rows(self, runs: Sequence[RowRun]) -> int:
        view, at = self._step, 0
        row_slot, row_pos = view["row_slot"], view["row_pos"]
        count, rows = len(runs), sum(run.count for run in runs)
        if rows > self.facts.max_rows or count > self.facts.max_seqs:
            raise ValueError(f"step of {rows} rows and {count} sequences exceeds the bounds")
        for index, run in enumerate(runs):
            row_slot[at : at + run.count] = run.slot
            row_pos[at : at + run.count] = range(run.start, run.start + run.count)
            view["seq_row"][index] = at
            at += run.count
            if run.draft:  # beyond the known ids, for the embedding and for the history of the rows behind them
                end = run.start + run.count
                self._slots["ids"][run.slot, end - len(run.draft) : end] = run.draft
        view["seq_row"][count] = at
        view["seq_slot"][:count] = [run.slot for run in runs]
        high = row_pos[:at] + 1
        if self._whole:  # each row sees all of its run, which is the whole sequence
            high = np.repeat([run.start + run.count for run in runs], [run.count for run in runs])
        for index, window in self._windows:
            view["row_hi"][index, :at] = high
            view["row_lo"][index, :at] = np.maximum(high - window, 0) if window else 0
        return at

    def _write_logit_rows(self, runs: Sequence[RowRun]) -> list[tuple[int, int]]:
        """Rows that need logits, as (run index, target): targets -1 are sampled."""
        rows: list[int] = []
        what: list[tuple[int, int]] = []
        first = 0
        ids, prompt_len = self._slots["ids"], self._slots["prompt_len"]
        for index, run in enumerate(runs):
            if run.prompt_logprobs_from is not None:
                low = max(run.prompt_logprobs_from, run.start + 1)
                high = min(run.start + run.count, int(prompt_len[run.slot]) - 1)
                rows += [first + position - 1 - run.start for position in range(low, high + 1)]
                what += [(index, int(ids[run.slot, position])) for position in range(low, high + 1)]
            first += run.count
            if run.sample:
                rows += range(first - 1 - len(run.draft), first)
                what += [(index, -1)] * (1 + len(run.draft))
        view, count = self._step, len(rows)
        view["logit_row"][:count] = rows
        view["logit_seq"][:count] = [index for index, _ in what]
        view["logit_target"][:count] = [target for _, target in what]
        return what

    def _write_header(self, step: Step, rows: int, logit_rows: int) -> None:
        view = self._step
        zero, copy = len(step.zero_pages), len(step.copy_pages)
        if zero > view["zero_page"].shape[0] or copy > view["copy_page"].shape[0]:
            raise ValueError(f"{zero} pages to zero and {copy} to copy exceed the bounds of a step")
        if step.loop > 1 and not (logit_rows == rows == len(step.runs)):
            raise ValueError("run-ahead needs decode rows only")
        if zero:
            view["zero_page"][:zero] = step.zero_pages
        if copy:
            view["copy_page"][:copy] = step.copy_pages
        _SAID.pack_into(
            self._words, H["epoch"] * 8,
            step.epoch, step.number, rows, len(step.runs), logit_rows, step.loop, 0, zero, copy,
        )  # fmt: skip

    # -- results -------------------------------------------------------------------------------------------------------

    def _results(self, step: Step, what: list[tuple[int, int]], loops: int) -> tuple[RunResult, ...]:
        view, count = self._step, len(what)
        tokens = view["out_token"][: count * loops].tolist()
        drafted = any(run.draft for run in step.runs)
        bad = view["out_status"][: count * loops].tolist() if drafted or view["header"][H["nonfinite"]] else None
        results = [RunResult(run.slot) for run in step.runs]
        for at, token in enumerate(tokens):
            index, target = what[at % count]
            result = results[index]
            if bad is not None and bad[at]:
                result.late = result.late or bad[at] == LATE
                result.barred = result.barred or bad[at] == BARRED
                result.nonfinite = result.nonfinite or bad[at] not in (REJECTED, LATE)
            elif target >= 0:
                result.prompt_logprobs = result.prompt_logprobs or []
                result.prompt_logprobs.append(self._logprobs(at, self._prompt_tops.get(result.slot)))
            elif not result.nonfinite:
                result.token_ids.append(token)
                if result.slot in self._wants_logprobs:
                    result.logprobs = result.logprobs or []
                    result.logprobs.append(self._logprobs(at, self._wants_logprobs[result.slot]))
        for run, result in zip(step.runs, results, strict=True):
            if run.draft and result.nonfinite:  # masked keys are multiplied by 0, so a bad one reaches rows before it
                result.broken, result.nonfinite, result.token_ids, result.logprobs = True, False, [], None
        return tuple(results)

    def _logprobs(self, at: int, top: int | None = None) -> TokenLogprobs:
        view = self._step
        ids, values = view["out_top_id"][at].tolist(), view["out_top_logprob"][at].tolist()
        pairs = tuple((i, v) for i, v in zip(ids[:top], values[:top], strict=True) if i >= 0)
        return TokenLogprobs(
            int(view["out_token"][at]), float(view["out_logprob"][at]), int(view["out_rank"][at]), pairs
        )

    def _visible_keys(self, rows: int) -> int:
        return int(self._step["row_hi"][0, :rows].sum()) if self._windows else 0

    def _stats(
        self, step: Step, rows: int, split: tuple[int, int, int], loops: int, keys: int, native: float, begin: float
    ) -> StepStats:
        decode, drafted, accepted = split
        return StepStats(
            step=step.number,
            prefill_rows=rows - decode - drafted,
            decode_rows=decode * max(loops, 1),
            draft_rows=drafted,
            accepted=accepted,
            sequences=len(step.runs),
            visible_keys=keys,
            loops=loops,
            native_seconds=native,
            total_seconds=time.perf_counter() - begin,
        )


def _split(runs: Sequence[RowRun], results: Sequence[RunResult]) -> tuple[int, int, int]:
    """Decode rows, drafted rows, and how many of these were sampled."""
    decode = drafted = accepted = 0
    for run, result in zip(runs, results, strict=True):
        if run.draft:
            drafted += len(run.draft)
            accepted += max(0, len(result.token_ids) - 1)
        if run.sample and run.count - len(run.draft) == 1:
            decode += 1
    return decode, drafted, accepted


def _mask(ids: Sequence[int], words: int) -> npt.NDArray[np.uint32]:
    """Bit id % 32 of word id / 32 for every allowed id."""
    bits = np.zeros(words * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)
