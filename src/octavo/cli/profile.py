"""`octavo profile MODEL`: where the time of a decode step, of a batched one and of a prompt goes.

It measures the machine's ceilings, loads the model in this process, and prints what execution/profile.py finds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, columns, say
from octavo.config import EngineConfig, LogConfig
from octavo.engine.startup import decide_threads, load_model
from octavo.errors import UnsupportedModel
from octavo.execution.ceilings import Ceilings, measure
from octavo.execution.plan import make_plan
from octavo.execution.profile import Profile, Profiler, Row, decode_length
from octavo.execution.step import PAGE_TOKENS
from octavo.machine import read_machine
from octavo.settings import Settings, client_environment
from octavo.start import find_model

LEAST_KV = 1 << 20  # bytes that --kv-cache-memory takes at least
BAR = 10  # columns of a full bar
HEAD = ("op", "calls", "time", "share", "bytes", "operations", "rate", "of roof", "")
RIGHT = frozenset(range(1, 8))


def run(settings: Settings, batch: int, context: int, prefill: int, as_json: bool) -> None:
    """Measure decode of one sequence, of a batch, and a prompt."""
    progress = Progress(client_environment().plain)
    try:
        files = find_model(settings.engine, progress.report)
        say("measuring the ceilings of this machine …")
        threads = decide_threads(settings.engine, read_machine())
        ceilings = measure(isa=settings.engine.isa, threads=threads)
        say(f"loading {files.path.name} …")
        loaded = load_model(files.path, sized(settings, files.path, (batch, context, prefill)))
    finally:
        progress.close()
    if loaded.plan.pooling is not None:
        name = loaded.checkpoint.display_name
        raise UnsupportedModel(f"{name} gives vectors; profile is built for models that give text")
    profiler = Profiler(loaded.executor, loaded.runner)
    profiles = []
    for sequences in sorted({1, batch}):
        say(f"measuring decode of {sequences} …")
        profiles.append(profiler.decode(sequences, context))
    say(f"measuring prefill of {prefill} …")
    profiles.append(profiler.prefill(prefill))
    about = f"{loaded.checkpoint.display_name} {loaded.checkpoint.weight_format}"
    if as_json:
        click.echo(json.dumps(as_data(about, profiles, ceilings), indent=2, ensure_ascii=False))
        return
    for line in page(about, profiles, ceilings):
        click.echo(line)


def sized(settings: Settings, path: Path, work: tuple[int, int, int]) -> EngineConfig:
    """The engine's options with room for what is measured, where they do not say otherwise."""
    batch, context, prefill = work
    reached = -(-decode_length(context) // PAGE_TOKENS)
    pages = max(reached, -(-prefill // PAGE_TOKENS))
    checkpoint, machine, given = open_checkpoint(path), read_machine(), settings.sources
    engine = settings.engine
    if "max_num_seqs" not in given:
        engine = replace(engine, max_num_seqs=batch)
    if "max_model_len" not in given:
        engine = replace(engine, max_model_len=pages * PAGE_TOKENS)
    if "kv_cache_memory" not in given:
        plan = make_plan(checkpoint, engine, free=machine.memory_free, threads=decide_threads(engine, machine))
        groups = max(1, len(plan.layouts.lowered.groups))
        needed = max(pages, batch * reached) * groups * plan.page_bytes
        engine = replace(engine, kv_cache_memory=max(LEAST_KV, needed))
    return engine


def as_data(about: str, profiles: Sequence[Profile], ceilings: Ceilings) -> dict[str, Any]:
    """All figures: seconds, bytes, operations; roof_seconds is what the ceilings leave at least."""
    made = [asdict(profile) for profile in profiles]
    for profile, data in zip(profiles, made, strict=True):
        data["rows"] = [{**asdict(row), "roof_seconds": row.roof_seconds(ceilings)} for row in profile.rows]
    return {"model": about, "ceilings": asdict(ceilings), "profiles": made}


def page(about: str, profiles: Sequence[Profile], ceilings: Ceilings) -> list[str]:
    """The profiles for people."""
    lines = [
        f"{about} · native {ceilings.isa}, {ceilings.threads} threads · roof: read "
        f"{ceilings.read_bytes_per_second / 1e9:.1f} GB/s, int8 {ceilings.int8_ops_per_second / 1e9:,.0f} GOP/s, bf16 "
        f"{ceilings.bf16_flops_per_second / 1e9:,.0f} GOP/s"
    ]
    for profile in profiles:
        lines += ["", _title(profile), *columns([HEAD, *_table(profile, ceilings)], RIGHT)]
        lines.append(
            f"idle between ops {1e3 * profile.idle:.3f} ms ({_percent(profile.idle / profile.seconds)}) · Python "
            f"{1e3 * profile.python:.3f} ms ({_percent(profile.python / profile.seconds)})"
        )
        if _roof(profile, ceilings) > profile.seconds:
            lines.append("faster than the roof: the machine was busy while its ceilings were measured; run it again")
    return [line.rstrip() for line in lines]


def _roof(profile: Profile, ceilings: Ceilings) -> float:
    """Seconds that the ceilings leave at least."""
    return sum(row.roof_seconds(ceilings) for row in profile.rows)


def _title(profile: Profile) -> str:
    rate = f"{profile.tokens / profile.seconds:,.0f} tok/s"
    if profile.name == "decode":
        work = f"decode, batch {profile.batch}, context {profile.context:,}"
        return f"{work} · {1e3 * profile.seconds:.2f} ms a step · {rate}"
    steps = "one step" if profile.steps == 1 else f"{profile.steps} steps"
    return f"{profile.name}, {profile.context:,} tokens in {steps} · {1e3 * profile.seconds:.1f} ms · {rate}"


def _table(profile: Profile, ceilings: Ceilings) -> list[list[str]]:
    total = Row(
        "all", False, sum(row.calls for row in profile.rows), sum(row.seconds for row in profile.rows),
        sum(row.bytes for row in profile.rows), sum(row.operations for row in profile.rows),
    )  # fmt: skip
    lines = [_line(row, row.roof_seconds(ceilings), profile, ceilings) for row in profile.rows]
    return [*lines, _line(total, _roof(profile, ceilings), profile, ceilings)]


def _line(row: Row, roof: float, profile: Profile, ceilings: Ceilings) -> list[str]:
    """rate: of what binds, bytes or operations."""
    seconds = max(row.seconds, 1e-9)
    reads = row.bytes / ceilings.read_bytes_per_second >= roof * 0.999
    rate = f"{row.bytes / seconds / 1e9:.1f} GB/s" if reads else f"{row.operations / seconds / 1e9:,.0f} GOP/s"
    share = roof / seconds
    return [
        row.label, f"{row.calls:,}", f"{1e3 * row.seconds:.3f} ms", _percent(row.seconds / profile.seconds),
        f"{row.bytes / 2**20:,.1f} MiB", f"{row.operations / 1e6:,.1f} M", "" if row.label == "all" else rate,
        f"{100 * share:.0f} %", _bar(share),
    ]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bar(share: float) -> str:
    """BAR columns for 1, in eighths."""
    eighths = round(8 * BAR * min(share, 1.0))
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _count(flag: str, default: int, help: str, least: int = 1) -> click.Option:
    return click.Option([flag], type=click.IntRange(least), default=default, metavar="N", help=f"{help} [{default}]")


command = OptionCommand(
    "profile",
    run,
    "Where the time of a step goes: per kind of phase its calls, time, bytes, operations, and the share of what this "
    "machine can do at best; for decode of one sequence, of a batch, and for a prompt.",
    nouns=(EngineConfig, LogConfig),
    own=[
        _count("--batch", 32, "sequences of the batched decode; 1: without it"),
        _count("--context", 512, "keys that each decoded token sees"),
        _count("--prefill", 512, "tokens of the prompt"),
        click.Option(["--json", "as_json"], is_flag=True, help="all figures as one JSON object"),
    ],
)
