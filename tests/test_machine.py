"""The parsers on files of other machines, and the reader on this one."""

import os

import pytest

from octavo.machine import (
    ISA_FLAGS,
    ancestors,
    isa_class,
    parse_cgroup,
    parse_cpuinfo,
    parse_meminfo,
    parse_mounts,
    parse_size,
    physical_cores,
    read_machine,
)

# Two cores with two threads each, a second package; the order that Linux prints: siblings apart.
CPUINFO = "\n\n".join(
    f"processor\t: {n}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon (R) 8480\n"
    f"stepping\t: 8\nphysical id\t: {package}\ncore id\t\t: {core}\nflags\t\t: fpu avx2 fma f16c avx512f avx512bw "
    "avx512vl avx512_vnni"
    for n, (package, core) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)])
)
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd40\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"
MEMINFO = "MemTotal:       24684084 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\nCached:   500 kB\n"
V2_MOUNT = "25 1 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw master:1 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
GIB = 1 << 30


def machine(files: dict[str, str], mask: frozenset[int] = frozenset({0, 1})):
    base = {"/proc/cpuinfo": CPUINFO, "/proc/meminfo": MEMINFO}
    return read_machine((base | files).get, mask)


def test_cores_of_the_mask() -> None:
    cpus, first = parse_cpuinfo(CPUINFO)
    assert len(cpus) == 8
    assert first["model name"] == "Xeon (R) 8480"
    assert physical_cores(cpus, frozenset(range(8))) == 4
    assert physical_cores(cpus, frozenset({0, 4})) == 1  # siblings
    assert physical_cores(cpus, frozenset({0, 2})) == 2  # same core id, other package


def test_a_cpuinfo_without_core_ids() -> None:
    cpus, first = parse_cpuinfo(ARM)
    assert physical_cores(cpus, frozenset({0, 1})) == 2
    assert isa_class(frozenset(first.get("flags", "").split())) == "portable"
    assert parse_cpuinfo("") == ((), {})
    assert physical_cores((), frozenset({0, 1, 2})) == 3


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16", "avx512bf16"),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni", "avx512"),
        ("avx2 fma f16c avx512f avx512bw avx512vl", "avx2"),  # Skylake-X: no VNNI
        ("avx2 fma f16c avx_vnni", "avx2"),
        ("avx2 fma", "portable"),
        ("avx512f avx512bw avx512vl avx512_vnni", "portable"),  # a hypervisor that hides AVX2
        ("", "portable"),
    ],
)
def test_isa(flags: str, name: str) -> None:
    assert isa_class(frozenset(flags.split())) == name
    assert name in ISA_FLAGS


def test_meminfo() -> None:
    assert parse_meminfo(MEMINFO) == (24684084 << 10, 20000000 << 10)
    assert parse_meminfo("MemTotal: 10 kB\nMemFree: 3 kB\nCached: 4 kB\n") == (10 << 10, 7 << 10)


def test_sizes() -> None:
    assert [parse_size(each) for each in ("32K\n", "2M", "1G", "7", "x")] == [32 << 10, 2 << 20, 1 << 30, 7, 0]


def test_cgroup_paths() -> None:
    assert parse_cgroup("0::/a.slice/b.scope\n") == {"": "/a.slice/b.scope"}
    assert parse_cgroup("4:memory:/docker/x\n1:cpu,cpuacct:/c:d\n") == {
        "memory": "/docker/x", "cpu": "/c:d", "cpuacct": "/c:d",
    }  # fmt: skip


def test_mounts() -> None:
    assert parse_mounts(V2_MOUNT) == {"": ("/sys/fs/cgroup", "/")}
    made = parse_mounts(V1_MOUNT)
    assert made["memory"] == ("/sys/fs/cgroup/memory", "/docker/abc")
    assert made["cpu"] == ("/sys/fs/cgroup/cpu,cpuacct", "/docker/abc")
    assert parse_mounts("1 2 0:1 / /a\\040b rw - cgroup2 none rw\n") == {"": ("/a b", "/")}


def test_ancestors() -> None:
    whole = ("/sys/fs/cgroup", "/")
    assert ancestors(whole, "/a/b") == ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]
    assert ancestors(whole, "/") == ["/sys/fs/cgroup"]
    assert ancestors(whole, "/../x") == ["/sys/fs/cgroup/x", "/sys/fs/cgroup"]
    part = ("/sys/fs/cgroup/memory", "/docker/abc")
    assert ancestors(part, "/docker/abc/d") == ["/sys/fs/cgroup/memory/d", "/sys/fs/cgroup/memory"]
    assert ancestors(part, "/docker/abcd") == ["/sys/fs/cgroup/memory"]


def test_version_2_takes_the_tightest_ancestor() -> None:
    made = machine({
        "/proc/self/cgroup": "0::/a/b\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/a/b/memory.max": "max\n",
        "/sys/fs/cgroup/a/b/memory.current": f"{GIB}\n",
        "/sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
        "/sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
        "/sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 9\n",
        "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/cpu.max": "400000 100000\n",
    })  # fmt: skip
    assert [group.path for group in made.groups] == ["/sys/fs/cgroup/a"]
    assert made.memory_free == 2 * GIB  # 4 - 3 + 1 of page cache
    assert made.quota == 1.5
    assert made.threads == 1


def test_memory_high_is_a_limit_too() -> None:
    made = machine({
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.high": f"{GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
    })  # fmt: skip
    assert made.memory_free == 0


def test_version_1() -> None:
    made = machine({
        "/proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
        "/proc/self/mountinfo": V1_MOUNT,
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "/sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 1024\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert made.memory_free == GIB + 1024
    assert made.quota == 2.0
    assert made.threads == 2


def test_no_limits() -> None:
    made = machine({
        "/proc/self/cgroup": "4:memory:/x\n1:cpu:/x\n",
        "/proc/self/mountinfo": V1_MOUNT.replace("/docker/abc", "/"),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }, frozenset(range(8)))  # fmt: skip
    assert (made.groups, made.quota, made.threads) == ((), None, 4)
    assert made.memory_free == 20000000 << 10


def test_caches() -> None:
    folder = "/sys/devices/system/cpu/cpu3/cache"
    files = {
        f"{folder}/index{n}/{key}": value
        for n, row in enumerate([("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")])
        for key, value in zip(("level", "type", "size"), row, strict=True)
    }
    assert machine(files, frozenset({3})).caches == {"L1d": 48 << 10, "L1i": 32 << 10, "L2": 2 << 20}


def test_nothing_readable() -> None:
    made = read_machine({}.get, frozenset({0}))
    assert (made.isa, made.threads, made.memory_free) == ("portable", 1, 0)


def test_this_machine() -> None:
    made = read_machine()
    assert set(made.logical_cpus) == os.sched_getaffinity(0)
    assert 1 <= made.threads <= made.physical_cores <= len(made.logical_cpus)
    assert 0 < made.memory_free <= made.memory_available <= made.memory_total
    assert abs(made.memory_total - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < 1 << 20
