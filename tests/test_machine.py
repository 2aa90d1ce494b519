"""Cores and memory that a process may use, in containers of both kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeguard.machine import available_cores, free_memory

V1 = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n"
GIB = 1 << 30


def machine(root: Path, cgroup: str, files: dict[str, object], available: int = 64) -> Path:
    """A /proc and a /sys; `available`: GiB of the machine's memory."""
    proc, sys = root / "proc", root / "sys/fs/cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "meminfo").write_text(f"MemTotal: {available << 21} kB\nMemAvailable: {available << 20} kB\n")
    for name, content in files.items():
        (sys / name).parent.mkdir(parents=True, exist_ok=True)
        (sys / name).write_text(f"{content}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/host/path/of/a/container\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/../outside\n", {"cpu.max": "400000 100000"}, 4),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": 150000, "cpu,cpuacct/docker/abc/cpu.cfs_period_us": 50000}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": 200000, "cpu/cpu.cfs_period_us": 100000}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 8),
        ("1:cpu:/\n0::/x\n", {"unified/x/cpu.max": "100000 100000"}, 1),
        ("no lines of a cgroup", {"cpu.max": "100000 100000"}, 8),
        ("0::/\n", {"cpu.max": "damaged"}, 8),
    ],
)
def test_a_container_s_share_of_the_cores_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, object], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert available_cores(machine(tmp_path, cgroup, files)) == cores


def test_the_cores_it_may_run_on_are_counted_where_there_are_no_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert available_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("cgroup", "files", "gib"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": 5 * GIB}, 64),
        ("0::/\n", {"memory.max": 4 * GIB, "memory.current": GIB}, 3),
        (
            "0::/\n",
            {"memory.max": 4 * GIB, "memory.current": 3 * GIB, "memory.stat": f"anon 1\ninactive_file {GIB}"},
            2,
        ),
        ("0::/a\n", {"a/memory.max": 8 * GIB, "a/memory.current": 0, "memory.max": 2 * GIB, "memory.current": GIB}, 1),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": GIB, "memory/docker/abc/memory.usage_in_bytes": 2 * GIB}, 0),
        (V1, {"memory/memory.limit_in_bytes": (1 << 63) - 4096, "memory/memory.usage_in_bytes": GIB}, 64),
    ],
)
def test_free_memory_is_the_container_s(tmp_path: Path, cgroup: str, files: dict[str, object], gib: int) -> None:
    assert free_memory(machine(tmp_path, cgroup, files)) == gib * GIB


def test_free_memory_is_not_known_without_proc(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
