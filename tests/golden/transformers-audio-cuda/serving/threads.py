"""Decides how many threads the frameworks start: one for each CPU of the container, not the host.

Left alone they count the host's cores, and dozens of threads take turns on a container's two CPUs.
"""

import math
import os
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

from threadpoolctl import threadpool_limits

from serving.settings import settings

# What a cgroup grants, and in which time: version 2 has both in one file, version 1 in two.
QUOTAS = (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many CPUs the process's cgroups grant it; infinity where none has a limit."""
    own = root / "proc/self/cgroup"
    quotas = [math.inf]
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = root / "sys/fs/cgroup" / ("cpu" if controllers else "") / path.lstrip("/")
        # A limit of those above holds as well. Where the path is the host's, they alone are there.
        for folder, files in product((group, *group.parents), QUOTAS):
            with suppress(OSError):
                texts = [(folder / name).read_text("utf-8") for name in files]
                quota, period = " ".join(texts).split()
                if quota not in {"max", "-1"}:
                    quotas.append(int(quota) / int(period))
    return min(quotas)


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
