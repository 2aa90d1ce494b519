"""Files as streams of UTF-8: opened, decompressed and decoded by what they hold, never read as a whole."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import lzma
import os
import re
import select
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.values import MAX_RECORD, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 64 * 1024

_UTF8_BOM = b"\xef\xbb\xbf"
_BOMS = {  # in this order: UTF-32's little-endian one begins as UTF-16's
    _UTF8_BOM: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CLOSED = "it is closed, there is nothing to read; name a file, or send something through a pipe"
_PARQUET = b"PAR1"  # binary: not to be decoded


class Line(NamedTuple):
    """One physical line with its end. `data` is None where it is too long; `quotes` counts its `"`."""

    number: int
    data: bytes | None
    quotes: int

    @property
    def blank(self) -> bool:
        """Whether nothing but white space stands on it."""
        return self.data is not None and not self.data.strip()


@dataclass(frozen=True)
class Opened:
    """A file that is being read.

    stream    its text as UTF-8 without a BOM; Parquet as it is
    head      the stream's first bytes, at least up to the first that is no white space
    where     the file's name, as messages show it
    ending    of the name, in lower case, without that of a compression: ".csv"
    encoding  what the text was written in
    plain     the source itself, where it can be sought and is not compressed
    """

    stream: BinaryIO
    head: bytes
    where: str
    ending: str
    encoding: str
    plain: BinaryIO | None

    @property
    def is_parquet(self) -> bool:
        """Whether it begins as Parquet does."""
        return self.head.startswith(_PARQUET)


@contextmanager
def opened(source: str | Path | BinaryIO, *, encoding: str | None = None) -> Iterator[Opened]:
    """A path, "-" for stdin, or an open binary stream, which is left open.

    encoding  of text without a byte order mark, as Python calls it; None: UTF-8

    Raises InputError, also while the stream is read, and ValueError for an encoding that Python has not.
    """
    if encoding is not None:
        check_encoding(encoding)
    with ExitStack() as stack:
        raw, where = _open_source(source, stack)
        plain = raw if raw.seekable() and raw.tell() == 0 else None
        stream, head = _peeked(_Checked(raw, where), stack)
        endings = [ending.lower() for ending in Path(where).suffixes]
        packing = next((one for one in _PACKINGS if re.match(one.magic, head)), None)
        if packing is not None:
            unpacked = stack.enter_context(packing.open(stream, where))
            stream, head = _peeked(_Unpacked(unpacked, where, packing), stack)
            plain = None
            if endings[-1:] == [packing.ending]:
                endings.pop()
        told = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
        written_in = codecs.lookup(told or encoding or "utf-8").name.removesuffix("-sig")
        if written_in != "utf-8" and not head.startswith(_PARQUET):
            stream, head = _peeked(_Decoded(stream, where, written_in), stack)
        if head.startswith(_UTF8_BOM):
            stream.read(len(_UTF8_BOM))
            head = head.removeprefix(_UTF8_BOM)
        yield Opened(stream, head, where, endings[-1] if endings else "", written_in, plain)


def check_encoding(name: str) -> None:
    """Raises ValueError for a name that Python knows no text encoding by."""
    try:
        "".encode(name)  # refuses what is no text encoding too, such as base64
    except LookupError:
        raise ValueError(f"encoding is {name!r}, expected one that Python has, such as cp1252 or utf-16") from None


def lines_of(stream: BinaryIO, *, limit: int = MAX_RECORD) -> Iterator[Line]:
    """The physical lines with their ends, never holding more than `limit` bytes of one."""
    number = 0
    while data := stream.readline(limit + 1):
        number += 1
        if len(data) <= limit:
            yield Line(number, data, data.count(b'"'))
            continue
        quotes = data.count(b'"')
        while data and not data.endswith(b"\n"):
            data = stream.readline(CHUNK)
            quotes += data.count(b'"')
        yield Line(number, None, quotes)


def decoded(data: bytes, what: str, encoding: str) -> str:
    """The text of a line, row or element. Raises RecordError where the bytes are none of that encoding."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_text(data, error.start, what, encoding) from None


def not_text(data: bytes, at: int, what: str, encoding: str) -> RecordError:
    """The error for bytes that are no text at `at`; it shows them as a person reads them, if only they can be read."""
    if encoding != "utf-8":
        n = len(data[:at].decode("utf-8")) + 1
        return RecordError(
            f"{what} is not {encoding} at character {n}; name the file's own encoding", kind="invalid_encoding"
        )
    text = data[max(0, at - 20) :].decode(likely := likely_encoding(data), "replace")
    return RecordError(
        f"{what} is not UTF-8: byte {at + 1} is {data[at]:#04x}; in {likely} it reads {shown(text.strip())}; "
        "name the file's encoding, or convert it to UTF-8",
        kind="invalid_utf8",
        encoding=likely,
    )


def likely_encoding(data: bytes) -> str:
    """What text that is not UTF-8 is written in, as a rule."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"  # which knows every byte
    return "cp1252"


# ---------------------------------------------------------------- layers of a stream


def _open_source(source: str | Path | BinaryIO, stack: ExitStack) -> tuple[BinaryIO, str]:
    """An open stream, closed by `stack` if opened here, and its name. Raises InputError."""
    if not isinstance(source, str | Path):
        name = getattr(source, "name", None)
        return source, printable(name) if isinstance(name, str) else "<stdin>"
    if str(source) == "-":
        if sys.stdin is None:
            raise InputError(f"<stdin>: {_CLOSED}")
        return sys.stdin.buffer, "<stdin>"
    where = printable(str(source))
    try:
        return stack.enter_context(open(source, "rb")), where
    except FileNotFoundError:
        raise InputError(f"{where}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{where}: is a directory; give one of its files") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be opened ({reason}); check the path and its permissions") from None


def _does_not_wait(stream: Any) -> bool:
    """Whether reads of a pipe that is empty for now give nothing at once."""
    try:
        return not os.get_blocking(stream.fileno())
    except (AttributeError, OSError, ValueError):  # no file; Windows before Python 3.12
        return False


class _Checked(RawIOBase):
    """A stream's bytes as they come, with every failure to read turned into an InputError.

    Reads no more than one underlying read gives, so lines that trickle through a pipe are passed on at once.
    """

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, stream: Any, where: str) -> None:
        if _does_not_wait(stream):
            stream = getattr(stream, "raw", stream)  # a buffer takes "nothing yet" for the end
        self._stream, self._read = stream, getattr(stream, "read1", stream.read)
        self._where = where
        self.head = b""  # bytes to give first

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self.head[: len(view)] or self._next(len(view))
        self.head = self.head[len(data) :]
        view[: len(data)] = data
        return len(data)

    def _next(self, n: int) -> bytes:
        try:
            while (data := self._read(n)) is None:  # somebody has told the pipe not to wait: then we do
                select.select([self._stream], [], [])
        except self.failures as error:
            raise InputError(self._reason(error)) from None
        read: bytes = data
        return read

    def _reason(self, error: Exception) -> str:
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            return f"{self._where}: {_CLOSED}"
        return f"{self._where}: reading failed ({error}); check the file and its disk"


class _Unpacked(_Checked):
    """What a compressed stream holds."""

    def __init__(self, stream: Any, where: str, packing: _Packing) -> None:
        super().__init__(stream, where)
        self.failures = (OSError, EOFError, *packing.failures())
        self._packing = packing

    def _reason(self, error: Exception) -> str:
        return (
            f"{self._where}: the {self._packing.name} data is broken or cut short ({error}); "
            f"test it with {self._packing.name} -t, and copy or compress it again"
        )


class _Decoded(_Checked):
    """Text in another encoding, as UTF-8. A byte that is no text goes through, and spoils its own record only."""

    def __init__(self, stream: BinaryIO, where: str, encoding: str) -> None:
        super().__init__(stream, where)
        self._encoding = encoding
        # A lone half of a UTF-16 pair is a surrogate in itself; other bytes that are no text become surrogates.
        self._errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(encoding)(self._errors)
        self._rest = b""

    def _next(self, n: int) -> bytes:
        while not self._rest:
            data = super()._next(CHUNK)
            try:
                text = self._decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._where}: is not {self._encoding} ({error.reason}); name its own encoding"
                ) from None
            self._rest = text.encode("utf-8", self._errors)
            if not data:
                break
        data, self._rest = self._rest[:n], self._rest[n:]
        return data


def _peeked(raw: _Checked, stack: ExitStack) -> tuple[BinaryIO, bytes]:
    """A buffered stream, and its first bytes, up to the first one that is no white space."""
    head = b""
    while len(head) < CHUNK and (len(head) < 6 or not head.removeprefix(_UTF8_BOM).strip()):
        more = raw.read(CHUNK)
        if not more:
            break
        head += more
    raw.head = head
    return stack.enter_context(BufferedReader(raw, CHUNK)), head


# ---------------------------------------------------------------- compressions


@dataclass(frozen=True)
class _Packing:
    """A compression: its name, which is its command's too, a pattern of its beginning, and its module's errors."""

    name: str
    magic: bytes
    ending: str
    open: Callable[[BinaryIO, str], Any]
    failures: Callable[[], tuple[type[Exception], ...]] = tuple


def _open_zstd(stream: BinaryIO, where: str) -> Any:
    try:
        return _zstd().ZstdFile(stream)
    except ImportError:
        raise InputError(f"{where}: reading zstd needs backports.zstd; pip install 'edgeguard[zstd]'") from None


def _zstd() -> Any:
    """The standard library's module, or before Python 3.14 the same one from PyPI."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


# The readers close what these open, with the stack that they are entered in.
_PACKINGS = (
    _Packing("gzip", rb"\x1f\x8b", ".gz", lambda stream, _: gzip.GzipFile(fileobj=stream), lambda: (zlib.error,)),
    _Packing("bzip2", rb"BZh[1-9][1\x17]", ".bz2", lambda stream, _: bz2.BZ2File(stream)),
    _Packing("xz", rb"\xfd7zXZ\0", ".xz", lambda stream, _: lzma.LZMAFile(stream), lambda: (lzma.LZMAError,)),  # noqa: SIM115
    _Packing("zstd", rb"\x28\xb5\x2f\xfd", ".zst", _open_zstd, lambda: (_zstd().ZstdError,)),
)
