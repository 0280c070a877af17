"""A container's limit on CPU time is a number of cores."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import pytest

from reranker import cores
from reranker.cores import cpu_limit, usable_cores

if TYPE_CHECKING:
    from pathlib import Path

# What /proc/self/cgroup says, the files below /sys/fs/cgroup, and the limit.
CASES = {
    "none": ("0::/\n", {}, math.inf),
    "v2, in a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "v2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    "v2, of a group around it": (
        "0::/pods/one/app\n",
        {"pods/one/app/cpu.max": "max 100000", "pods/one/cpu.max": "200000 50000"},
        4.0,
    ),
    "v2, the narrowest": (
        "0::/pods/one\n",
        {"pods/one/cpu.max": "300000 100000", "pods/cpu.max": "200000 100000"},
        2.0,
    ),
    "v2, the host's path": ("0::/docker/abc\n", {"cpu.max": "50000 100000"}, 0.5),
    "v1": (
        "4:memory:/\n3:cpu,cpuacct:/docker/abc\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    "v1, no limit": (
        "1:cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "not the sets of cores": (
        "3:cpuset:/\n",
        {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "nonsense": ("0::/\nx\n::\n", {"cpu.max": "1 0"}, math.inf),
    "a path out of the mount": (
        "0::/../elsewhere\n",
        {"cpu.max": "100000 100000", "../elsewhere/cpu.max": "50000 100000"},
        1.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_narrowest_limit_of_the_groups_around_a_process_holds(tmp_path, name):
    lines, files, expected = CASES[name]
    (tmp_path / "cgroup").write_text(lines, "utf-8")
    for place, text in files.items():
        path: Path = tmp_path / "mounted" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert cpu_limit(tmp_path / "cgroup", tmp_path / "mounted") == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cpu_limit(tmp_path / "cgroup", tmp_path) == math.inf


@pytest.mark.parametrize(
    ("limit", "expected"), [(math.inf, 4), (8.0, 4), (2.0, 2), (1.5, 2), (0.25, 1)]
)
def test_no_more_cores_are_used_than_are_paid_for(monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "cpu_limit", lambda: limit)
    assert usable_cores() == expected
