"""What this process may use of the machine: cores and memory, by what the system and a container allow."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def available_cores(root: Path = _ROOT) -> int:
    """Cores this process may use: those it may run on (`taskset`), and no more than a container's share of time is.

    A share of 2.5 cores is 2: threads that wait for one that has been stopped do nothing. At least 1.

    root  where /proc and /sys are
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    shares = [share for share in map(_share, _groups(root, "cpu")) if share is not None]
    return max(1, min([cores, *map(int, shares)]))


def free_memory(root: Path = _ROOT) -> int | None:
    """Bytes that processes can still take without swapping, by the machine and by the container; None: not known."""
    found = [rest for rest in map(_room, _groups(root, "memory")) if rest is not None]
    with suppress(OSError, ValueError, IndexError):
        said = (root / "proc/meminfo").read_text(encoding="utf-8")
        found.append(int(said.split("MemAvailable:")[1].split()[0]) << 10)
    return max(0, min(found)) if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own up: a limit holds for all below it.

    Version 2 has one tree, version 1 one for each controller; on some machines both are mounted. In a container
    the path may be the host's, of which only the top is there to see.
    """
    top = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, names, path = line.split(":", 2)
            if not names:
                trees = [top, top / "unified"]
            elif controller in names.split(","):
                trees = [top / names, top / controller]
            else:
                continue
            below = Path(path.lstrip("/"))
            for tree in trees:
                for folder in (below, *below.parents):
                    if ".." not in folder.parts:
                        yield tree / folder


def _share(group: Path) -> float | None:
    """Cores' worth of time that a group may have; None without a limit."""
    found = _words(group / "cpu.max") or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    with suppress(ValueError):
        quota, period = (int(word) for word in found)
        return quota / period if quota > 0 and period > 0 else None
    return None  # "max", or nothing to read


def _room(group: Path) -> int | None:
    """Bytes that a group may still take; None without a limit. Cached files make room when it is needed."""
    for limit, taken, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        words = _words(group / "memory.stat")
        files = dict(zip(words[::2], words[1::2], strict=False)).get(cached, "0")
        with suppress(ValueError, IndexError):
            return int(_words(group / limit)[0]) - int(_words(group / taken)[0]) + int(files)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []


def processor(root: Path = _ROOT) -> str:
    """What the processor is called; "" where the system does not say. `root`: where /proc is."""
    with suppress(OSError, UnicodeDecodeError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model"):
                return " ".join(value.split())
    return platform.processor()
