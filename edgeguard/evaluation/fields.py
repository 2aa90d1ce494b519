"""The fields of a file's records as they are, one mapping a record, in order: JSONL and CSV, gzip too."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeguard.errors import InputError


def read_fields(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """(line, fields) of each record; None for one that is no object. Raises InputError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as data:
            text = io.TextIOWrapper(data, encoding="utf-8-sig", errors="replace", newline="")
            yield from _fields(text, path)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _fields(text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        reader = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",")
        yield from ((reader.line_num, row) for row in reader)
        return
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield number, value if isinstance(value, dict) else None
