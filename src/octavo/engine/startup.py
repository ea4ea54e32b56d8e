"""From a configuration to an engine that is ready: every "auto" decided once, memory planned, weights loaded.

It prints nothing: it gives summary lines, and reports progress to whoever asked. It does not know the front.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.checkpoints.pooling import Pooling
from octavo.config import EngineConfig
from octavo.engine.core import EngineSetup
from octavo.engine.cost_model import CostModel, TimedStep
from octavo.engine.grammars import GrammarSetup
from octavo.engine.roster import SchedulerConfig
from octavo.execution.autotune import Tuner
from octavo.execution.layout import MAX_RUN_AHEAD
from octavo.execution.native import Layouts, NativeExecutor
from octavo.execution.packed_file import PackedFile, wanted
from octavo.execution.plan import MemoryPlan, make_plan
from octavo.execution.pooling_runner import PoolingRunner
from octavo.execution.runner import Runner
from octavo.execution.step import PAGE_TOKENS, PagesAppended, RowRun, SlotOpen, Step
from octavo.execution.tuned_file import TunedFile
from octavo.machine import Machine, read_machine
from octavo.ops.quantize import GROUP
from octavo.quantization.panels import SUPER
from octavo.quantization.rounding import VERSION as ROUNDING
from octavo.sampling_params import SamplingParams
from octavo.speculation.choice import choose

NUMERICS = 1  # version of the order of all sums and roundings; a change of bits is a new number
SECRET_BYTES = 32
FEW_ROWS = (1, 2, 3, 4, 8, 16)  # rows of the steps that speculation chooses between; straight lines between them
Report = Callable[[str, int, int], None]  # what, done, in all

_ISA_NAMES = {
    "amx": "avx512-vnni-bf16 with AMX", "avx512bf16": "avx512-vnni-bf16", "avx512": "avx512-vnni", "avx2": "avx2",
    "portable": "portable",
}  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory behind a runner, and what was decided for it."""

    checkpoint: Checkpoint
    plan: MemoryPlan
    executor: NativeExecutor
    runner: Runner
    machine: Machine
    threads: int
    seconds: float  # of loading
    packed: PackedFile | None  # where the packed weights are kept
    mapped: bool  # the weights are that file
    tuning: str  # a line about the values for this processor


def load_model(path: Path, config: EngineConfig, report: Report | None = None) -> LoadedModel:
    """Plan, allocate and fill. Raises DoesNotFit, UnsupportedModel, CheckpointError, ConfigError."""
    begin = time.perf_counter()
    machine = read_machine()
    threads = decide_threads(config, machine)
    checkpoint = open_checkpoint(path)
    plan = make_plan(checkpoint, config, free=machine.memory_free, threads=threads)
    digest = checkpoint.digest(config.cache_path)
    executor = NativeExecutor(plan.layouts, plan.vocab, "", isa=config.isa)
    progress = None if report is None else lambda done, total: report("load", done, total)
    packed = packed_file(config, digest, plan)
    mapped = executor.load(checkpoint, plan.sources, progress, packed)
    tuning = tune(executor, config, machine)
    executor.facts = executor.facts.named(fingerprint(digest, executor.isa, plan))
    seconds = time.perf_counter() - begin
    runner = Runner(executor) if plan.pooling is None else PoolingRunner(executor, plan.pooling.kind)
    return LoadedModel(checkpoint, plan, executor, runner, machine, threads, seconds, packed, mapped, tuning)


def tune(executor: NativeExecutor, config: EngineConfig, machine: Machine) -> str:
    """Use what was measured on this processor for weights of these shapes, or measure it; what was done, in words."""
    if config.autotune == "off":
        return "built-in values (--autotune off)"
    file = tuned_file(config, machine, executor.isa, executor.layouts)
    tuned = file.read() if config.autotune == "auto" else None
    if tuned is not None and executor.tune(tuned.values):
        return f"{tuned} (kept)"
    tuned = Tuner(executor).measure()
    if not tuned.values:
        return "built-in values (a small model)"
    executor.tune(tuned.values)
    file.keep(tuned)
    return f"{tuned} (measured in {tuned.seconds:.2f} s)"


def tuned_file(config: EngineConfig, machine: Machine, isa: str, layouts: Layouts) -> TunedFile:
    """Where such values are kept."""
    return TunedFile.of(config.cache_path, machine.cpu_id, isa, layouts.bounds.threads, layouts.lowered.weights)


def packed_file(config: EngineConfig, digest: str, plan: MemoryPlan) -> PackedFile | None:
    """Where this model's packed weights are kept, if --packed-cache wants them to be."""
    nbytes, layouts = plan.regions.weights, plan.layouts
    if not wanted(config.packed_cache, nbytes):
        return None
    return PackedFile.of(config.cache_path, digest, layouts.places, nbytes, layouts.bounds.threads)


def decide_threads(config: EngineConfig, machine: Machine) -> int:
    """--threads, else physical cores within mask and quota, which OMP_NUM_THREADS may only lower."""
    if config.threads is not None:
        return config.threads
    return machine.threads if config.thread_limit is None else max(1, min(machine.threads, config.thread_limit))


def fingerprint(digest: str, isa: str, plan: MemoryPlan) -> str:
    """What decides the tokens beside the request: weights and how they are rounded, numerics version, ISA class, KV
    dtype, activation group, and rope tables that depend on the context."""
    kv = [group.layout for group in plan.layouts.lowered.groups]
    tables = sorted(name for name in plan.layouts.lowered.tables if "@" in name)  # layers/rotary.py
    rounded = sorted({f"{source.rounded}.{ROUNDING}" for source in plan.sources.values() if source.rounded})
    wide = any(name.endswith(f".s{SUPER}") for name in plan.layouts.lowered.multiplied().values())
    acts = f"acts.g{GROUP}" + f"+{SUPER}w" * wide
    facts = "|".join([digest, str(NUMERICS), isa, *kv, acts, *tables, *rounded])
    return f"octavo-n{NUMERICS}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def set_up(path: Path, name: str, config: EngineConfig, report: Report | None = None) -> EngineSetup:
    """A model in memory, its cost model fitted: what an EngineCore is made of."""
    speculation = choose(config)
    loaded = load_model(path, config, report)
    facts = loaded.runner.facts
    scheduler = SchedulerConfig(
        block_size=config.block_size,
        step_seconds=config.step_time / 1000.0,
        max_batched_tokens=facts.max_rows if facts.whole else config.max_num_batched_tokens,
        max_queued=config.max_num_queued_reqs,
        prefix_caching=config.enable_prefix_caching and facts.keeps_prefixes,
        secret=installation_secret(config.state_path),
        eos_ids=loaded.checkpoint.eos_token_ids,
        run_ahead=1 if facts.vector else MAX_RUN_AHEAD,
        proposer=None if facts.vector else speculation.new,
        draft_tokens=speculation.tokens,
    )
    cost = fit_cost(loaded.runner, few_rows=scheduler.proposer is not None)
    if loaded.packed is not None and not loaded.mapped:  # after what is timed
        loaded.packed.keep_later(loaded.executor.region("weights"), loaded.executor)
    return EngineSetup(
        runner=loaded.runner,
        scheduler=scheduler,
        model_name=name,
        cost=cost,
        summary=(*summary(loaded, config), *([f"guesses   {speculation}"] if speculation.new else [])),
        nodes=sum(1 for _ in loaded.plan.layouts.lowered.nodes()),
        watch=loaded.executor.watch,
        # A smaller context would refuse what has begun, and tables that depend on it change bits.
        pinned={"config": {"max_model_len": loaded.plan.context}},
        grammars=None if facts.vector else GrammarSetup(str(path), str(config.cache_path), loaded.executor.watch_masks),
    )


def set_up_from(options: Mapping[str, Any]) -> EngineSetup:
    """The same in the engine's process: path, name and config as plain data. Loading is shown on a terminal."""
    config = EngineConfig(**options["config"])
    show = sys.stderr.isatty()
    return set_up(Path(options["path"]), options["name"], config, _show_progress if show else None)


def _show_progress(what: str, done: int, total: int) -> None:
    """One line that is written over: libraries for bars cost 40 ms of a start."""
    end = "\n" if done == total else ""
    print(f"\r{what:9} {done}/{total} tensors", end=end, file=sys.stderr, flush=True)


def fit_cost(runner: Runner, *, few_rows: bool = False) -> CostModel:
    """Time a few small steps on empty pages and fit the cost model.

    Zeroed pages cost attention what full ones do, so no prompt is computed to fill them; 32 rows are the first chunk at
    full rate (docs/performance.md). 25 ms for a 135M model, 0.25 s for 1.5B; 256 rows first and chunks of 64 took
    0.10 and 1.0 s. Running steps correct the fit. few_rows: also time the steps that speculation chooses between
    (0.05 s; 0.35 s for 1.5B).
    """
    facts = runner.facts
    length = min(256, facts.max_model_len - 2, (facts.pages - 1) * PAGE_TOKENS, facts.max_rows)
    params = SamplingParams(temperature=0, max_tokens=1)
    pages = tuple(range(1, 1 + -(-length // PAGE_TOKENS)))
    opened = SlotOpen(0, tuple([1] * length), length, params, 0, 0, facts.max_model_len, ())
    appended = tuple(PagesAppended(0, group.index, 0, pages) for group in facts.groups)
    runner.run(Step(0, (RowRun(0, 0, 1, length == 1),), (opened,), (), appended, pages))  # untimed: first touches
    timed = []
    chunk = min(32, length)
    for start, rows in ((0, 1), (0, chunk), (length - chunk, chunk)):
        step = Step(0, (RowRun(0, start, rows, start + rows == length),))
        stats = runner.run(step).stats
        timed.append(TimedStep(rows, stats.visible_keys, stats.native_seconds))
    cost = CostModel.fitted(timed)
    if few_rows:
        cost.tabulate(time_few_rows(runner, length))
    runner.run(Step(0, closes=(0,), zero_pages=pages))
    return cost


def time_few_rows(runner: Runner, length: int) -> dict[int, float]:
    """Seconds of steps of few rows with logits for each, by rows: the last ones of slot 0, which has `length` ids."""
    seconds: dict[int, float] = {}
    for _ in range(2):  # the faster one: what disturbs only adds
        for rows in (each for each in FEW_ROWS if each <= length):
            step = Step(0, (RowRun(0, length - rows, rows, True, None, (1,) * (rows - 1)),))
            took = runner.run(step).stats.native_seconds
            seconds[rows] = min(took, seconds.get(rows, took))
    return seconds


def installation_secret(folder: Path) -> bytes:
    """The key of the prefix cache's hashes: made once, kept as a file that only this user reads."""
    file = folder / "secret"
    try:
        found = file.read_bytes()
        if len(found) == SECRET_BYTES:
            return found
    except OSError:
        pass  # not there yet, or not readable: a new one, for this process at least
    made = secrets.token_bytes(SECRET_BYTES)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(made)
    except OSError:
        pass  # a read-only home: the secret lives as long as this process
    return made


def summary(loaded: LoadedModel, config: EngineConfig) -> list[str]:
    """The lines of the start-up summary that the engine knows (conventions: serve)."""
    plan, machine, checkpoint = loaded.plan, loaded.machine, loaded.checkpoint
    regions = plan.regions
    arena = regions.arena + regions.slots + regions.step + regions.scratch + regions.tables
    kv = plan.layouts.lowered.groups[0].layout.split(".")[1] if plan.layouts.lowered.groups else "none"
    blocks = plan.kv_tokens // config.block_size
    caches = config.enable_prefix_caching and loaded.runner.facts.keeps_prefixes
    reduced = (
        f" (reduced from {plan.model_context:,} to fit)"
        if plan.context < plan.model_context and config.max_model_len is None
        else ""
    )
    quota = "" if machine.quota is None else f"; cgroup quota {machine.quota:.1f}"
    packed = " (packed file)" if loaded.mapped else ""
    chosen = "as asked" if config.threads is not None else f"physical cores{quota}"
    return [
        f"cpu       {machine.cpu_name}, {machine.physical_cores} cores, {_ISA_NAMES[loaded.executor.isa]}, "
        f"{_size(machine.memory_total)} · deterministic",
        f"model     {checkpoint.display_name} · {checkpoint.config.get('model_type')} · {_held(checkpoint, config)} · "
        f"context {plan.context:,}{reduced}",
        f"memory    weights {_size(regions.weights)}{packed} + KV {_size(regions.kv)} + arena {_size(arena)} + runtime "
        f"{_size(plan.runtime)} = {_size(plan.total)} of {_size(plan.allowed)} allowed",
        f"KV cache  {plan.kv_tokens:,} tokens ({kv}, {blocks:,} blocks of {config.block_size}) · "
        f"{plan.kv_tokens / plan.context:.1f} requests at full context",
        f"batch     up to {config.max_num_seqs} requests, {plan.layouts.bounds.max_rows:,} tokens a step · prefix "
        f"cache {'on' if caches else 'off'}",
        f"threads   {loaded.threads} ({chosen})",
        f"tuning    {loaded.tuning}",
        *([] if plan.pooling is None else [f"gives     {_vectors(plan.pooling, loaded.runner.facts.vector)}"]),
    ]


def _vectors(pooling: Pooling, width: int) -> str:
    """What comes out in place of text."""
    if pooling.judge:
        return "scores, by the logits of yes and no"
    if pooling.labels:
        return f"scores of {pooling.labels} label{'s' * (pooling.labels > 1)}, from the {pooling.kind} row"
    return f"embeddings of {width} numbers, {pooling.kind} pooling{', normalized' * pooling.normalize}"


def _held(checkpoint: Checkpoint, config: EngineConfig) -> str:
    """What the weights are, for people."""
    return checkpoint.weight_format + ("" if config.quantization == "auto" else f" as {config.quantization}")


def _size(nbytes: int) -> str:
    """Bytes as people read them, in binary units."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 10 * 2**30 else f"{nbytes / 2**20:,.0f} MiB"
