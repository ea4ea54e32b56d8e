"""`octavo doctor [MODEL]`: is this machine fit to serve? A line for each thing that is looked at: ok, warn or fail, and
what to do. Exit code 1 if anything fails.

What is looked at is checks.py's; `octavo env` tells facts without judging them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import click

from octavo.cli import checks
from octavo.cli.checks import FAIL, OK, WARN, Finding
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, columns, say, size
from octavo.config import EngineConfig, LogConfig, ServerConfig
from octavo.errors import OctavoError
from octavo.machine import Machine, read_machine
from octavo.settings import Settings, client_environment
from octavo.shelf import hub_folder


def run(settings: Settings, as_json: bool, quick: bool, every: bool) -> int:
    """Print the findings; the exit code."""
    progress = Progress(client_environment().plain)
    machine, engine = read_machine(), settings.engine
    found = [
        *chain(
            checks.software(),
            checks.processor(machine, engine),
            checks.threads(machine, engine),
            checks.memory(machine),
            checks.folders(engine),
            checks.address(settings.server),
            checks.hub(engine),
            of_model(machine, settings),
            () if quick else checks.sums(files(settings, every), progress.report),
            (Finding(WARN, "environment", notice) for notice in settings.notices),
        )
    ]
    progress.close()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
    else:
        for line in page(found):
            click.echo(line)
    counts = {level: sum(each.level == level for each in found) for level in (OK, WARN, FAIL)}
    say(", ".join(f"{count} {level}" for level, count in counts.items()))
    return 1 if counts[FAIL] else 0


def page(found: list[Finding]) -> list[str]:
    """A line for each, and one below it that says what to do."""
    lines = columns([(each.level, each.name, each.told) for each in found])
    indent = 6
    made = []
    for each, line in zip(found, lines, strict=True):
        made.append(line.rstrip())
        if each.todo:
            made.append(f"{'':{indent}}→ {each.todo}")
    return made


def of_model(machine: Machine, settings: Settings) -> Iterator[Finding]:
    """Whether the model is here and fits."""
    from octavo.checkpoints.checkpoint import open_checkpoint
    from octavo.engine.startup import decide_threads
    from octavo.execution.plan import make_plan

    engine = settings.engine
    try:
        path = _files_of(engine)
    except OctavoError:
        yield Finding(WARN, "model", f"{engine.model} is not on this machine", f"octavo pull {engine.model}")
        return
    try:
        checkpoint = open_checkpoint(path)
        plan = make_plan(checkpoint, engine, free=machine.memory_free, threads=decide_threads(engine, machine))
    except OctavoError as error:
        first, *rest = error.message.split("\n")
        yield Finding(FAIL, "model", f"{engine.model}: {first}", "; ".join(" ".join(line.split()) for line in rest))
        return
    told = f"{engine.model} fits: {size(plan.total)} of {size(plan.allowed)}, context {plan.context:,}"
    yield Finding(OK, "model", told)


def _files_of(engine: EngineConfig) -> Path:
    from octavo.start import find_model

    return find_model(replace(engine, offline=True)).path


def files(settings: Settings, every: bool) -> list[Path]:
    """Files of weights: of the model, or of all on this machine."""
    from octavo.checkpoints.gguf_shards import part_names
    from octavo.checkpoints.inventory import listed

    engine = settings.engine
    try:
        paths = [_files_of(engine)]
    except OctavoError:
        paths = []
    if every:
        paths += [Path(each.path) for each in listed(engine.cache_path, hub_folder(engine))]
    made: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else map(path.with_name, part_names(path.name))
        made += [each for each in inside if each.exists()]
    return list(dict.fromkeys(made))


command = OptionCommand(
    "doctor",
    run,
    "Is this machine fit to serve? Kernels, threads, memory, folders, address, the model's files: ok, warn or fail, "
    "and what to do. Exit code 1 if anything fails.",
    nouns=(EngineConfig, ServerConfig, LogConfig),
    own=[
        click.Option(["--json", "as_json"], is_flag=True, help="a JSON list of findings"),
        click.Option(["--quick"], is_flag=True, help="do not read model files to check their sums"),
        click.Option(["--all", "every"], is_flag=True, help="check the files of every model on this machine"),
    ],
)
