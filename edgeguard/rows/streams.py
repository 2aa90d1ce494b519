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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.values import MAX_RECORD, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 64 * 1024
MAX_RATIO = 100  # bytes that a compressed file may hold for each that it has; texts have some 3 to 10
FREE = 64 << 20  # bytes that any file may hold

_UTF8_BOM = b"\xef\xbb\xbf"
_BOMS = {  # in this order: UTF-32's little-endian one begins as UTF-16's
    _UTF8_BOM: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CLOSED = "it is closed, there is nothing to read; name a file, or send something through a pipe"
_IN_QUOTES = re.compile(rb'[^"]*+(?:""[^"]*+)*+')
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
def opened(
    source: str | Path | BinaryIO, *, encoding: str | None = None, max_ratio: int = MAX_RATIO
) -> Iterator[Opened]:
    """A path, "-" for stdin, or an open binary stream, which is left open.

    encoding   of text without a byte order mark, as Python calls it; None: UTF-8
    max_ratio  bytes that compressed data may hold for each of theirs, behind the first FREE; of Parquet inside of
               another compression, which goes to the disk, a tenth

    Raises InputError, also while the stream is read, and ValueError for an encoding that Python has not.
    """
    if encoding is not None:
        check_encoding(encoding)
    with ExitStack() as stack:
        raw, where = _open_source(source, stack)
        plain = raw if raw.seekable() and raw.tell() == 0 else None
        checked = _Checked(raw, where)
        stream, head = _peeked(checked, stack)
        endings = [ending.lower() for ending in Path(where).suffixes]
        packing = next((one for one in _PACKINGS if re.match(one.magic, head)), None)
        if packing is not None:
            unpacked = _Unpacked(stack.enter_context(packing.open(stream, where)), checked, packing, max_ratio)
            stream, head = _peeked(unpacked, stack)
            if head.startswith(_PARQUET):
                unpacked.max_ratio = max(2, max_ratio // 10)
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


def check_ratio(n_out: int, n_in: int, max_ratio: int, where: str) -> None:
    """Raises InputError where `n_in` bytes have become too many."""
    if n_out > max(FREE, max_ratio * n_in):
        raise InputError(
            f"{where}: holds more than {max_ratio} bytes for each of its own, {n_out >> 20} MiB so far; real records "
            "have some 10: if it is no trap, allow more",
            kind="unpacks_too_far",
        )


def check_encoding(name: str) -> None:
    """Raises ValueError for a name that Python knows no text encoding by."""
    try:
        "".encode(name)  # refuses what is no text encoding too, such as base64
    except LookupError:
        raise ValueError(f"encoding is {name!r}, expected one that Python has, such as cp1252 or utf-16") from None


class Lines:
    """The physical lines of a stream with their ends, never holding more than `limit` bytes of one.

    Blank lines are counted and passed over, many at a time: a file may hold nothing else, by the hundred million.
    """

    def __init__(self, stream: BinaryIO, *, limit: int = MAX_RECORD) -> None:
        self._stream: Any = stream if hasattr(stream, "peek") else BufferedReader(cast(RawIOBase, stream), CHUNK)
        self._limit, self._number = limit, 0

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        while data := self._stream.readline(CHUNK):
            if data.endswith(b"\n") and len(data) <= self._limit:  # nearly all
                self._number += 1
                if not data.isspace():
                    return Line(self._number, data, data.count(b'"'))
                self._skip_blank()
            else:
                line = self._gathered(chain((data,), self._rest_of_line(data)))
                assert line is not None
                return line
        raise StopIteration

    def _skip_blank(self) -> None:
        """Further blank lines that are in the buffer."""
        while chunk := self._stream.peek(1):
            n_white = len(chunk) - len(chunk.lstrip())
            end = chunk.rfind(b"\n", 0, n_white) + 1
            self._number += self._stream.read(end).count(b"\n")
            if not end:
                return

    def quoted(self) -> Line | None:
        """From inside of a quoted cell through the end of the line where it is closed, as one; None at the end."""
        return self._gathered(self._through_cell())

    def _gathered(self, pieces: Iterator[bytes]) -> Line | None:
        number, kept, size, quotes, n_ends, data = self._number + 1, [], 0, 0, 0, b""
        for data in pieces:
            size += len(data)
            quotes += data.count(b'"')
            n_ends += data.count(b"\n")
            kept.append(data)
            if size > self._limit:
                kept = []
        if not size:
            return None
        self._number += n_ends + (not data.endswith(b"\n"))
        return Line(number, b"".join(kept) if size <= self._limit else None, quotes)

    def _rest_of_line(self, data: bytes) -> Iterator[bytes]:
        """What follows `data` on its line."""
        while not data.endswith(b"\n") and (data := self._stream.readline(CHUNK)):
            yield data

    def _through_cell(self) -> Iterator[bytes]:
        """What is inside of the quotes, the closing quote, and the rest of its line."""
        data = self._stream.readline(CHUNK)  # as a rule it is closed there
        yield data
        end = _end_in_quotes(data)
        closed, half = end < len(data) - 1, end == len(data) - 1
        while not closed and (chunk := self._stream.peek(1)):
            if half and chunk[:1] != b'"':  # the quote was the last byte: it closes, but for another one behind it
                data = b""
                break
            end = _end_in_quotes(chunk, int(half))
            closed, half = end < len(chunk) - 1, end == len(chunk) - 1
            data = self._stream.read(min(end + 1, len(chunk)))
            yield data
        yield from self._rest_of_line(data)


def _end_in_quotes(data: bytes, begin: int = 0) -> int:
    """Where what is text in a quoted cell ends: at its closing quote, or at the end."""
    found = _IN_QUOTES.match(data, begin)
    assert found is not None  # the pattern matches the empty string
    return found.end()


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
        self.where = where
        self.head = b""  # bytes to give first
        self.n_read = 0

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
        self.n_read += len(data)
        read: bytes = data
        return read

    def _reason(self, error: Exception) -> str:
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            return f"{self.where}: {_CLOSED}"
        return f"{self.where}: reading failed ({error}); check the file and its disk"


class _Unpacked(_Checked):
    """What a compressed stream holds."""

    def __init__(self, stream: Any, source: _Checked, packing: _Packing, max_ratio: int) -> None:
        super().__init__(stream, source.where)
        self.failures = (OSError, EOFError, *packing.failures())
        self.max_ratio = max_ratio
        self._source, self._packing = source, packing

    def _next(self, n: int) -> bytes:
        data = super()._next(n)
        check_ratio(self.n_read, self._source.n_read, self.max_ratio, self.where)
        return data

    def _reason(self, error: Exception) -> str:
        return (
            f"{self.where}: the {self._packing.name} data is broken or cut short ({error}); "
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
                    f"{self.where}: is not {self._encoding} ({error.reason}); name its own encoding"
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
