"""The machine as its kernel describes it: cores, quota, memory, caches, instruction set. Read, never measured.

Parsers are functions over text, so that they are tested on other machines' files; `read_machine` only opens files.
It knows no model and takes no decision beyond the class of the instruction set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ISA_FLAGS: dict[str, frozenset[str]] = {  # best first; the numerics classes of the kernels
    "avx512bf16": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "portable": frozenset(),
}
_FMA = frozenset({"avx2", "fma", "f16c"})  # the AVX-512 kernels use these as well
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63

Read = Callable[[str], str | None]  # absolute path → content, None if there is no such file


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU of /proc/cpuinfo."""

    processor: int
    package: int
    core: int


@dataclass(frozen=True, slots=True)
class Group:
    """One cgroup with a limit: `path` is its folder; bytes; `inactive_file` is page cache that it gives back."""

    path: str
    limit: int
    usage: int
    inactive_file: int

    @property
    def free(self) -> int:
        return max(0, self.limit - self.usage + self.inactive_file)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the machine at one moment; sizes in bytes."""

    cpu_name: str
    cpu_id: str  # vendor-family-model-stepping: the key of cached measurements
    isa: str  # a key of ISA_FLAGS
    flags: frozenset[str] = field(repr=False)
    logical_cpus: tuple[int, ...]  # the affinity mask
    physical_cores: int  # distinct cores within the mask
    quota: float | None  # CPUs that the tightest cgroup allows, None if none does
    caches: Mapping[str, int]  # "L1d", "L1i", "L2", "L3" of the first CPU of the mask
    memory_total: int
    memory_available: int
    groups: tuple[Group, ...]  # every ancestor with a memory limit, innermost first

    @property
    def memory_free(self) -> int:
        """What may be used now: the least of MemAvailable and of what each cgroup ancestor leaves."""
        return min([self.memory_available, *(group.free for group in self.groups)])

    @property
    def threads(self) -> int:
        """max(1, min(physical cores in the mask, whole CPUs of the quota))."""
        cores = self.physical_cores
        return max(1, cores if self.quota is None else min(cores, int(self.quota)))


def parse_cpuinfo(text: str) -> tuple[tuple[Cpu, ...], dict[str, str]]:
    """/proc/cpuinfo → its logical CPUs and the fields of the first one. A missing core id makes a core of its own."""
    cpus: list[Cpu] = []
    first: dict[str, str] = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        row = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())}
        if not row.get("processor", "").isdigit():
            continue
        first = first or row
        number = int(row["processor"])
        core = row.get("core id", "")
        package = row.get("physical id", "")
        cpus.append(Cpu(number, int(package) if package.isdigit() else 0, int(core) if core.isdigit() else -1 - number))
    return tuple(cpus), first


def isa_class(flags: frozenset[str]) -> str:
    """The best kernel variant that the flags of /proc/cpuinfo allow."""
    for name, needed in ISA_FLAGS.items():
        if needed <= flags and (name == "portable" or flags >= _FMA):
            return name
    return "portable"


def physical_cores(cpus: tuple[Cpu, ...], mask: frozenset[int]) -> int:
    """Distinct cores among the logical CPUs of the mask; the mask's size where cpuinfo tells nothing."""
    return len({(cpu.package, cpu.core) for cpu in cpus if cpu.processor in mask}) or len(mask)


def parse_meminfo(text: str) -> tuple[int, int]:
    """/proc/meminfo → (MemTotal, MemAvailable) in bytes; before Linux 3.14 available is free + cached."""
    rows = {k: int(v) << 10 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    available = rows.get("MemAvailable", rows.get("MemFree", 0) + rows.get("Cached", 0))
    return rows.get("MemTotal", available), available


def parse_size(text: str) -> int:
    """A size of /sys, `32K` or `2M` → bytes."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/self/cgroup → controller → path within its hierarchy; the unified (v2) hierarchy is the key ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            paths.update({controller: parts[2] for controller in parts[1].split(",")})
    return paths


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """/proc/self/mountinfo → controller ("" for v2) → (mount point, root of the hierarchy that it shows)."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 6 or len(after) < 3 or not after[0].startswith("cgroup"):
            continue
        point, root = _unescape(before[4]), _unescape(before[3])
        for controller in [""] if after[0] == "cgroup2" else after[2].split(","):
            mounts[controller] = (point, root)
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def ancestors(mount: tuple[str, str], path: str) -> list[str]:
    """The folders of a cgroup and its ancestors up to the mount point, innermost first.

    In a container the mount may show only a part of the hierarchy (`root`); a path outside it is the mount point.
    """
    point, root = mount
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    elif root != "/":
        path = "/"
    parts = [part for part in path.split("/") if part and part != ".."]
    return [point.rstrip("/") + "".join("/" + part for part in parts[:n]) for n in range(len(parts), -1, -1)]


def memory_groups(read: Read, cgroup: dict[str, str], mounts: dict[str, tuple[str, str]]) -> tuple[Group, ...]:
    """Every ancestor with a memory limit, in cgroup v2 and v1 alike."""
    groups = []
    for key, limit_file, usage_file, inactive in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("", "memory.high", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if key not in cgroup or key not in mounts:
            continue
        for folder in ancestors(mounts[key], cgroup[key]):
            limit, usage = read(f"{folder}/{limit_file}"), read(f"{folder}/{usage_file}")
            if limit is None or usage is None or not limit.strip().isdigit() or int(limit) >= _UNLIMITED:
                continue
            stat = re.search(rf"^{inactive} (\d+)$", read(f"{folder}/memory.stat") or "", re.M)
            groups.append(Group(folder, int(limit), int(usage), int(stat[1]) if stat else 0))
    return tuple(groups)


def cpu_quota(read: Read, cgroup: dict[str, str], mounts: dict[str, tuple[str, str]]) -> float | None:
    """The least number of CPUs that any ancestor allows, or None."""
    quotas = []
    if "" in cgroup and "" in mounts:
        for folder in ancestors(mounts[""], cgroup[""]):
            quota, _, period = (read(f"{folder}/cpu.max") or "").strip().partition(" ")
            if quota.isdigit() and period.isdigit() and int(period):
                quotas.append(int(quota) / int(period))
    if "cpu" in cgroup and "cpu" in mounts:
        for folder in ancestors(mounts["cpu"], cgroup["cpu"]):
            quota = (read(f"{folder}/cpu.cfs_quota_us") or "").strip()
            period = (read(f"{folder}/cpu.cfs_period_us") or "").strip()
            if quota.isdigit() and period.isdigit() and int(period):  # -1: no limit
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cpu_caches(read: Read, cpu: int) -> dict[str, int]:
    """The caches of a logical CPU from /sys: "L1d" → bytes."""
    caches: dict[str, int] = {}
    for index in range(8):
        folder = f"/sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        level, kind, text = (read(f"{folder}/{name}") for name in ("level", "type", "size"))
        if level and kind and text:
            letter = {"Data": "d", "Instruction": "i"}.get(kind.strip(), "")
            caches[f"L{level.strip()}{letter}"] = parse_size(text)
    return caches


def read_file(path: str) -> str | None:
    """The content of a small file of /proc or /sys, None if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_machine(read: Read = read_file, mask: frozenset[int] | None = None) -> Machine:
    """The machine now. `mask` are the logical CPUs that may be used (default: this process's affinity)."""
    if mask is None:
        has_mask = hasattr(os, "sched_getaffinity")  # Linux alone
        mask = frozenset(os.sched_getaffinity(0) if has_mask else range(os.cpu_count() or 1))
    cpus, first = parse_cpuinfo(read("/proc/cpuinfo") or "")
    flags = frozenset(first.get("flags", "").split())
    total, available = parse_meminfo(read("/proc/meminfo") or "")
    cgroup = parse_cgroup(read("/proc/self/cgroup") or "")
    mounts = parse_mounts(read("/proc/self/mountinfo") or "")
    identity = (first.get(key, "?") for key in ("vendor_id", "cpu family", "model", "stepping"))
    return Machine(
        cpu_name=first.get("model name", "unknown CPU"),
        cpu_id="-".join(identity),
        isa=isa_class(flags),
        flags=flags,
        logical_cpus=tuple(sorted(mask)),
        physical_cores=physical_cores(cpus, mask),
        quota=cpu_quota(read, cgroup, mounts),
        caches=cpu_caches(read, min(mask, default=0)),
        memory_total=total,
        memory_available=available,
        groups=memory_groups(read, cgroup, mounts),
    )
