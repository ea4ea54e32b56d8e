"""`octavo env`: what a report about octavo has to say of the machine. Reads, measures nothing, asks no network.

No secret is shown: variables are named, not their values.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

from octavo import __version__
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import size
from octavo.config import EngineConfig
from octavo.machine import read_machine
from octavo.settings import Settings, hub_cache

PACKAGES = (
    "numpy", "msgspec", "tokenizers", "jinja2", "click", "rich", "starlette", "uvicorn", "httptools", "uvloop",
    "prometheus-client", "PyYAML", "huggingface_hub",
)  # fmt: skip


def facts(settings: Settings) -> dict[str, str]:
    """Everything, in the order of the page: a name -> one line."""
    machine = read_machine()
    groups = [f"{group.path}: limit {size(group.limit)}, free {size(group.free)}" for group in machine.groups]
    folders = (settings.engine.cache_path, settings.engine.state_path, hub_cache())
    return {
        "octavo": f"{__version__} in {__file__.removesuffix('/cli/env.py')}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "native": _native(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "cpu": machine.cpu_name + (f" ({machine.cpu_id})" if machine.cpu_id.strip("?-") else ""),
        "cores": f"{machine.physical_cores} physical, {len(machine.logical_cpus)} logical in the affinity mask; "
        f"octavo would use {machine.threads} threads",
        "isa": f"{machine.isa} by the processor's flags",
        "caches": ", ".join(f"{name} {size(nbytes)}" for name, nbytes in machine.caches.items()) or "unknown",
        "memory": f"{size(machine.memory_total)} in all, {size(machine.memory_available)} available, "
        f"{size(machine.memory_free)} for octavo",
        "cgroup": "; ".join(groups) or "no memory limit",
        "quota": "no CPU quota" if machine.quota is None else f"{machine.quota:g} CPUs",
        "folders": "; ".join(
            f"{folder} ({'free ' + size(shutil.disk_usage(folder).free) if folder.is_dir() else 'not there yet'})"
            for folder in folders
        ),
        "options": ", ".join(f"{name} from {source}" for name, source in settings.sources.items()) or "none set",
    }


def _native() -> str:
    try:
        from octavo.kernels import _native
    except ImportError as error:
        return f"not built ({error})"
    return f"runs {', '.join(_native.variants()) or 'no variant'} here; layout {_native.LAYOUT_HASH}"


def _version(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return "missing"


def run(settings: Settings, as_json: bool) -> None:
    """Print the page."""
    found = facts(settings)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, line in found.items():
        click.echo(f"{name:10}{line}")
    for notice in settings.notices:
        click.echo(f"{'notice':10}{notice}")


command = OptionCommand(
    "env",
    run,
    "Versions, processor, memory and folders, to paste into an issue.",
    nouns=(EngineConfig,),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="one JSON object")],
    model_argument=False,
)
