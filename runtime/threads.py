"""How many cores there are to compute with: what the machine has, less what a container or a scheduler withholds."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

# The second is the newer name of the first.
_SIBLINGS = ("thread_siblings_list", "core_cpus_list")
_UNIFIED_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_CPU_MOUNTS = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")


def usable_cores() -> int:
    """The number of physical cores that this process may use: at least 1. Never raises.

    On Linux the CPUs of the process's affinity, the hyper-threads of a core counted once, and no more than the CPU
    quota of its cgroups. macOS and Windows have no such files: there it is os.cpu_count(), hyper-threads included.
    """
    root = Path("/")
    cores = count_cores(_allowed_cpus(), root)
    quota = cpu_quota(root)
    return max(1, cores if quota is None else min(cores, quota))


def count_cores(cpus: Iterable[int], root: Path) -> int:
    """The physical cores that the logical `cpus` belong to, as the sysfs under `root` tells.

    A CPU that it does not tell of is a core of its own.
    """
    return len({_core(cpu, root / f"sys/devices/system/cpu/cpu{cpu}/topology") for cpu in cpus})


def cpu_quota(root: Path) -> int | None:
    """The CPUs whose time this process's cgroups grant it, by the tightest of them; None where none limits it.

    root: where /proc and /sys/fs/cgroup are looked for. Both versions of cgroups are read, as a machine may have both.

    A fraction is rounded up. A thread too many costs what it burns of the quota by spinning while the others do the
    serial part of a step, which is short. A thread too few would leave up to half of the quota unused: 1 of 1.9 CPUs.
    A quota below 1 needs a thread all the same.
    """
    quotas = [
        quota
        for group in _cgroups(root)
        for quota in (_unified_quota(_read(group / "cpu.max")), _legacy_quota(group))
        if quota is not None
    ]
    return min(quotas, default=None)


def _allowed_cpus() -> Iterable[int]:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return range(os.cpu_count() or 1)


def _core(cpu: int, topology: Path) -> int:
    """The first CPU of the core that `cpu` is on."""
    for name in _SIBLINGS:
        ranges = _ranges(_read(topology / name))
        if any(first <= cpu <= last for first, last in ranges):
            return min(first for first, _ in ranges)
    return cpu


def _ranges(text: str) -> list[tuple[int, int]]:
    """The kernel's list of CPUs, such as `0-3,8`, as (first, last); empty where it is none.

    Ranges are not spelled out: a damaged one may be endless.
    """
    try:
        parts = [part.partition("-") for part in text.split(",")]
        return [(int(first), int(last if dash else first)) for first, dash, last in parts]
    except ValueError:
        return []


def _cgroups(root: Path) -> Iterator[Path]:
    """The directories of this process's cgroups that may limit its CPU time, with all of their parents.

    Each line of /proc/self/cgroup is `number:controllers:path`; version 2 has the number 0 and no controllers. Inside a
    container the path may be the host's, of which only the mount itself is there, and that is the container's cgroup.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if unified or "cpu" in controllers.split(","):
            below = PurePosixPath(path.lstrip("/"))
            for mount in _UNIFIED_MOUNTS if unified else _CPU_MOUNTS:
                yield from (root / mount / group for group in (below, *below.parents))


def _unified_quota(text: str) -> int | None:
    """Version 2's cpu.max: microseconds of CPU time, or `max`, and the period in microseconds that they are for."""
    quota, _, period = text.partition(" ")
    return _rounded_up(quota, period)


def _legacy_quota(group: Path) -> int | None:
    """Version 1's two files of the same; a quota of -1 is none."""
    return _rounded_up(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _rounded_up(quota: str, period: str) -> int | None:
    try:
        time, per = int(quota), int(period)
    except ValueError:
        return None
    return -(-time // per) if time > 0 and per > 0 else None


def _read(path: Path) -> str:
    """What a file says, or nothing where it cannot be read; a cgroup's name may be any bytes."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except (OSError, ValueError):
        return ""
