"""The CPUs that this process may use: those of its affinity, within the quotas of its cgroups."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """The number of threads that can run at once: allowed CPUs, within the quotas of cgroups.

    Without affinity and quotas, as on other systems than Linux, these are all CPUs. A part of a
    CPU does not count unless it is all there is: a thread that has used it up keeps others waiting.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min([allowed or 1, *cpu_quotas()])))


def cpu_quotas(own: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> Iterator[float]:
    """The CPUs that each cgroup around this process allows, if it has a limit.

    Knows both versions of cgroups (``cpu.max`` and ``cpu.cfs_quota_us`` in the documentation of
    Linux). In a container, its own cgroup is the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / controllers
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root) and (quota := _quota(folder)) is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """The CPUs that this cgroup allows, None for any number."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
        except OSError:
            continue
        return None if quota in ("max", "-1") else int(quota) / int(period)
    return None
