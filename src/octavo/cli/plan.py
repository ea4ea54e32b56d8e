"""`octavo plan MODEL`: what a model would take of this machine's memory, before anything is allocated.

Only headers are read. Every figure is made by execution/plan.py, which the engine allocates by; this file asks it
several times and prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, columns, size
from octavo.config import EngineConfig, LogConfig
from octavo.engine.startup import decide_threads, fingerprint, packed_file, tuned_file
from octavo.errors import DoesNotFit
from octavo.execution.plan import MemoryPlan, make_plan
from octavo.execution.step import PAGE_TOKENS
from octavo.execution.tuned_file import Tuned
from octavo.kernels.library import runnable_variants
from octavo.machine import read_machine
from octavo.settings import Settings, client_environment
from octavo.start import find_model

USERS = (1, 4, 8, 32)
CONTEXTS = 3  # rows of the table
ANY_MEMORY = 1 << 60  # free bytes for a plan that is only asked for its size


@dataclass(frozen=True)
class Cell:
    """What `users` requests at `context` tokens each would take, all at once."""

    context: int
    users: int
    total: int
    fits: bool


def run(settings: Settings, as_json: bool) -> None:
    """Print the plan; ends with DoesNotFit where serving would."""
    progress = Progress(client_environment().plain)
    files = find_model(settings.engine, progress.report)
    progress.close()
    machine, engine = read_machine(), settings.engine
    checkpoint = open_checkpoint(files.path)
    threads = decide_threads(engine, machine)
    refusal: DoesNotFit | None = None
    try:
        plan = make_plan(checkpoint, engine, free=machine.memory_free, threads=threads)
    except DoesNotFit as error:
        refusal = error
        plan = _whole(checkpoint, engine, threads)
    share = plan.allowed / plan.free
    allowed = int(machine.memory_free * share)
    cells = table(checkpoint, engine, threads, plan, allowed)
    isa = runnable_variants()[0] if engine.isa == "auto" else engine.isa
    digest = checkpoint.digest(engine.cache_path)
    tuned = tuned_file(engine, machine, isa, plan.layouts)
    mark, packed = fingerprint(digest, isa, plan), packed_file(engine, digest, plan)
    if as_json:
        data = as_data(checkpoint, plan, cells, allowed, refusal is None) | {"fingerprint": mark}
        data["packed_file"] = None if packed is None else {"path": str(packed.path), "usable": packed.usable}
        data["tuned"] = None if engine.autotune == "off" else asdict(tuned.read() or Tuned({}))
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        for line in page(checkpoint, plan, cells, allowed):
            click.echo(line)
        if packed is not None:
            state = "mapped, shared between processes" if packed.usable else "kept by the first start"
            click.echo(f"packed    {packed.path} ({state}; rm frees it)")
        found = "built-in values" if engine.autotune == "off" else tuned.read() or "measured at the first start"
        click.echo(f"tuning    {found}")
        click.echo(f"tokens    {mark} (same fingerprint, same tokens)")
    if refusal is not None:
        raise refusal
    if not as_json:
        click.echo(f"serve it: octavo serve {_command(settings)}")


def _whole(checkpoint: Checkpoint, engine: EngineConfig, threads: int) -> MemoryPlan:
    """The plan as if there were memory for it: one sequence of the context asked for."""
    free = replace(engine, kv_cache_memory=None)
    plan = make_plan(checkpoint, free, free=ANY_MEMORY, threads=threads)
    one = -(-plan.context // PAGE_TOKENS) * plan.page_bytes
    return make_plan(checkpoint, replace(free, kv_cache_memory=one), free=ANY_MEMORY, threads=threads)


def table(checkpoint: Checkpoint, engine: EngineConfig, threads: int, plan: MemoryPlan, allowed: int) -> list[Cell]:
    """Totals of contexts x users, each a plan of its own."""
    longest = engine.max_model_len or plan.model_context
    contexts = sorted({max(PAGE_TOKENS, longest >> (2 * i)) for i in range(CONTEXTS)})
    cells = []
    for context in contexts:
        pages = -(-context // PAGE_TOKENS)
        for users in USERS:
            asked = replace(
                engine, max_model_len=context, max_num_seqs=users, gpu_memory_utilization=None,
                kv_cache_memory=max(1 << 20, users * pages * plan.page_bytes),
            )  # fmt: skip
            total = make_plan(checkpoint, asked, free=ANY_MEMORY, threads=threads).total
            cells.append(Cell(context, users, total, total <= allowed))
    return cells


def as_data(checkpoint: Checkpoint, plan: MemoryPlan, cells: list[Cell], allowed: int, fits: bool) -> dict[str, Any]:
    """The plan as JSON has it; sizes in bytes."""
    return {
        "model": checkpoint.display_name,
        "weight_format": checkpoint.weight_format,
        "fits": fits,
        "task": "generate" if plan.pooling is None else plan.pooling.task,
        "context": plan.context,
        "model_context": plan.model_context,
        "kv_tokens": plan.kv_tokens,
        "kv_bytes_per_token": plan.page_bytes // PAGE_TOKENS,
        "regions": asdict(plan.regions),
        "runtime": plan.runtime,
        "total": plan.total,
        "allowed": allowed,
        "weights": formats(plan),
        "table": [asdict(cell) for cell in cells],
    }


def formats(plan: MemoryPlan) -> Mapping[str, int]:
    """Packed layouts of the weights -> how many weights have them."""
    layouts = [weight.layout for weight in plan.layouts.lowered.weights.values()]
    return {layout: layouts.count(layout) for layout in sorted(set(layouts))}


def page(checkpoint: Checkpoint, plan: MemoryPlan, cells: list[Cell], allowed: int) -> list[str]:
    """The plan for people."""
    regions = plan.regions
    other = regions.slots + regions.step + regions.scratch + regions.tables
    of_file = sum(file.stat().st_size for file in checkpoint.files)
    layout = plan.layouts.lowered.groups[0].layout if plan.layouts.lowered.groups else "none"
    reduced = f" (the model's: {plan.model_context:,})" if plan.context < plan.model_context else ""
    lines = [
        f"model     {checkpoint.display_name} · {checkpoint.config.get('model_type')} · {checkpoint.weight_format}",
        f"weights   {size(regions.weights)} packed; {size(of_file)} in the file",
        *([] if plan.pooling is None else [f"gives     {plan.pooling.task}: {plan.pooling.kind} row"]),
        f"KV        {size(regions.kv)} for {plan.kv_tokens:,} tokens, {plan.page_bytes / PAGE_TOKENS / 1024:g} KiB a "
        f"token ({layout})",
        f"context   {plan.context:,} tokens{reduced}",
        f"arena     {size(regions.arena)} at {plan.layouts.bounds.max_rows:,} tokens a step",
        f"fixed     {size(other)} tables, slots and scratch; {size(plan.runtime)} runtime and tokenizer (bound)",
        f"total     {size(plan.total)} of {size(allowed)} allowed",
        "",
    ]
    rows: list[list[str]] = [["context", *(f"users {users}" for users in USERS)]]
    for context in sorted({cell.context for cell in cells}):
        row = [cell for cell in cells if cell.context == context]
        rows.append([f"{context:,}", *(f"{cell.total / 2**30:,.1f} GiB {'✔' if cell.fits else '✘'}" for cell in row)])
    return [*lines, *columns(rows, right=frozenset(range(len(USERS) + 1))), ""]


def _command(settings: Settings) -> str:
    """The model and the options of the engine that were given as flags."""
    words = [settings.engine.model]
    for name, source in settings.sources.items():
        if name != "model" and source.startswith("--"):
            words.append(f"{source} {settings.value(name)}")
    return " ".join(words)


command = OptionCommand(
    "plan",
    run,
    "What a model would take of this machine's memory. Reads headers only; exits 4 if it does not fit.",
    nouns=(EngineConfig, LogConfig),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="one JSON object, sizes in bytes")],
)
