"""What `octavo doctor` looks at: each check reads something of the machine and gives findings, with what to do.

Nothing is changed, nothing measured, and no server is started; a model's files are read to their end where their sums
are known. It knows no command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed
from pathlib import Path

from octavo import __version__
from octavo.checkpoints.catalogue import CATALOGUE
from octavo.cli.terminal import size
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import AddressInUse, OctavoError
from octavo.machine import ISA_FLAGS, Machine, read_file
from octavo.server.address import Listener
from octavo.settings import hub_cache

OK, WARN, FAIL = "ok", "warn", "fail"
DISK_BYTES = 2 << 30  # free space below which a download or packed weights may not fit
LEAST_BYTES = 64 << 20  # below which nothing is kept
HUB_SECONDS = 4.0
FILES = 4096  # descriptors: each connection is one
CHUNK = 4 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """level: ok, warn or fail. todo: what to do; empty where nothing is."""

    level: str
    name: str
    told: str
    todo: str = ""


def software() -> Iterator[Finding]:
    """Versions, and the native library."""
    yield Finding(OK, "octavo", f"{__version__}, Python {sys.version.split()[0]}")
    missing = [name for name in needed() if not _there(name)]
    if missing:
        yield Finding(FAIL, "packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding(OK, "packages", f"{len(needed())} of {len(needed())} are installed")


def needed() -> list[str]:
    """Distributions that octavo cannot do without."""
    lines = [line for line in requires("octavo") or () if "extra ==" not in line]
    return [found[0] for line in lines if (found := re.match(r"[\w.-]+", line))]


def _there(name: str) -> bool:
    try:
        installed(name)
    except PackageNotFoundError:
        return False
    return True


def processor(machine: Machine, engine: EngineConfig) -> Iterator[Finding]:
    """The kernels that run, against what the processor has."""
    try:
        from octavo.kernels.library import new_machine, runnable_variants

        variants = runnable_variants()
        new_machine(isa=engine.isa, threads=1, scratch_bytes=4096)
    except OctavoError as error:
        yield Finding(FAIL, "kernels", error.message, "python3 dev build in a clone; else install octavo again")
        return
    order = [*ISA_FLAGS]
    best = next((each for each in variants if each in order), "portable")
    told = f"{machine.cpu_name}: runs {', '.join(variants)}"
    if order.index(best) > order.index(machine.isa):
        yield Finding(
            WARN, "kernels", f"{told}; the processor has {machine.isa}, which this build lacks",
            "build anew on this processor: python3 dev build",
        )  # fmt: skip
    elif best == "portable":
        yield Finding(WARN, "kernels", f"{told}: no AVX2, so that it is slow", "use a processor with AVX2 or AVX-512")
    else:
        yield Finding(OK, "kernels", told)


def threads(machine: Machine, engine: EngineConfig) -> Iterator[Finding]:
    """Cores, what may be used of them, and who else does."""
    told = f"{machine.threads} of {machine.physical_cores} cores ({len(machine.logical_cpus)} logical)"
    if engine.threads is not None and engine.threads > machine.threads:
        told = f"--threads {engine.threads} where {machine.threads} cores may be used"
        yield Finding(WARN, "threads", told, f"--threads {machine.threads}, or leave it out")
    elif engine.thread_limit is not None and engine.thread_limit < machine.threads:
        told += f", but OMP_NUM_THREADS allows {engine.thread_limit}"
        yield Finding(WARN, "threads", told, f"unset OMP_NUM_THREADS, or --threads {machine.threads}")
    else:
        yield Finding(OK, "threads", told)
    if machine.quota is not None and machine.quota % 1:
        yield Finding(
            WARN, "quota", f"the control group allows {machine.quota:g} CPUs: a part of one is used by nobody",
            "give it whole CPUs (docker --cpus, Kubernetes limits.cpu)",
        )  # fmt: skip
    elif machine.quota is not None:
        yield Finding(OK, "quota", f"{machine.quota:g} CPUs")
    load = os.getloadavg()[0]
    if load > 0.5 * len(machine.logical_cpus):
        yield Finding(
            WARN, "load", f"{load:.1f} on average in the last minute: others compute here",
            "a thread that waits for a core makes all others wait: end them, or give --threads less",
        )  # fmt: skip
    else:
        yield Finding(OK, "load", f"{load:.1f} on average in the last minute")
    governor = read_file(f"/sys/devices/system/cpu/cpu{min(machine.logical_cpus)}/cpufreq/scaling_governor")
    if governor is not None and governor.strip() in ("powersave", "conservative"):
        state = read_file("/sys/devices/system/cpu/intel_pstate/status") or ""
        if state.strip() != "active":  # which rises by itself under that name
            yield Finding(WARN, "frequency", f"governor {governor.strip()}", "cpupower frequency-set -g performance")
    nodes = [*Path("/sys/devices/system/node").glob("node[0-9]*")]
    if len(nodes) > 1:
        yield Finding(
            WARN, "NUMA", f"{len(nodes)} nodes: weights lie where they were read, other nodes' cores wait for them",
            "one server for each node: numactl --cpunodebind=0 --membind=0 octavo serve",
        )  # fmt: skip


def memory(machine: Machine) -> Iterator[Finding]:
    """What is free, the limits, huge pages, descriptors."""
    told = f"{size(machine.memory_free)} free of {size(machine.memory_total)}"
    tight = min(machine.groups, key=lambda each: each.free, default=None)
    if tight is not None and tight.free < machine.memory_available:
        told += f"; the control group {tight.path} allows {size(tight.limit)}"
    if machine.memory_free < 1 << 30:
        yield Finding(WARN, "memory", told, "octavo plan MODEL says what a model takes")
    else:
        yield Finding(OK, "memory", told)
    huge = read_file("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", huge)
    if chosen is None or chosen[1] == "never":
        yield Finding(
            WARN, "huge pages", "off: reading weights takes more address translations",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )  # fmt: skip
    else:
        yield Finding(OK, "huge pages", chosen[1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FILES:
        yield Finding(WARN, "descriptors", f"at most {hard}: each connection is one", f"ulimit -Hn {FILES} or more")
    else:
        yield Finding(OK, "descriptors", "no limit" if hard < 0 else str(hard))


def folders(engine: EngineConfig) -> Iterator[Finding]:
    """Those that octavo writes into."""
    for name, folder, flag in (
        ("cache", engine.cache_path, "OCTAVO_CACHE"), ("state", engine.state_path, "OCTAVO_STATE"),
        ("hub cache", hub_cache(), "HF_HUB_CACHE"), ("temporary", Path(tempfile.gettempdir()), "TMPDIR"),
    ):  # fmt: skip
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(FAIL, name, f"{folder} cannot be written", f"set {flag} to a folder that can")
            continue
        free = shutil.disk_usage(there).free
        told = f"{folder}: {size(free)} free" + ("" if there == folder else ", made when it is needed")
        if free < LEAST_BYTES:
            yield Finding(FAIL, name, f"{folder}: {size(free)} free", f"make room, or set {flag}")
        elif free < DISK_BYTES and name in ("cache", "hub cache"):
            yield Finding(WARN, name, told, f"octavo list shows what takes room, octavo rm frees it; or set {flag}")
        else:
            yield Finding(OK, name, told)


def address(server: ServerConfig) -> Iterator[Finding]:
    """Whether a server could listen where it is asked to."""
    where = server.uds or (server.host if server.host.endswith(".sock") else f"{server.host}:{server.port}")

    async def take() -> None:
        for listener in await Listener.bind_all(server):
            listener.close()

    try:
        asyncio.run(take())
    except AddressInUse as error:
        ours = "octavo" in error.message.partition("Stop it")[0]
        told = error.message.partition(". Stop it")[0]
        yield Finding(OK if ours else FAIL, "address", told, "" if ours else f"octavo serve --port {server.port + 1}")
    except OctavoError as error:
        yield Finding(FAIL, "address", error.message, "another --host or --port")
    else:
        yield Finding(OK, "address", f"{where} is free")


def hub(engine: EngineConfig) -> Iterator[Finding]:
    """Whether models could be fetched. The hub's own library knows mirrors, the standard one proxies."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if engine.offline:
        yield Finding(OK, "hub", "not asked: --offline")
        return
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS):
            yield Finding(OK, "hub", f"{constants.ENDPOINT} answers")
    except HTTPError as error:  # somebody answered
        yield Finding(OK, "hub", f"{constants.ENDPOINT} answers {error.code}")
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        yield Finding(
            WARN, "hub", f"{constants.ENDPOINT} does not answer ({why}): local models work all the same",
            "HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror, --offline if there is no network",
        )  # fmt: skip


def known_sum(path: Path) -> str | None:
    """The SHA-256 that a model's file must have: the catalogue's, or the hub's, which names its large files by it."""
    entry = next((each for each in CATALOGUE.values() if each.file and each.file == path.name), None)
    if entry is not None:
        return entry.sha256
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and SHA256.fullmatch(real.name) else None


def sums(paths: list[Path], progress: Progress) -> Iterator[Finding]:
    """Files of models against their sums, each read to its end."""
    for path in paths:
        wanted = known_sum(path)
        if wanted is None:
            yield Finding(OK, "checksum", f"{path.name}: nobody tells its sum ({size(path.stat().st_size)})")
        elif (found := _sha256(path, progress)) == wanted:
            yield Finding(OK, "checksum", f"{path.name}: sha256 {found[:12]}… as it should be")
        else:
            yield Finding(
                FAIL, "checksum", f"{path}: sha256 is {found[:12]}…, should be {wanted[:12]}…",
                "octavo rm NAME, then octavo pull NAME",
            )  # fmt: skip


def _sha256(path: Path, progress: Progress) -> str:
    made, done, whole = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            made.update(chunk)
            done += len(chunk)
            progress(f"check {path.name[:24]}", done, whole)
    return made.hexdigest()
