"""What a server's processes hold: memory, descriptors, threads, shared memory; slopes of memory, and what was left."""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.server.live import Live

WARM_UP = 3000  # requests of a process's life that do not count for its slope: caches fill, of constraints to 64 MiB
MIB = 1 << 20
Samples = dict[int, list[tuple[int, int]]]  # pid -> (requests so far, bytes), one after the other


@dataclass(frozen=True)
class Holding:
    """Of one process. anon: bytes of private memory."""

    pid: int
    anon: int
    descriptors: int
    threads: int


def holding(process: psutil.Process) -> Holding:
    """ProcessLookupError for one that has ended and is not yet waited for: it has no memory."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    if found is None:
        raise ProcessLookupError(process.pid)
    anon = int(found[1]) * 1024
    return Holding(process.pid, anon, process.num_fds(), process.num_threads())


def processes(live: Live) -> dict[str, psutil.Process]:
    """Front, engine and grammar process, as far as they are there."""
    found = {"front": psutil.Process(live.process.pid)}
    with contextlib.suppress(psutil.Error, ValueError):
        found["engine"] = live.engine()
        for child in found["engine"].children():
            found["grammar"] = child
    return found


def holdings(live: Live) -> dict[str, Holding]:
    found = {}
    for name, process in processes(live).items():
        with contextlib.suppress(psutil.Error, OSError):
            found[name] = holding(process)
    return found


def shared() -> set[str]:
    """Names of shared memory and of temporary files that could be ours."""
    names = {str(path) for path in Path("/dev/shm").iterdir()}
    return names | {str(path) for path in Path(tempfile.gettempdir()).glob("octavo*")}


def slope(samples: Samples) -> tuple[float, int] | None:
    """MiB per 10,000 requests over the lives (pid -> requests, bytes) of a process, each with its own level, and how
    many requests they spanned; None if no life was long enough."""
    above, below, span = 0.0, 0.0, 0
    for life in samples.values():
        counted = [each for each in life if each[0] - life[0][0] >= WARM_UP]
        if len(counted) < 6:
            continue
        x = sum(requests for requests, _ in counted) / len(counted)
        y = sum(anon for _, anon in counted) / len(counted)
        above += sum((requests - x) * (anon - y) for requests, anon in counted)
        below += sum((requests - x) ** 2 for requests, _ in counted)
        span += counted[-1][0] - counted[0][0]
    return (above / below * 1e4 / MIB, span) if below else None


def leaks(live: Live, before: dict[str, Holding], after: dict[str, Holding], names: set[str]) -> list[str]:
    """What is held now and was not before the soak."""
    found = []
    if usage := live.metric("kv_cache_usage_perc"):
        found.append(f"{usage:.2%} of the cache's blocks are owned")
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            found.append(f"the {name} process is gone")
            continue
        if new.descriptors > old.descriptors:
            found.append(f"{name}: {new.descriptors} descriptors instead of {old.descriptors}")
        if new.threads > old.threads:
            found.append(f"{name}: {new.threads} threads instead of {old.threads}")
    count = len(psutil.Process(live.process.pid).children(recursive=True)) + 1
    if count != len(before):
        found.append(f"{count} processes instead of {len(before)}")
    if more := shared() - names:
        found.append(f"left: {', '.join(sorted(more))}")
    return found
