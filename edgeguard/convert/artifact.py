"""How an output comes to be: whole and with its provenance, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeguard.errors import OutputError
from edgeguard.files import target
from edgeguard.formats.hashes import sha256_of_all
from edgeguard.formats.manifest import IN_FOLDER, Origin, Source
from edgeguard.version import __version__


def source(role: str, path: Path) -> Source:
    """A file, or all the files of a folder. Raises ModelError."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    n_bytes = sum(p.stat().st_size for p in files)
    return Source(role, sha256_of_all(files), path.resolve().name, n_bytes)


def origin(to: str, sources: Sequence[Source], options: Mapping[str, str], packages: Sequence[str]) -> Origin:
    """What an output is made from, with the versions of the packages that are installed."""
    tools = {"edgeguard": __version__, **{p: v for p in sorted(packages) if (v := _version(p))}}
    return Origin(to, tuple(sources), dict(sorted(options.items())), tools)


@contextmanager
def staged(out: Path, *, model: Path, folder: bool, overwrite: bool, n_bytes: int) -> Iterator[Path]:
    """A hidden folder beside `out` to write into; it is removed whatever happens, so move things out of it.

    model    what is read, which must not be written over
    folder   whether `out` will be one
    n_bytes  room that will be needed, held against the disk's

    Raises OutputError.
    """
    _refuse_existing(out, model, folder, overwrite)
    parent = target(out).absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{out} cannot be written: there is no folder {parent}; make it first")
    free = shutil.disk_usage(parent).free
    if free < n_bytes:
        raise OutputError(
            f"{out} needs about {_size(n_bytes)}, the disk has {_size(free)} free; make room, or name another output"
        )
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from None
    try:
        yield stage
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{out}: the disk became full; nothing was left behind") from None
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let in one process at a time, by a lock on the file `path` that goes with the process, however that ends.

    Where the system has no such locks, all are let in: what they make is put in place in one step. Raises OutputError
    where the file cannot be made.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    with file:
        _lock(file.fileno())
        yield


def put(made: Path, out: Path) -> None:
    """Move a finished file or folder to its place, in one step; another conversion's result gives way.

    Links are followed: what they lead to gives way.
    """
    out = target(out)
    if made.is_dir():
        os.chmod(made, 0o777 & ~_umask())  # mkdtemp's own is for this user alone
        if out.is_dir():
            old = made.with_name("replaced")
            out.rename(old)
    for path in [made, *made.iterdir()] if made.is_dir() else [made]:
        _sync(path)
    made.replace(out)


def _refuse_existing(out: Path, model: Path, folder: bool, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.samefile(model):
        raise OutputError(f"{out} is what is read; name another output")
    if out.is_dir() != folder:
        is_, wanted = ("folder", "file") if out.is_dir() else ("file", "folder")
        raise OutputError(f"{out} is a {is_}, and the result will be a {wanted}; name another output")
    if not overwrite:
        raise OutputError(f"{out} exists already; name another output, or let it be replaced", kind="conversion_exists")
    if out.is_dir() and not (out / IN_FOLDER).is_file() and any(out.iterdir()):
        raise OutputError(f"{out} is a folder that no conversion made (it has no {IN_FOLDER}); name another output")


def _sync(path: Path) -> None:
    """To the disk, before the name says that it is there.

    Windows flushes only what is open for writing, and opens no folder: NTFS keeps a journal of names itself.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        with suppress(OSError):  # it gives up after ten seconds; all are let in then
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
