"""Perplexity of a fixed text, native with its own KV cache against the reference in float32 on the same weights.

    python bench/perplexity.py MODEL [--limit N] [--isa ISA] [--kv bf16] [--kl PROMPTS] [--make-reference]

Windows of 1,024 ids do not overlap; the first id of each has no loss. A model that begins sequences with BOS has it at
the beginning of each window and prompt. The ratio of the two perplexities must be within half a percent. Greedy
agreement: on 100 prompts of 64 to 256 ids, whether the most likely id is the same at each of the last 64 positions.
The reference's figures are in bench/data/reference.json by the model's SHA-256; --make-reference computes them (with
--limit of the first windows alone), and --kl N computes the divergence KL(reference || native) of whole distributions
on N of the prompts (both need torch: pip install octavo[reference]).

With --quantization int8 or q4 (of float weights) the reference is the same file natively with its own floats and a
float32 cache: tests/execution/test_verify.py holds that to float32 within 1e-5.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import math
import random
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.config import EngineConfig
from octavo.execution.native import NativeExecutor
from octavo.execution.plan import make_plan
from octavo.execution.runner import Runner
from octavo.execution.step import PagesAppended, RowRun, SlotOpen, Step, TokenLogprobs
from octavo.machine import read_machine
from octavo.sampling_params import SamplingParams
from octavo.tokenizer.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
WINDOW = 1024
ROWS = 512  # of a step
PROMPTS, LAST = 100, 64  # prompts, and positions at the end of each that are compared: one chunk of the head
LIMIT = 0.005
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Text:
    """The ids of the whole text, and what the model puts in front of a sequence: BOS or nothing."""

    ids: Sequence[int]
    first: tuple[int, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Text:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        text = gzip.decompress((DATA / "moby-dick.txt.gz").read_bytes()).decode()
        first = (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
        return cls(tokenizer.encode(text), first)

    def windows(self) -> list[Sequence[int]]:
        size = WINDOW - len(self.first)
        return [[*self.first, *self.ids[at : at + size]] for at in range(0, len(self.ids) - size + 1, size)]

    def prompts(self) -> Iterator[Sequence[int]]:
        """The same ones in every run."""
        source = random.Random(0)
        for _ in range(PROMPTS):
            at, length = source.randrange(len(self.ids) - 256), source.randint(64, 256)
            yield [*self.first, *self.ids[at : at + length]]

    def digest(self) -> str:
        return hashlib.sha256(np.asarray([*self.first, *self.ids], "<i4").tobytes()).hexdigest()


class Native:
    """One sequence at a time on the native executor."""

    def __init__(
        self, checkpoint: Checkpoint, *, isa: str, kv: str, threads: int | None, quantization: str = "auto"
    ) -> None:
        # one sequence; room for four: each state group of a hybrid model takes pages of its own
        config = EngineConfig(
            max_model_len=WINDOW, max_num_seqs=4, max_num_batched_tokens=ROWS, kv_cache_dtype=kv, isa=isa,
            threads=threads, quantization=quantization,
        )  # fmt: skip
        machine = read_machine()
        plan = make_plan(checkpoint, config, free=machine.memory_free, threads=threads or machine.threads)
        self.executor = NativeExecutor(plan.layouts, plan.vocab, "", isa=isa)
        self.executor.load(checkpoint, plan.sources)
        self.vocab = plan.vocab
        self._runner = Runner(self.executor)
        # of each group its own, as in the engine: page 0 is the null page
        count = WINDOW // 16
        groups = self._runner.facts.groups
        self._pages = {group.index: tuple(range(1 + i * count, 1 + (i + 1) * count)) for i, group in enumerate(groups)}
        head = plan.layouts.lowered.programs["head"].nodes[-1]
        self._logits = plan.layouts.lowered.arena.buffers[next(iter(head.writes.values()))]

    def score(self, ids: Sequence[int], first: int = 1) -> list[TokenLogprobs]:
        """Log-probability and most likely id of each position from `first` on, given what stands before."""
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        opened = SlotOpen(0, tuple(ids), len(ids), params, 0, 0, WINDOW + 1, ())
        pages = tuple(PagesAppended(0, group, 0, of_group) for group, of_group in self._pages.items())
        found: list[TokenLogprobs] = []
        for start in range(0, len(ids), ROWS):
            count = min(ROWS, len(ids) - start)
            run = RowRun(0, start, count, start + count == len(ids), first)
            first_step = start == 0
            step = Step(
                0, (run,), (opened,) if first_step else (), (), pages if first_step else (),
                tuple(p for each in self._pages.values() for p in each[start // 16 : -(-(start + count) // 16)]),
            )  # fmt: skip
            (result,) = self._runner.run(step).runs
            found += result.prompt_logprobs or []
        self._runner.run(Step(0, closes=(0,)))
        return found

    def last_logits(self, ids: Sequence[int]) -> Floats:
        """[LAST, vocab] of the last positions: what the head's buffer holds after a step of one chunk."""
        self.score(ids, len(ids) - LAST + 1)
        buffer = self._logits
        rows = self.executor.arena_view(buffer.name, LAST * buffer.row_bytes).view(np.float32)
        return rows.reshape(LAST, buffer.ld)[:, : self.vocab].copy()


class Reference:
    """The reference executor with a float32 cache."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch

        from octavo.execution.reference import ReferenceModel, Rows, load_weights
        from octavo.models import binding, registry
        from octavo.program.trace import trace, weights_of

        model = registry.build(checkpoint, positions=WINDOW)
        programs = trace(model.functions)
        weights = load_weights(checkpoint, binding.bind(checkpoint, model, weights_of(programs)))
        self._model, self._rows, self._torch = ReferenceModel(programs, weights, positions=WINDOW), Rows, torch

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Floats]:
        """Logits of the positions from `first` on, some rows at a time."""
        torch = self._torch
        with torch.no_grad():
            h = self._model.hidden([self._rows(0, 0, ids)])
            for index in torch.arange(first, len(ids)).split(128):
                inputs = {"h": h, "logit_row": index}
                yield self._model.executor.run(self._model.programs["head"], inputs)["logits"].numpy()

    def loss(self, ids: Sequence[int]) -> float:
        """Mean negative log-probability of ids 1, 2, ..."""
        total, at = 0.0, 1
        for rows in self.logits(ids[:-1], 0):
            targets = np.asarray(ids[at : at + len(rows)])
            top = rows.max(axis=1)  # [rows]; its exponentials are float32, their sum float64: exact to some 1e-7
            sums = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
            total -= float((rows[np.arange(len(rows)), targets] - top - np.log(sums)).sum())
            at += len(rows)
        return total / (len(ids) - 1)

    def last_logits(self, ids: Sequence[int]) -> Floats:
        return np.concatenate(list(self.logits(ids, len(ids) - LAST)))


def log_softmax(rows: Floats) -> NDArray[np.float64]:
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def make_reference(checkpoint: Checkpoint, text: Text, limit: int | None) -> dict[str, Any]:
    """The entry of reference.json; without what takes the whole text where there is a limit."""
    reference = Reference(checkpoint)
    print(f"{len(text.ids)} ids, each window begins with {text.first}", file=sys.stderr, flush=True)
    losses = []
    for number, window in enumerate(text.windows()[:limit]):
        losses.append(round(reference.loss(window), 9))
        print(f"window {number}: {losses[-1]:.6f}", file=sys.stderr, flush=True)
    entry = {"file": checkpoint.path.name, "ids": text.digest(), "losses": losses}
    if limit is not None:
        return entry
    best = np.stack([reference.last_logits(prompt).argmax(axis=1) for prompt in text.prompts()])
    packed = base64.b64encode(zlib.compress(best.astype("<i4").tobytes(), 9)).decode()
    return {**entry, "greedy": packed}


def stored_reference(sha256: str, text: Text) -> dict[str, Any]:
    """The committed figures. Exits with a message where they are missing or of other ids."""
    known = json.loads((DATA / "reference.json").read_text())
    if sha256 not in known:
        sys.exit(f"bench/data/reference.json has no figures for a model of SHA-256 {sha256}; run with --make-reference")
    found: dict[str, Any] = known[sha256]
    if found["ids"] != text.digest():
        sys.exit("the tokenizer gives other ids than those of bench/data/reference.json: the losses do not compare")
    return found


def native_losses(native: Native, text: Text, limit: int | None) -> list[float]:
    """The mean loss of each of the first `limit` windows."""
    return [-float(np.mean([each.logprob for each in native.score(window)])) for window in text.windows()[:limit]]


def compare_losses(native: Native, text: Text, wanted: Sequence[float], limit: int | None) -> float:
    """Native loss of the first `limit` windows against the reference's; the ratio of perplexities."""
    begin = time.perf_counter()
    losses = native_losses(native, text, min(limit or len(wanted), len(wanted)))
    seconds = time.perf_counter() - begin
    ours, theirs = float(np.mean(losses)), float(np.mean(wanted[: len(losses)]))
    ratio = math.exp(ours - theirs)
    spread = float(np.std(np.asarray(losses) - np.asarray(wanted[: len(losses)])))
    print(f"windows            {len(losses)} of {WINDOW} ids in {seconds:.1f} s")
    print(f"perplexity         {math.exp(ours):.4f} native, {math.exp(theirs):.4f} reference")
    print(f"ratio              {ratio:.6f}  (limit 1 ± {LIMIT}; loss differs by {ours - theirs:+.6f}, "
          f"standard deviation between windows {spread:.6f})")  # fmt: skip
    return ratio


def compare_greedy(native: Native, text: Text, packed: str) -> None:
    best = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").reshape(PROMPTS, LAST)
    found = (native.last_logits(prompt).argmax(axis=1) for prompt in text.prompts())
    equal = [mine == wanted for mine, wanted in zip(found, best, strict=True)]
    print(f"greedy agreement   {np.mean(equal):.4%} of {PROMPTS * LAST} positions; "
          f"at the end of a prompt {np.mean([each[-1] for each in equal]):.0%}")  # fmt: skip


def compare_distributions(native: Native, checkpoint: Checkpoint, text: Text, count: int) -> None:
    reference = Reference(checkpoint)
    divergences = []
    for _, prompt in zip(range(count), text.prompts(), strict=False):
        wanted, found = log_softmax(reference.last_logits(prompt)), log_softmax(native.last_logits(prompt))
        divergences.append((np.exp(wanted) * (wanted - found)).sum(axis=1))
    every = np.concatenate(divergences)
    print(f"KL(reference||native) mean {every.mean():.6f}, median {np.median(every):.6f}, "
          f"99 % {np.quantile(every, 0.99):.6f}, max {every.max():.6f} nats over {len(every)} positions")  # fmt: skip


def compare_rounded(checkpoint: Checkpoint, text: Text, options: argparse.Namespace) -> None:
    """Weights rounded while loading against the file's own floats. The limit is for int8; q4 is told as it is."""
    floats = Native(checkpoint, isa=options.isa, kv="float32", threads=options.threads)
    wanted = native_losses(floats, text, options.limit)
    del floats
    native = Native(
        checkpoint, isa=options.isa, kv=options.kv, threads=options.threads, quantization=options.quantization
    )
    print(
        f"{checkpoint.path.name} as {options.quantization}, {native.executor.isa}, {options.kv} KV, against its floats"
    )
    ratio = compare_losses(native, text, wanted, options.limit)
    if options.quantization == "int8" and abs(ratio - 1) > LIMIT:
        sys.exit(f"the perplexity ratio {ratio:.6f} is not within {LIMIT:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, help="windows (default: all)")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kl", type=int, default=0, metavar="PROMPTS")
    parser.add_argument("--quantization", choices=("auto", "int8", "q4"), default="auto")
    parser.add_argument("--make-reference", action="store_true")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    sha256, text = checkpoint.digest(), Text.of(checkpoint)
    if options.make_reference:
        file = DATA / "reference.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        known[sha256] = make_reference(checkpoint, text, options.limit)
        file.write_text(json.dumps(known, indent=1) + "\n")
        return
    if options.quantization != "auto":
        return compare_rounded(checkpoint, text, options)
    stored = stored_reference(sha256, text)
    native = Native(checkpoint, isa=options.isa, kv=options.kv, threads=options.threads)
    print(f"{checkpoint.path.name}, {native.executor.isa}, {options.kv} KV, {len(text.ids)} ids of text")
    ratio = compare_losses(native, text, stored["losses"], options.limit)
    if options.limit is None and "greedy" in stored:
        compare_greedy(native, text, stored["greedy"])
    if options.kl:
        compare_distributions(native, checkpoint, text, options.kl)
    if abs(ratio - 1) > LIMIT:
        sys.exit(f"the perplexity ratio {ratio:.6f} is not within {LIMIT:.1%}")


if __name__ == "__main__":
    main()
