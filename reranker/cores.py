"""How many cores a process has: those it may run on, and no more than its container pays for."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def usable_cores() -> int:
    """Cores this process may run on; fewer where a container's limit on CPU time is for fewer.

    `docker run --cpus 2` and Kubernetes' `limits.cpu` leave all cores visible, but stop a process
    that uses more time than those for the rest of every tenth of a second. Of a limit of one
    core and a half two cores are used.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(cores or 1, cpu_limit())))


def cpu_limit(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> float:
    """Cores' worth of time that the process's control groups allow; infinity without a limit.

    `groups` lists them, a line each, `mounted` is where they can be read. The limit of any group
    around the process's own holds as well. Files: `cpu.max` (kernel.org, Control Group v2) and
    `cpu.cfs_quota_us` with `cpu.cfs_period_us` (CFS Bandwidth Control, version 1).
    """
    try:
        lines = groups.read_text("utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        return math.inf
    found = [math.inf]
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found += [_limit(_words(folder / "cpu.max")) for folder in _around(mounted, path)]
        elif "cpu" in controllers.split(","):
            for folder in _around(mounted / controllers, path):
                period = _words(folder / "cpu.cfs_period_us")
                found.append(_limit(_words(folder / "cpu.cfs_quota_us") + period))
    return min(found)


def _around(mounted: Path, path: str) -> Iterator[Path]:
    """The folder of a group and of all groups around it.

    Inside a container the path may be the host's, or lead out of what is mounted: nothing of it
    is there then but what is mounted itself, the container's own group.
    """
    names = [name for name in path.split("/") if name]
    for depth in range(0 if ".." in names else len(names), -1, -1):
        yield mounted.joinpath(*names[:depth])


def _limit(words: list[str]) -> float:
    """Quota and period, in microseconds -> cores."""
    try:
        quota, period = map(int, words)
        limit = quota / period
    except (ValueError, ZeroDivisionError):  # "max", and files that are not there
        return math.inf
    return limit if limit > 0 else math.inf  # -1: none


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except (OSError, ValueError):
        return []
