"""The hashes of a model's files, and what went wrong while they were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgeguard.errors import ModelError
from edgeguard.formats.hashes import combined, sha256
from edgeguard.inspection.types import File

T = TypeVar("T")


@dataclass(frozen=True)
class Hashes:
    """Hashes of files, by path. Each file is hashed once: a model's take seconds."""

    known: dict[Path, str] = field(default_factory=dict)

    def file(self, path: Path) -> File:
        """A file's name, size and hash. Raises ModelError, OSError."""
        if path not in self.known:
            self.known[path] = sha256(path)
        return File(path.name, path.stat().st_size, self.known[path])

    def files(self, paths: Iterable[Path]) -> tuple[File, ...]:
        """The same for several. Raises ModelError."""
        try:
            return tuple(self.file(path) for path in paths)
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read any more: {error.strerror or error}") from None


def together(files: Sequence[File]) -> str:
    """One file's own hash; of several, that of all by name, as hashes.sha256_of_all has it."""
    return files[0].sha256 if len(files) == 1 else combined({file.name: file.sha256 for file in files})


@dataclass(frozen=True)
class Problems:
    """What went wrong, each once, in order: the rest is shown all the same."""

    texts: list[str] = field(default_factory=list)

    def of(self, read: Callable[[], T]) -> T | None:
        """What `read` gives, None if it fails."""
        try:
            return read()
        except ModelError as error:
            if str(error) not in self.texts:
                self.texts.append(str(error))
            return None
