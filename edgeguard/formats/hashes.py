"""The hashes of files, which say what a score or a conversion was made with."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeguard.errors import ModelError


def sha256(path: Path) -> str:
    """Of the whole file, in hex. Raises ModelError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read to its end: {error.strerror or error}") from None


def sha256_of_all(paths: Sequence[Path]) -> str:
    """One file's own hash; of several, the hash of what `sha256sum` would print for them, by name."""
    if len(paths) == 1:
        return sha256(paths[0])
    return combined({path.name: sha256(path) for path in paths})


def combined(hashes: Mapping[str, str]) -> str:
    """The hash of several files, by name, from the hash of each."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Digest:
    """sha256 of a model's files, computed beside its loading: hashing gigabytes takes seconds."""

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
            self._hex = sha256_of_all(self._paths)
        except ModelError as error:
            self._error = error
