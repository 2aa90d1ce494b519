"""A Ray to work on: one that is there, or one of our own on this machine, which ends with the work."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgeguard.errors import EdgeguardError, printable
from edgeguard.ray.package import ray_data

SPARE = 2  # CPUs, as Ray counts them, for what reads, writes and filters: it would wait for actors for ever
_STORE = 2**29  # bytes of Ray's object store on this machine: blocks are small, and few are under way


@contextmanager
def cluster(address: str | None, *, cpus: int) -> Iterator[Any]:
    """The package `ray`, connected: to the Ray of this address ("auto": as Ray finds it), or to one started here.

    A Ray that this process is connected to already is taken as it is. Raises EdgeguardError.

    cpus  of a Ray that is started: cores for actors
    """
    ray = ray_data()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own code writes to stderr
    folder = None
    try:
        try:
            with _stderr_away():
                if address is None:
                    folder = tempfile.mkdtemp(prefix="edgeguard-ray-", dir=_short_folder())
                    _start(ray, folder, cpus, quiet)
                else:
                    ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            what = "no Ray could be started here" if address is None else f"no Ray answers at {printable(address)}"
            raise EdgeguardError(f"{what}: {printable(str(error))[:300]}", kind="no_cluster") from None
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def actors_for(ray: Any, cpus_each: int) -> int:
    """As many actors as the cluster's CPUs are enough for, at least 1."""
    return max(1, (int(ray.cluster_resources().get("CPU", 0)) - SPARE) // cpus_each)


def cause_of(error: BaseException) -> EdgeguardError | None:
    """The error of ours that Ray carried here in its own."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, EdgeguardError) and not hasattr(found, "cause"):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return None


def _start(ray: Any, folder: str, cpus: int, quiet: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody, if it was not asked for
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of until then
    ray.init(
        address="local",
        num_cpus=cpus + SPARE,
        include_dashboard=False,
        object_store_memory=_STORE,
        _temp_dir=folder,
        **quiet,
    )


@contextmanager
def _stderr_away() -> Iterator[None]:
    """Ray's own code says on stderr that it was told to say nothing there. What is wrong comes as an exception."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _short_folder() -> str | None:
    """The names of sockets in it must not be longer than 107 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > 12 and os.path.isdir("/tmp") else None
