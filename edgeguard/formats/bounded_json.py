"""JSON files of strangers: one object each, in UTF-8, and no larger than such files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeguard.errors import EdgeguardError, ModelError, printable, shortened, shown

MAX_BYTES = 16 << 20  # of a configuration
MAX_TOKENIZER = 64 << 20  # bytes of a tokenizer.json; Gemma's, the largest known, has 33 MB

MAX_VALUES = 4 << 20  # commas, [ and { of a text; Gemma's tokenizer.json, the largest known, has two million

DOWNLOAD = "download or convert the model again"


def read_object(
    path: Path, *, max_bytes: int = MAX_BYTES, cure: str = DOWNLOAD, error: type[EdgeguardError] = ModelError
) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, whose message ends with `cure`, also where there is no such file."""
    text = read_text(path, max_bytes=max_bytes, cure=cure, error=error)
    return parse_object(text, str(path), cure=cure, error=error)


def find_object(path: Path, *, max_bytes: int = MAX_BYTES, cure: str = DOWNLOAD) -> dict[str, Any] | None:
    """The same, but None where there is no such file. Raises ModelError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        pass  # reading says what is wrong
    return read_object(path, max_bytes=max_bytes, cure=cure)


def loose_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any] | None:
    """The same, but None where there is none that can be read: for files that somebody else complains about."""
    try:
        return read_object(path, max_bytes=max_bytes)
    except ModelError:
        return None


def parse_object(
    text: str | bytes, source: str, *, cure: str = DOWNLOAD, error: type[EdgeguardError] = ModelError
) -> dict[str, Any]:
    """The JSON object that a text is; `source` says in the message whose it is. Raises `error`."""
    n = sum(map(text.count, ",[{") if isinstance(text, str) else map(text.count, (b",", b"[", b"{")))
    if n > MAX_VALUES:
        raise error(f"{source} holds {n} values, {MAX_VALUES} are more than any known file has; {cure}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{source} is not JSON: {shortened(printable(str(reason)), 200)}; {cure}") from None
    if not isinstance(value, dict):
        raise error(f"{source} is no JSON object but {shown(value)}; {cure}")
    return value


def read_text(
    path: Path, *, max_bytes: int = MAX_BYTES, cure: str = DOWNLOAD, error: type[EdgeguardError] = ModelError
) -> str:
    """A text file, bounded in the same way. Raises `error`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}; {cure}") from None
    if len(data) > max_bytes:
        raise error(f"{path} is larger than {max_bytes >> 20} MiB, which makes no sense for such a file; {cure}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 at byte {reason.start}; {cure}") from None


def table(value: object) -> dict[str, Any]:
    """A member that should be an object; empty where it is none."""
    return value if isinstance(value, dict) else {}


def member(
    source: Path, values: Mapping[str, Any], key: str, kind: type[Any], default: Any = None, *, cure: str = DOWNLOAD
) -> Any:
    """A member that must be an object or a list; `default` where it is missing. Raises ModelError."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind):
        expected = {"dict": "an object", "list": "a list"}[kind.__name__]
        raise ModelError(f"{source}: {key} is {shown(value)}, {expected} is needed; {cure}")
    return value
