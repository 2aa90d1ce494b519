"""What a small file may cost: time that grows with its bytes, memory and disk that do not grow with what it claims."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.backend import Vocabulary
from edgeguard.errors import ContextOverflow, InputError
from edgeguard.prompt import told_early
from edgeguard.rows import csv, jsonl
from edgeguard.rows.readers import count_records, read_records
from edgeguard.rows.record import Failure, Record
from edgeguard.rows.streams import FREE, Lines

MIB = 1 << 20
Tiny = tuple[str, ...]


@pytest.fixture
def bounded() -> Iterator[None]:
    """Python's own memory stays under 200 MiB in the test."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * MIB


def packed(pack: Callable[[bytes], bytes], n: int, piece: bytes, head: bytes = b"", tail: bytes = b"") -> bytes:
    """head + n times a MiB of `piece` + tail, compressed; each MiB by itself, which all of the formats allow."""
    one = pack(piece * (MIB // len(piece)))
    return pack(head) * bool(head) + one * n + pack(tail) * bool(tail)


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


# ---------------------------------------------------------------- bytes in against bytes out


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("ending", PACKS)
@pytest.mark.parametrize(
    ("name", "head", "piece"),
    [
        ("blank.jsonl", b"", b"\n"),
        ("cell.csv", b'text\n"', b"\n"),
        ("line.jsonl", b'{"text": "', b"a"),
        ("array.json", b"[", b" "),
    ],
)
def test_a_file_that_unpacks_to_far_too_much_is_told(
    tmp_path: Path, ending: str, name: str, head: bytes, piece: bytes
) -> None:
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(packed(PACKS[ending], 80, piece, head))
    if path.stat().st_size * 100 > 80 * MIB:
        pytest.skip(f"{ending} does not pack it so far")
    began = time.process_time()
    with pytest.raises(InputError, match="holds more than 100 bytes for each of its own, 64 MiB so far") as caught:
        for _ in read_records(path):
            pass
    assert caught.value.kind == "unpacks_too_far"
    assert time.process_time() - began < 20


def test_a_ratio_that_is_allowed_is_read_to_the_end_and_can_be_an_option(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed(gzip.compress, 66, b"\n", tail=b'{"text": "after all"}\n'))
    refused = run("score", path, *tiny)
    assert refused.exit_code == 1 and "--max-ratio says how many" in refused.stderr
    out = tmp_path / "out.jsonl"
    assert run("score", path, "--max-ratio", 2000, "-o", out, *tiny).exit_code == 0
    assert run("score", path, "--max-ratio", 3000, "-o", out, "--resume", *tiny).exit_code == 0  # it changes no row


def test_a_small_file_may_pack_well(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(packed(gzip.compress, 10, b"\n", b"text\n", b"one\n"))
    assert [type(one) for one in read_records(path)] == [Record]


# ---------------------------------------------------------------- blank lines, and cells over many lines


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("name", "head", "piece", "tail", "expected"),
    [
        ("a.jsonl", b"", b"\n", b'{"text": "a"}\n', [""]),
        ("a.jsonl", b"", b" \t\r\n", b'{"text": "a"}\n', [""]),
        ("a.csv", b"text\n", b"\r\n", b"a\n", [""]),
        ("a.csv", b'text\n"', b"\n", b'"\na\n', ["too_large", ""]),
        ("a.csv", b'text\n"', b"a\n", b'"\na\n', ["too_large", ""]),
        ("a.csv", b'text\n"', b'""\n', b'"\na\n', ["too_large", ""]),
        ("a.csv", b'text\n"', b"\n", b"", ["too_large"]),
        ("a.csv", b"text\n", b'"', b"\na\n", ["too_large", ""]),
        ("a.json", b"[", b"\n", b'{"text": "a"}]', [""]),
    ],
)
def test_a_hundred_million_line_ends_take_seconds(
    tmp_path: Path, name: str, head: bytes, piece: bytes, tail: bytes, expected: list[str]
) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(head)
        for _ in range(100):
            file.write(piece * (MIB // len(piece) // 2 * 2))
        file.write(tail)
    began = time.process_time()
    got = [one.kind if isinstance(one, Failure) else "" for one in read_records(path)]
    assert got == expected
    count_records(path)
    assert time.process_time() - began < 20


@given(st.lists(st.sampled_from(["a", '"', "\n", "\r\n", " \n", ",", "\n\n\n", " "]), max_size=40), st.integers(1, 9))
def test_lines_are_numbered_and_cut_as_line_by_line(pieces: list[str], limit: int) -> None:
    data = "".join(pieces).encode()
    texts = {number: line for number, line in enumerate(io.BytesIO(data).readlines(), 1) if line.strip()}
    got = {line.number: line for line in Lines(io.BytesIO(data), limit=limit) if line.number in texts or line.data}
    got = {number: line for number, line in got.items() if not line.blank}
    assert {number: line.data for number, line in got.items()} == {
        number: line if len(line) <= limit else None for number, line in texts.items()
    }
    assert all(line.quotes == texts[number].count(b'"') for number, line in got.items())


@given(st.lists(st.sampled_from(["a", '"', '""', "\n", "\n\n", ",", "b\n"]), max_size=60))
def test_rows_over_several_lines_are_what_the_csv_module_reads(pieces: list[str]) -> None:
    import csv as standard

    text = "h\n" + "".join(pieces)
    rows = list(csv.read(io.BytesIO(text.encode()), "x").rows)
    if any(row.error is not None for row in rows):
        return  # what is malformed the two read otherwise
    if text.count('"') % 2:
        return  # the same
    theirs = [cells for cells in standard.reader(io.StringIO(text, newline=""), strict=True) if cells][1:]
    assert [[*row.fields.values()] for row in rows] == [cells for cells in theirs if len(cells) == 1]
    assert csv.count(io.BytesIO(text.encode())) >= len(rows)
    lines = text.split("\n")
    assert all(lines[row.line - 1].strip() for row in rows)


def test_line_numbers_go_on_behind_blank_lines_and_cells_over_many_lines() -> None:
    data = b'\n\n{"text": "a"}\n' + b"\n" * 200_000 + b'{"text": "b"}\n'
    assert [row.line for row in jsonl.rows(io.BytesIO(data))] == [3, 200_004]
    table = b'text\n"a' + b"\n" * 100_000 + b'b"\n\nc\n'
    assert [row.line for row in csv.read(io.BytesIO(table), "x").rows] == [2, 100_004]


# ---------------------------------------------------------------- Parquet


def parquet(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, **{"compression": "zstd", **options})
    return path


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_parquet_in_gzip_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = tmp_path / f"a.parquet.{ending}"
    path.write_bytes(packed(PACKS[ending], 200, b"\0", b"PAR1"))
    written = 0
    real = tempfile.SpooledTemporaryFile.write

    def write(self: object, data: bytes) -> int:
        nonlocal written
        written += len(data)
        return real(self, data)  # type: ignore[arg-type]

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", write)
    with pytest.raises(InputError, match="holds more than 10 bytes for each of its own"):
        list(read_records(path))
    assert written <= FREE + MIB and os.listdir(folder) == []


def test_a_text_that_parquet_stores_once_for_many_rows_is_not_made_for_all_of_them(tmp_path: Path) -> None:
    text = "x" * 4 * MIB
    path = parquet(tmp_path / "a.parquet", pa.table({"text": [text] * 40}), dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    seen = 0
    with pytest.raises(InputError, match="holds more than 100 bytes"):
        for seen, _ in enumerate(read_records(path), 1):  # noqa: B007
            assert pa.total_allocated_bytes() - before < 100 * MIB
    assert 10 < seen < 30
    assert sum(1 for _ in read_records(path, max_ratio=10**9)) == 40


def test_what_parquet_states_to_hold_is_held_against_its_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table({"text": ["x" * 4 * MIB] * 30}), use_dictionary=False)
    with pytest.raises(InputError, match="holds more than 100 bytes for each of its own, 120 MiB"):
        next(read_records(path))


@pytest.mark.parametrize("messages", [False, True], ids=["texts", "chats"])
def test_texts_in_dictionaries_are_what_they_are_without(tmp_path: Path, messages: bool) -> None:
    texts = ["one", "two", "one", "漢字", "three"] * 60
    column = {"messages": [[{"role": "user", "content": t}] for t in texts]} if messages else {"text": texts}
    found = [
        [one.messages for one in read_records(parquet(tmp_path / f"{d}.parquet", pa.table(column), use_dictionary=d))]
        for d in (True, False)
    ]
    assert found[0] == found[1] and len(found[0]) == 300


@pytest.mark.parametrize("name", [b"zzz\xc4", b"text\xff", b"\x80abc"])
def test_the_name_of_a_column_that_is_not_utf8_is_an_input_error(
    run: Run, tiny: Tiny, tmp_path: Path, name: bytes
) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "Q" * len(name): ["b"]}))
    path.write_bytes(path.read_bytes().replace(b"Q" * len(name), name))
    for args in (("score", path), ("evaluate", path), ("calibrate", path, "-o", tmp_path / "c")):
        result = run(*args, *tiny)
        assert result.exit_code == 1 and "is not UTF-8" in result.stderr and "Traceback" not in result.stderr, args


def test_rows_that_a_damaged_file_does_not_give_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # A column whose count of values was damaged ended early, and the file was read without a word.
    from edgeguard.rows import parquet as reader

    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * 5}), file)
    real = reader._batches
    monkeypatch.setattr(reader, "_batches", lambda *args: (batch.slice(0, 3) for batch in real(*args)))
    got = read_records(io.BytesIO(file.getvalue()))
    with pytest.raises(InputError, match=r"broken or cut short \(it states 5 rows and holds 3\)"):
        for n, _ in enumerate(got, 1):  # noqa: B007
            pass
    assert n == 3


def test_a_cell_that_points_out_of_its_dictionary_is_an_error_of_its_row() -> None:
    from edgeguard.rows.parquet import row_of

    indices, buffers = pa.array([0, 9], pa.int32()), pa.array(["a"])
    cell = pa.DictionaryArray.from_arrays(indices, buffers, safe=False)
    batch = pa.RecordBatch.from_arrays([cell], ["text"])
    assert row_of(batch, 0, 1).fields == {"text": "a"}
    assert "cannot be read (index with value of 9" in str(row_of(batch, 1, 2).error)


# ---------------------------------------------------------------- texts far too long


def test_of_a_text_far_too_long_a_beginning_is_encoded(run: Run, tiny: Tiny) -> None:
    longest = 0

    def encode(text: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return [0] * (len(text) // 4)

    vocabulary = told_early(Vocabulary([b"a"], {}, frozenset(), None, encode), 1000)
    with pytest.raises(ContextOverflow, match="needs more than 16384 tokens with its answer, the context holds 1000"):
        vocabulary.encode("a" * 10_000_000)
    assert longest == 1 << 16
    assert len(vocabulary.encode("a" * 60_000)) == 15_000  # what is near is counted, and told exactly


@given(st.integers(1, 400), st.integers(1, 50), st.integers(0, 400_000))
def test_a_text_that_fits_is_never_taken_for_too_long(each: int, n_ctx: int, size: int) -> None:
    def encode(text: str) -> list[int]:
        return [0] * -(-len(text) // each)

    vocabulary = told_early(Vocabulary([b"a"], {}, frozenset(), None, encode), n_ctx)
    try:
        assert len(vocabulary.encode("a" * size)) == len(encode("a" * size))
    except ContextOverflow:
        assert len(encode("a" * size)) > 2 * n_ctx


def test_ten_million_characters_are_an_error_row_in_seconds(run: Run, tiny: Tiny) -> None:
    began = time.process_time()
    result = run("score", "-", *tiny, input=b'{"text": "' + b"word " * 2_000_000 + b'"}\n{"text": "a"}\n')
    assert '"context_overflow"' in result.stdout and '"unsafe"' in result.stdout.splitlines()[1]
    assert time.process_time() - began < 10
