"""Decides how many threads the frameworks start: one for each CPU of the container, not the host.

Left alone they count the host's cores, and dozens of threads take turns on a container's two CPUs.
"""

import math
import os
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

from serving.settings import settings

# What a cgroup grants, in microseconds per period of so many: version 2 has both in one file.
QUOTA_V2 = ["cpu.max"]
QUOTA_V1 = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many CPUs the process's cgroups grant it; infinity where none has a limit."""
    own = root / "proc/self/cgroup"
    quotas = [math.inf]
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, files = root / "sys/fs/cgroup", QUOTA_V2
        elif "cpu" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/cpu", QUOTA_V1
        else:
            continue
        group = mount / path.lstrip("/")
        # A limit of those above holds as well. Where the path is the host's, they alone are there.
        for folder in (group, *group.parents):
            quotas.append(_read_quota(folder, files))
            if folder == mount:
                break
    return min(quotas)


def _read_quota(folder: Path, files: list[str]) -> float:
    try:
        text = " ".join((folder / name).read_text(encoding="utf-8") for name in files)
    except OSError:  # the root of all groups has no such file
        return math.inf
    quota, period = text.split()
    return math.inf if quota in {"max", "-1"} else int(quota) / int(period)


def cpu_count() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def count_threads() -> tuple[int, str]:
    """Return how many threads the frameworks may use, and what decides it."""
    if settings.num_threads:
        return settings.num_threads, "NUM_THREADS or OMP_NUM_THREADS"
    cpus, quota = cpu_count(), cpu_quota()
    reason = f"{cpus} CPUs" if cpus <= quota else f"the CPU quota of {quota:g}"
    return max(1, math.ceil(min(cpus, quota))), reason


NUM_THREADS, THREADS_LIMIT = count_threads()


def limit_threads() -> None:
    """Have libraries keep to it: those that are loaded already, and those that will be."""
    threadpool_limits(NUM_THREADS)
    os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)
