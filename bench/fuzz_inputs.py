"""Damaged inputs: the kinds of bench/fuzz.py that hold records. Each is read, and its rows are written and resumed.

No line is lost or doubled: there are as many rows as a plain count of the file says, in the file's order, and an output
that is written in two runs has them all.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Draw, Kind, Wrong

from edgeguard.rows.readers import count_records, read_records
from edgeguard.rows.record import Failure, Record
from edgeguard.rows.results import read_rows
from edgeguard.rows.run import digest_of
from edgeguard.rows.writer import open_writer

LINES = 20  # of a file
_TEXTS = [
    *("How do I pick a lock?", 'a, "quoted"\nsecond line', "Ünïcödé 漢字 \U0001f600", "=1+1", "a\tb;c|d", "<|im_end|>"),
    *(" x ", "\u2028", "\u202e", "\ufeff", "é", "x" * 5000, "\r\n", "'", "{}", "[", "null", "0"),
]
_JUNK = [
    *(
        b"",
        b"\0",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n\n",
        b'"',
        b'""',
        b"'",
        b"\\",
        b",",
        b";",
        b"\t",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\x1a", b"null", b"NaN", b"1e999", b"-", b":"),
    *(b'"text"', b'"id": 1,', b'"messages": [', b"sep=;\n", b"[" * 3000, b'{"a":' * 3000, b" " * 70_000, b'"' * 999),
    *(b"PAR1", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\\ud800", b"\\u0000", b"\x85", b"\x0b"),
    *(b"9" * 5000, b"\x0c", b"]"),
]
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}


def _records(draw: Draw) -> list[dict[str, Any]]:
    return [_record(draw, i) for i in range(LINES)]


def _record(draw: Draw, i: int) -> dict[str, Any]:
    text, other = draw.choice(_TEXTS), draw.choice(_TEXTS)
    content: dict[str, Any] = draw.choice(
        [
            {"text": text},
            {"prompt": text, "response": other},
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": other}]},
            {"conversations": [{"from": "human", "value": text}]},
            {"messages": draw.choice([[], None, "x", [1], [{"role": "user"}], [{"role": "x", "content": text}]])},
            {"text": draw.choice([None, 1, [], {}, ""])},
            {},
        ]
    )
    return content | draw.choice([{}, {"id": i}, {"id": f"r{i}"}, {"id": 1}, {"id": draw.choice([None, [], 1.5, ""])}])


def _damaged(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([0, 1, 1, 2, 4, 9])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                changed[at:at] = draw.choice(_JUNK)
            case 2:
                del changed[at : at + draw.choice([1, 1, 5, 300])]
            case 3:
                other = draw.randrange(len(changed) + 1)
                changed[at:at] = changed[other : other + draw.choice([1, 30, 900])]
            case _:
                changed[at : at + 1] = draw.choice([b"\n", b'"', b",", b"\r"])
    return bytes(changed[: draw.randrange(len(changed) + 1)] if draw.random() < 0.1 else changed)


def _mutant(name: str, text_of: Callable[[Draw], bytes], draw: Draw, path: Path) -> Path:
    data = _damaged(draw, text_of(draw))
    if draw.random() < 0.15:
        with suppress(UnicodeDecodeError):
            data = data.decode("utf-8").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]), "replace")
    ending = draw.choice(["", "", "", "", ".gz", ".bz2", ".xz", ".zst"])
    data = _PACK[ending](data)
    if ending and draw.random() < 0.5:
        data = _damaged(draw, data)
    path = path.with_name(f"{path.name}.{name}{ending}")
    path.write_bytes(data)
    return path


def _jsonl(draw: Draw) -> bytes:
    lines = [json.dumps(record, ensure_ascii=draw.random() < 0.5) for record in _records(draw)]
    return draw.choice(["\n", "\n", "\r\n", "\n\n", "\r"]).join(lines).encode("utf-8", "surrogatepass")


def _json(draw: Draw) -> bytes:
    return json.dumps(_records(draw), indent=draw.choice([None, None, 1])).encode()


def _csv(draw: Draw) -> bytes:
    delimiter = draw.choice([",", ",", ";", "\t", "|"])
    rows = [["id", "text", "other"], *([str(i), draw.choice(_TEXTS), ""] for i in range(LINES))]
    cells = (['"' + cell.replace('"', '""') + '"' if draw.random() < 0.7 else cell for cell in row] for row in rows)
    return draw.choice(["\n", "\n", "\r\n"]).join(map(delimiter.join, cells)).encode()


def _parquet_whole(folder: Path) -> list[bytes]:
    draw, found = random.Random(0), []
    for options in ({}, {"use_dictionary": False}, {"compression": "zstd"}, {"row_group_size": 7}, {"version": "1.0"}):
        texts = [draw.choice([*_TEXTS, None]) for _ in range(LINES)]
        chats = [[{"role": "user", "content": text or "x"}] for text in texts]
        for columns in ({"id": [*range(LINES)], "text": texts}, {"id": [*map(str, range(LINES))], "messages": chats}):
            file = io.BytesIO()
            pq.write_table(pa.table(columns), file, **options)
            found.append(file.getvalue())
    return found


def _parquet_mutant(draw: Draw, whole: list[bytes], path: Path) -> Path:
    data = bytearray(draw.choice(whole))
    for _ in range(draw.choice([0, 1, 1, 2, 5])):
        # The footer says what is where: most of the damage goes there.
        at = len(data) - 1 - draw.randrange(len(data) // 2) if draw.random() < 0.7 else draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                data[at] ^= 1 << draw.randrange(8)
            case 2:
                data[at : at + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
            case _:
                data[at : at + draw.choice([1, 3])] = draw.choice([b"", b"\0\0", bytes(data[at : at + 9])])
    ending = draw.choice(["", "", "", ".gz", ".zst"])
    path = path.with_name(f"{path.name}.parquet{ending}")
    path.write_bytes(_PACK[ending](bytes(data)))
    return path


# ---------------------------------------------------------------- what is done with each


def _attempt(path: Path) -> str:
    """Read all, write one row a record in two runs, and read them back."""
    found = list(read_records(path))
    _check_order(path, found)
    draw = random.Random(path.name)
    format = draw.choice(["jsonl", "csv", "parquet"])
    out = path.with_name(f"{path.name}.rows.{format}")
    written = _written(out, format, found, draw.randrange(len(found) + 1))
    rows = [*read_rows(out)] if found else []
    if len(rows) != len(found) or written != len(found):
        raise Wrong(f"{len(found)} records, {len(rows)} rows in {format}")
    for record, row in zip(found, rows, strict=True):
        known = record.id if format == "jsonl" or record.id is None else str(record.id)  # of others a string
        told = (None, "") if format == "csv" else ()  # of which CSV makes the same
        same = row["id"] == known or (row["id"] in told and known in told)
        if not same or ("error" in row) != isinstance(record, Failure):
            raise Wrong(f"the row of {row['id']!r:.60} stands in the place of that of {record.id!r:.60}")
    failed = sum(isinstance(one, Failure) for one in found)
    return "read" if not failed else "read, with error rows"


def _check_order(path: Path, found: list[Record | Failure]) -> None:
    lines = [one.line for one in found]
    if lines != sorted(set(lines)) and ".json" not in path.suffixes:  # several elements of an array share a line
        raise Wrong(f"lines out of order: {lines}")
    counted = count_records(path)
    if counted is not None and ".csv" not in path.suffixes and counted != len(found):
        raise Wrong(f"{len(found)} records, {counted} were counted")
    if path.suffixes[-1:] == [".jsonl"] and (plain := _plain_count(path.read_bytes())) not in (None, len(found)):
        raise Wrong(f"{len(found)} records, {plain} lines are not blank")


def _plain_count(data: bytes) -> int | None:
    """Lines of JSON that are not blank; None where it is not UTF-8 or is not told for JSON lines."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.lstrip().startswith(b"{"):
        return None
    return sum(1 for line in data.split(b"\n") if line.strip())


def _written(out: Path, format: str, found: list[Record | Failure], cut: int) -> int:
    """The rows of all records, the first `cut` in a run of their own. How many were written."""
    n_rows = 0
    for part, resume in ((found[:cut], False), (found, True)):
        with open_writer(out, format=format, labels=["S1"], resume=resume) as writer:
            for record, row in zip(part, writer.resumed_rows(), strict=False):
                if digest_of(record) != row.record:
                    raise Wrong(f"the row {row!r} is not known as that of {record!r}")
            n_rows += len(part) - writer.resumed
            for record in part[writer.resumed :]:
                writer.write(_row(record), digest_of(record))
    return n_rows


def _row(record: Record | Failure) -> dict[str, Any]:
    if isinstance(record, Failure):
        return record.row()
    return {
        "id": record.id,
        "flagged": False,
        "unsafe": 0.25,
        "margin": -1.0,
        "categories": [],
        "category_scores": {"S1": 0.125},
        "bounds": {"unsafe": [0.2, 0.3], "S1": [0.1, 0.2]},
        "fields": {},
        "unexplored": 0.0,
        "off_grammar": 0.0,
        "estimator": "marginal",
        "calibrated": False,
        "guard": "g",
        "profile": "p",
        "model_sha256": "00",
        "tokens": {"prompt": 1, "reused": 0, "answer": 1},
        "skipped": 0,
        "window": None,
    }


def _kind(name: str, text_of: Callable[[Draw], bytes]) -> Kind:
    return Kind(lambda folder: None, lambda draw, _, path: _mutant(name, text_of, draw, path), _attempt)


JSON_LINES, JSON_ARRAY, CSV = _kind("jsonl", _jsonl), _kind("json", _json), _kind("csv", _csv)
PARQUET = Kind(_parquet_whole, _parquet_mutant, _attempt)
