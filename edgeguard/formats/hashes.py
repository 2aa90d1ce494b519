"""The hashes of files, which say what a score or a conversion was made with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError

WORTH_KEEPING = 1 << 24  # bytes; less is hashed in hundredths of a second
_SETTLED = 2.0  # seconds that a file must not have changed for, as clocks of file systems tick coarsely
_ENTRY = 512  # bytes that a kept hash has at most


def sha256(path: Path) -> str:
    """Of the whole file, in hex. Raises ModelError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read to its end: {error.strerror or error}") from None


def known_sha256(path: Path) -> str:
    """As `sha256`, from the cache folder where this very file was hashed before and has not changed since.

    "Not changed" is what the system says: the same file by device and number, of the same size, the times of its last
    change of content and of status the same to the nanosecond. The second cannot be set by a program, so a file that
    was altered and given its old date back is hashed again. Systems that keep no such time hash each time. Who wants
    the bytes themselves compared calls `sha256`. Raises ModelError.
    """
    if os.name != "posix":
        return sha256(path)
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            if before.st_size < WORTH_KEEPING:
                return hashlib.file_digest(file, "sha256").hexdigest()
            entry = cache_folder() / "hashes" / f"{before.st_dev:x}-{before.st_ino:x}.json"
            state = [before.st_size, before.st_mtime_ns, before.st_ctime_ns]
            if (kept := _kept(entry, state)) is not None:
                return kept
            began = time.time()
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ModelError(f"{path} cannot be read to its end: {error.strerror or error}") from None
    if state == [after.st_size, after.st_mtime_ns, after.st_ctime_ns] and began - after.st_ctime > _SETTLED:
        _keep(entry, state, found)
    return found


def _kept(entry: Path, state: list[int]) -> str | None:
    """The hash in a file of the cache folder, if it is one, of a file in this state."""
    with suppress(OSError, ValueError, TypeError):
        with entry.open("rb") as file:
            *found, digest = json.loads(file.read(_ENTRY))
        if found == state and re.fullmatch("[0-9a-f]{64}", digest):
            return str(digest)
    return None


def _keep(entry: Path, state: list[int], digest: str) -> None:
    """Write one, in one step. A cache folder that takes nothing is no error."""
    part = entry.with_name(f"{entry.name}.{os.getpid()}-{threading.get_ident()}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps([*state, digest]))
            part.replace(entry)
        finally:
            part.unlink(missing_ok=True)


def sha256_of_all(paths: Sequence[Path], of_one: Callable[[Path], str] = sha256) -> str:
    """One file's own hash; of several, the hash of what `sha256sum` would print for them, by name."""
    if len(paths) == 1:
        return of_one(paths[0])
    return combined({path.name: of_one(path) for path in paths})


def combined(hashes: Mapping[str, str]) -> str:
    """The hash of several files, by name, from the hash of each."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Digest:
    """sha256 of a model's files, as `known_sha256` has it, beside its loading: hashing gigabytes takes seconds."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._hex = tuple(paths), ""
        self._error: ModelError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hex(self) -> str:
        """The hash, as soon as it is known. Raises ModelError."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hex

    def _run(self) -> None:
        try:
            self._hex = sha256_of_all(self._paths, known_sha256)
        except ModelError as error:
            self._error = error
