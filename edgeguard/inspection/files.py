"""The hashes of a model's files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeguard.errors import ModelError
from edgeguard.formats.hashes import combined, sha256
from edgeguard.inspection.types import File


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
