"""Where files are: a path, or a URI that pyarrow or fsspec knows (s3://, gs://, hdfs://, …)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgeguard.errors import EdgeguardError, InputError, printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True)
class Place:
    """A file or folder on a file system of pyarrow.

    path   as the file system wants it
    shown  as the user wrote it, for messages
    size   bytes, of a file that was listed
    """

    filesystem: Any
    path: str
    shown: str
    size: int | None = None

    @property
    def kind(self) -> str:
        """ "file", "folder", or "" where there is nothing. Raises OSError."""
        from pyarrow.fs import FileType

        found = self.filesystem.get_file_info(self.path).type
        return {FileType.File: "file", FileType.Directory: "folder"}.get(found, "")

    def beside(self, ending: str) -> Place:
        """The place whose name has this ending besides."""
        return replace(self, path=self.path + ending, shown=self.shown + ending, size=None)

    def within(self, name: str) -> Place:
        """A place in this folder."""
        return replace(self, path=f"{self.path}/{name}", shown=f"{self.shown}/{name}", size=None)

    def files(self) -> list[Place]:
        """The files in this folder and those below, by path; none where it is not there. Raises OSError.

        What begins with a dot or an underscore is left out, as readers of such folders do.
        """
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.path, recursive=True, allow_not_found=True)
        found = (info for info in self.filesystem.get_file_info(selector) if info.type == FileType.File)
        inside = {info.path[len(self.path) :].lstrip("/"): info for info in found}
        return [
            replace(self, path=info.path, shown=f"{self.shown}/{name}", size=info.size)
            for name, info in sorted(inside.items())
            if not any(part.startswith((".", "_")) for part in name.split("/"))
        ]

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, to be read, with its name. Raises OSError."""
        with self.filesystem.open_input_file(self.path) as file:
            yield _Named(file, self.shown)  # type: ignore[misc]  # it reads, which is all that is asked of it

    def read(self) -> bytes:
        """What a small file holds. Raises OSError."""
        with self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    def write(self, data: bytes) -> None:
        """Make a small file, whole or not at all. Raises OSError."""
        with self.filesystem.open_output_stream(f"{self.path}.new") as file:
            file.write(data)
        self.filesystem.move(f"{self.path}.new", self.path)


def place_of(text: str | Path) -> Place:
    """The place that a path or a URI names. Raises EdgeguardError for a URI that cannot be understood."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, LocalFileSystem

    given = str(text)
    if "://" not in given:
        return Place(LocalFileSystem(), os.path.abspath(given), given.rstrip("/") or given)
    try:
        filesystem, path = FileSystem.from_uri(given)
    except (pa.ArrowException, OSError) as error:
        filesystem, path = _by_fsspec(given, error)
    return Place(filesystem, path.rstrip("/"), given.rstrip("/"))


def _by_fsspec(uri: str, why: Exception) -> tuple[Any, str]:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    handler: Any = FSSpecHandler

    try:
        import fsspec

        found, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise EdgeguardError(
            f"{printable(uri)}: cannot be reached ({printable(str(why))}; {printable(str(error))}); "
            "expected a path, or a URI that pyarrow or fsspec knows, such as s3://bucket/folder"
        ) from None
    return PyFileSystem(handler(found)), str(path)


def input_files(source: str | Path) -> list[Place]:
    """The file that `source` names, or the files of that folder, by path. Raises InputError."""
    place = place_of(source)
    try:
        if place.kind == "file":
            info = place.filesystem.get_file_info(place.path)
            return [replace(place, size=info.size)]
        found = place.files()
    except OSError as error:
        raise InputError(f"{printable(place.shown)}: cannot be listed ({error}); check its name and rights") from None
    if not found:
        raise InputError(f"{printable(place.shown)}: there is no such file, nor a folder with files; check the path")
    return found


class _Named(io.RawIOBase):
    """A file of pyarrow as Python's streams are, with its name, by which messages call it."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self.name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())
