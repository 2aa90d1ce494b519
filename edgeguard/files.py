"""Files that are written: which ones they really are, who may write them, and all at once or not at all."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from edgeguard.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def target(path: Path) -> Path:
    """What is written where `path` is named: links are followed, one whose end is not there too.

    A device or a pipe keeps the name that it was given: /dev/stdout leads to names that cannot be opened.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = stat.S_IFREG
    return Path(os.path.realpath(path)) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else path


def check_not_read(outputs: Iterable[Path], read: Iterable[tuple[str, str | Path]]) -> None:
    """Raises OutputError where an output is a file that is read, by whatever name: a link of either kind, or stdin.

    read  (what it is, where): a file, a folder whose files are meant, or "-" for stdin; what is not there is passed
          over
    """
    there = {_identity(output): output for output in outputs}
    there.pop(None, None)
    for what, source in read:
        if (found := there.get(_stdin()) if str(source) == "-" else _one_of(there, Path(source))) is not None:
            shown = "stdin" if str(source) == "-" else source
            raise OutputError(f"{found} is {what} ({shown}), which would be destroyed; name another output")


def _one_of(there: dict[tuple[int, int] | None, Path], source: Path) -> Path | None:
    try:
        inside = [source, *source.iterdir()] if source.is_dir() else [source]
    except (OSError, ValueError):
        return None
    found = (there.get(one) for path in inside if (one := _identity(path)) is not None)
    return next((path for path in found if path is not None), None)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and file number of a regular file: two names of one file have the same."""
    try:
        return _numbers(path.stat())
    except (OSError, ValueError):  # it is not there, or is no name that a file can have
        return None


def _stdin() -> tuple[int, int] | None:
    try:
        return _numbers(os.fstat(0))
    except OSError:
        return None


def _numbers(found: os.stat_result) -> tuple[int, int] | None:
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) and found.st_ino else None


# ---------------------------------------------------------------- one writer


def locked(path: Path) -> tuple[int, bool]:
    """The file, made if need be, open for reading and writing and this process's alone; and whether it was made.

    The lock ends with the descriptor, so with the process, however it ends. Raises OSError, and BlockingIOError where
    another process has it. A link of that name is not followed.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        made = False
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor, made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                continue
        try:
            lock(descriptor, path)
            here = os.fstat(descriptor)
            with suppress(FileNotFoundError):  # who had it may have removed it in the meantime
                if os.path.samestat(here, os.lstat(path)):
                    return descriptor, made
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def lock(descriptor: int, path: Path) -> None:
    """Take an open file for this process alone. Raises BlockingIOError where another one has it.

    Where the file system has no locks, as some network ones, that is told in the log, and the file is taken.
    """
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise BlockingIOError(error.errno, "another process has it") from None
        logging.getLogger("edgeguard").warning(
            "%s: the file system has no locks; let no other process write there", path
        )


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        here = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # nobody may read what is locked there: a place behind the end
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, here, os.SEEK_SET)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------- all at once


def write_whole(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Give a file this content at once, or leave all as it was. Links are followed; a device is written as it is.

    overwrite  replace a file that is there; False: FileExistsError

    Raises OSError.
    """
    path = target(path)
    if path.exists() and not path.is_file():
        with open(path, "wb", buffering=0) as device:
            _write_all(device.fileno(), data)
        return
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    half = hidden_beside(path, secrets.token_hex(8), "half")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            _write_all(descriptor, data)
            with suppress(FileNotFoundError):
                os.chmod(half, stat.S_IMODE(path.stat().st_mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(half, path)
    except BaseException:
        with suppress(OSError):
            half.unlink()
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def hidden_beside(path: Path, *words: str) -> Path:
    """The name of a file that belongs to `path`: `.NAME.WORD…`; a NAME that leaves no room is shortened."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        import hashlib

        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(".".join(("", name, *words)))


_LONGEST_NAME = 200  # bytes; most file systems have 255


def reason(error: OSError) -> tuple[str, str]:
    """What an error at writing is, and what to do: ("disk full", "free space")."""
    if error.errno in _FULL:
        return "disk full", "free space"
    return f"writing failed ({error.strerror or error})", "repair that"
