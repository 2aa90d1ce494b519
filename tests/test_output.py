from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import OutputError
from edgeguard.rows import writer as output
from edgeguard.rows.schema import columns, to_json_line
from edgeguard.rows.writer import open_writer

LABELS = ["S1", "S2", "refusal=yes", "refusal=no"]
FORMATS = ["jsonl", "csv", "parquet"]


def score(id: str | int | None, unsafe: float = 0.25, **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "flagged": unsafe >= 0.5,
        "unsafe": unsafe,
        "margin": -1.5,
        "categories": ["S1", "S2"] if unsafe >= 0.5 else [],
        "category_scores": {"S1": 0.125, "S2": 0.1},
        "bounds": {
            "unsafe": [0.2, 0.3],
            "S1": [0.0, 0.25],
            "S2": [0.1, 0.1],
            "refusal=yes": [0.0, 0.5],
            "refusal=no": [0.3, 1.0],
        },
        "fields": {"refusal": {"yes": 0.0, "no": 0.3}},
        "unexplored": 1e-9,
        "off_grammar": 0.0,
        "estimator": "marginal",
        "calibrated": False,
        "guard": "tiny",
        "profile": "p",
        "model_sha256": "ab",
        "tokens": {"prompt": 61, "reused": 38, "answer": 14},
        "skipped": 0,
        "window": None,
    } | changes


def failure(id: str | int | None, message: str = "no", line: int = 3) -> dict[str, Any]:
    return {"id": id, "error": {"type": "empty_text", "message": message, "line": line}}


def kept_in(path: Path, format: str) -> Path:
    """The file that has the rows of a run that is not finished."""
    if format != "parquet":
        return path
    (journal,) = path.parent.glob(f".{path.name}.*.rows")
    return journal


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.endswith(".edgeguard-run"))


def write_all(path: Path, rows: list[dict[str, Any]], format: str, **flags: bool) -> None:
    with open_writer(path, format=format, labels=LABELS, **flags) as writer:
        for row in rows[writer.resumed :]:
            writer.write(row)


def crash(path: Path, rows: list[dict[str, Any]], format: str) -> None:
    """Write the rows and leave without completing the output."""
    with pytest.raises(RuntimeError), open_writer(path, format=format, labels=LABELS) as writer:
        for row in rows:
            writer.write(row)
        raise RuntimeError


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\n\r;='), max_size=12)
IDS = st.none() | st.integers(-9, 9) | TEXTS
ROWS = st.lists(st.builds(score, IDS, st.floats(0, 1)) | st.builds(failure, IDS, TEXTS, st.integers(0, 99)), max_size=5)


# ---------------------------------------------------------------- what is written


def test_a_json_line_is_as_in_the_design() -> None:
    row = {"id": "é\n", "unsafe": 0.9731, "bounds": {"S1": [0.021, 1e-9]}}
    assert to_json_line(row) == '{"id": "é\\n", "unsafe": 0.9731, "bounds": {"S1": [0.021, 1e-09]}}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json_line({"unsafe": float("nan")})


def test_jsonl_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    rows = [score(1), failure("a\u2028b\ud800")]
    write_all(tmp_path / "out", rows, "jsonl")
    assert [json.loads(line) for line in (tmp_path / "out").read_bytes().split(b"\n")[:-1]] == rows


def test_a_row_is_in_the_file_before_the_next_one_is_made(tmp_path: Path) -> None:
    for format in ("jsonl", "csv"):
        with open_writer(tmp_path / format, format=format, labels=LABELS) as writer:
            writer.write(score(1))
            assert (tmp_path / format).read_bytes().endswith(b"\n")
            assert (writer.rows, writer.resumed) == (1, 0)


def test_csv_has_one_column_a_number_and_plain_cells(tmp_path: Path) -> None:
    write_all(tmp_path / "out", [score('a,"b"', 0.75), failure("=1+1", "x\ny")], "csv")
    data = (tmp_path / "out").read_bytes().decode()
    assert data.splitlines()[0] == (
        "id,flagged,unsafe,margin,categories,score_S1,score_S2,field_refusal=yes,field_refusal=no,"
        "lower_unsafe,upper_unsafe,lower_S1,upper_S1,lower_S2,upper_S2,"
        "lower_refusal=yes,upper_refusal=yes,lower_refusal=no,upper_refusal=no,"
        "unexplored,off_grammar,estimator,calibrated,guard,profile,model_sha256,"
        "tokens_prompt,tokens_reused,tokens_answer,skipped,window_number,window_of,window_begin,window_end,error_type,error_message,error_line"
    )
    assert data.splitlines()[1] == (
        '"a,""b""",true,0.75,-1.5,S1;S2,0.125,0.1,0.0,0.3,0.2,0.3,0.0,0.25,0.1,0.1,0.0,0.5,0.3,1.0,1e-09,0.0,'
        "marginal,false,tiny,p,ab,61,38,14,0,,,,,,,"
    )
    _, bad = csv.DictReader(io.StringIO(data, newline=""))
    assert (bad["id"], bad["unsafe"], bad["error_message"], bad["error_line"]) == ("=1+1", "", "x\ny", "3")


@given(ROWS)
def test_any_csv_is_what_the_csv_module_reads(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.csv")
        write_all(path, rows, "csv")
        with open(path, encoding="utf-8", newline="") as file:
            got = list(csv.reader(file, strict=True))
    assert [row[0] for row in got[1:]] == ["" if row["id"] is None else str(row["id"]) for row in rows]
    assert all(len(row) == len(columns(LABELS)) for row in got)


def test_parquet_is_typed_and_leaves_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write_all(path, [score(7, 0.75), failure(None)], "parquet")
    table = pq.read_table(path)
    assert table.column_names == columns(LABELS)
    assert {str(table.schema.field(name).type) for name in ("unsafe", "score_S1", "upper_S2")} == {"double"}
    assert [str(table.schema.field(name).type) for name in ("flagged", "tokens_prompt", "id")] == [
        "bool",
        "int64",
        "string",
    ]
    scored, failed = table.to_pylist()
    assert (scored["id"], scored["categories"], scored["lower_S2"], scored["error_type"]) == (
        "7",
        "S1;S2",
        0.1,
        None,
    )
    assert (failed["id"], failed["flagged"], failed["error_type"]) == (None, None, "empty_text")
    assert sorted(os.listdir(tmp_path)) == [".out.parquet.edgeguard-run", "out.parquet"]


def test_parquet_is_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_ROW_GROUP", 4)
    write_all(tmp_path / "out", [score(i) for i in range(10)], "parquet")
    with pq.ParquetFile(tmp_path / "out") as file:
        assert (file.num_row_groups, file.metadata.num_rows) == (3, 10)


@pytest.mark.parametrize("format", FORMATS)
def test_no_rows_are_a_valid_output(tmp_path: Path, format: str) -> None:
    write_all(tmp_path / "out", [], format)
    data = (tmp_path / "out").read_bytes()
    assert (data == b"") == (format == "jsonl")
    write_all(tmp_path / "out", [], format, resume=True)
    assert (tmp_path / "out").read_bytes() == data


def test_a_score_for_an_unknown_label_is_a_programmers_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"scores for \['S9'\]"),
        open_writer(tmp_path / "out", format="csv", labels=LABELS) as writer,
    ):
        writer.write(score(1, category_scores={"S9": 1.0}))


def test_csv_refuses_what_is_no_number(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="nan is not a number"),
        open_writer(tmp_path / "out", format="csv", labels=LABELS) as writer,
    ):
        writer.write(score(1, margin=float("nan")))


# ---------------------------------------------------------------- stdout


class Stdout:
    """Something to put in place of sys.stdout."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def flush(self) -> None:
        self.buffer.flush()


@pytest.mark.parametrize("path", [None, "-"])
def test_stdout_gets_each_row_at_once_and_stays_open(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Stdout(buffer))
    with open_writer(path, format="csv", labels=LABELS) as writer:
        writer.write(score(1))
        assert buffer.getvalue().count(b"\n") == 2
    assert not buffer.closed


def test_stdout_takes_no_parquet_and_no_resume() -> None:
    with pytest.raises(OutputError, match="Parquet cannot be written to stdout"):
        open_writer("-", format="parquet", labels=LABELS)
    with pytest.raises(OutputError, match="stdout cannot be resumed"):
        open_writer(None, format="jsonl", labels=LABELS, resume=True)


def test_a_reader_that_has_gone_is_a_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    with open(writer_fd, "wb") as pipe:
        monkeypatch.setattr(sys, "stdout", Stdout(pipe))
        writer = open_writer(None, format="jsonl", labels=LABELS)
        with pytest.raises(BrokenPipeError):
            writer.write(score(1))


def test_a_full_disk_behind_stdout_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(sys, "stdout", Stdout(full))
        writer = open_writer(None, format="jsonl", labels=LABELS)
        with pytest.raises(OutputError, match=r"^disk full: 0 rows were written to <stdout>; free space"):
            writer.write(score(1))


# ---------------------------------------------------------------- files that are there, and that fail


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_file_needs_one_of_two_flags(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    write_all(path, [score(1)], format)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"out: exists already$"):
        open_writer(path, format=format, labels=LABELS)
    with pytest.raises(ValueError, match="exclude each other"):
        open_writer(path, format=format, labels=LABELS, overwrite=True, resume=True)
    assert path.read_bytes() == before
    write_all(path, [], format, overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("format", FORMATS)
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, format: str) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\)"):
        open_writer(tmp_path / "no" / "out", format=format, labels=LABELS)
    with pytest.raises(OutputError, match="is not a regular file"):
        open_writer(tmp_path, format=format, labels=LABELS, overwrite=True)
    with pytest.raises(ValueError, match="format is 'xml'"):
        open_writer(tmp_path / "out", format="xml", labels=LABELS)


def test_a_device_can_be_written_but_not_resumed_or_replaced() -> None:
    write_all(Path("/dev/null"), [score(1)], "jsonl")
    with pytest.raises(OutputError, match="not a regular file"):
        open_writer("/dev/null", format="csv", labels=LABELS, resume=True)
    with pytest.raises(OutputError, match="not a regular file"):
        open_writer("/dev/null", format="parquet", labels=LABELS, overwrite=True)
    with pytest.raises(OutputError, match="disk full: 0 rows were written to /dev/full"):
        open_writer("/dev/full", format="csv", labels=LABELS)


class SmallDisk:
    """A file on a disk with room for `room` more bytes, which takes what fits before it fails."""

    def __init__(self, file: Any, room: int, number: int = errno.ENOSPC) -> None:
        self.file, self.room, self.number = file, room, number

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(self.number, os.strerror(self.number))
        n: int = self.file.write(data[: self.room])
        self.room -= n
        return n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_whole_rows_and_can_be_resumed(tmp_path: Path, format: str) -> None:
    rows = [score(i) for i in range(4)]
    write_all(tmp_path / "whole", rows, format)
    path = tmp_path / "out"
    with (
        pytest.raises(OutputError) as caught,
        open_writer(path, format=format, labels=LABELS) as writer,
    ):
        kept = kept_in(path, format)
        writer.write(rows[0])
        writer.write(rows[1])
        size = kept.stat().st_size
        writer._sink.file = SmallDisk(writer._sink.file, 20)
        writer.write(rows[2])
    assert str(caught.value) == f"disk full: 2 rows are safe in {kept}; free space and run again"
    assert kept.stat().st_size == size
    write_all(path, rows, format, resume=True)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_failure_says_its_reason(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"^writing failed \(Input/output error\): 0 rows are safe in"),
        open_writer(tmp_path / "out", format="jsonl", labels=LABELS) as writer,
    ):
        writer._sink.file = SmallDisk(writer._sink.file, 5, errno.EIO)
        writer.write(score(1))


def test_ctrl_c_within_a_row_takes_the_row_back(tmp_path: Path) -> None:
    class Interrupted(SmallDisk):
        def write(self, data: memoryview) -> int:
            if not self.room:
                raise KeyboardInterrupt
            return super().write(data)

    with (
        pytest.raises(KeyboardInterrupt),
        open_writer(tmp_path / "out", format="jsonl", labels=LABELS) as writer,
    ):
        writer.write(score(1))
        writer._sink.file = Interrupted(writer._sink.file, 5)
        writer.write(score(2))
    assert (tmp_path / "out").read_bytes() == to_json_line(score(1)).encode() + b"\n"


def test_a_full_disk_while_parquet_is_made_keeps_the_journal_and_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write_all(path, [score(0)], "parquet")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OutputError, match=r"^disk full: 2 rows are safe in .*\.rows; free"):
            write_all(path, [score(1), score(2)], "parquet", overwrite=True)
    assert path.read_bytes() == before
    assert visible(tmp_path) == [kept_in(path, "parquet").name, "out"]
    write_all(path, [score(1), score(2)], "parquet", resume=True)
    assert pq.read_table(path)["id"].to_pylist() == ["1", "2"]


def test_without_pyarrow_parquet_fails_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OutputError, match=r"pip install 'edgeguard\[parquet\]'"):
        open_writer(tmp_path / "out", format="parquet", labels=LABELS)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- resuming


@given(ROWS, st.sampled_from(["jsonl", "csv"]), st.data())
def test_a_file_cut_at_any_byte_and_resumed_is_the_uncut_file(
    rows: list[dict[str, Any]], format: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out")
        write_all(path, rows, format)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        write_all(path, rows, format, resume=True)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_file_cut_at_every_byte_and_resumed_is_the_uncut_file(tmp_path: Path, format: str) -> None:
    rows = [score('a"\n,"'), failure('\n"', '""\n'), score("")]
    write_all(tmp_path / "out", rows, format)
    whole = (tmp_path / "out").read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / "out").write_bytes(whole[:cut])
        write_all(tmp_path / "out", rows, format, resume=True)
        assert (tmp_path / "out").read_bytes() == whole


@pytest.mark.parametrize("format", FORMATS)
def test_resuming_a_missing_file_begins_it_and_a_complete_one_changes_nothing(tmp_path: Path, format: str) -> None:
    rows = [score("a"), failure("b")]
    write_all(tmp_path / "out", rows, format, resume=True)
    before = (tmp_path / "out").read_bytes()
    write_all(tmp_path / "out", rows, format, resume=True)
    assert (tmp_path / "out").read_bytes() == before
    assert visible(tmp_path) == ["out"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_rows_that_are_there_tell_their_ids(tmp_path: Path, format: str) -> None:
    crash(tmp_path / "out", [failure("x"), score("a\nb"), score("c", model_sha256="cd")], format)
    with open_writer(tmp_path / "out", format=format, labels=LABELS, resume=True) as writer:
        assert writer.resumed == writer.rows == 3
        writer.write(score("later"))
        assert [row[:2] for row in writer.resumed_rows()] == [("x", True), ("a\nb", False), ("c", False)]


def test_ids_keep_their_type_in_jsonl_and_are_strings_in_csv(tmp_path: Path) -> None:
    for format, expected in (("jsonl", [1, None]), ("csv", ["1", None])):
        crash(tmp_path / format, [score(1), score(None)], format)
        with open_writer(tmp_path / format, format=format, labels=LABELS, resume=True) as writer:
            assert [row.id for row in writer.resumed_rows()] == expected


def test_a_finished_parquet_file_can_be_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_all(path, [score(1), failure(2)], "parquet")
    with open_writer(path, format="parquet", labels=LABELS, resume=True) as writer:
        assert [row[:2] for row in writer.resumed_rows()] == [("1", False), ("2", True)]
        writer.write(score(3))
    write_all(tmp_path / "whole", [score(1), failure(2), score(3)], "parquet")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(OutputError, match="columns are not those of this taxonomy"):
        open_writer(path, format="parquet", labels=["S1"], resume=True)
    (tmp_path / "broken").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="is not a Parquet file"):
        open_writer(tmp_path / "broken", format="parquet", labels=LABELS, resume=True)
    assert visible(tmp_path) == ["broken", "out", "whole"]


def test_an_interrupted_parquet_run_is_not_begun_anew_by_accident(tmp_path: Path) -> None:
    crash(tmp_path / "out", [score(1)], "parquet")
    with pytest.raises(OutputError, match=r"rows of a run that was interrupted are there, in \.out\..*\.rows"):
        open_writer(tmp_path / "out", format="parquet", labels=LABELS)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    write_all(path, [score("a\nb"), score(2), score(3)], format)
    lines = path.read_bytes().splitlines(keepends=True)
    at = 2 if format == "jsonl" else 4  # header, and a row on two lines
    lines[at - 1] = b"garbage\x1b[31m\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(OutputError, match=rf"out:{at}: is not a result row of edgeguard, or not the one") as caught:
        open_writer(path, format=format, labels=LABELS, resume=True)
    assert str(caught.value).isprintable()
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
@pytest.mark.parametrize("left", [1, 2, 30, 300])
def test_a_torn_tail_is_cut_off(tmp_path: Path, left: int, format: str) -> None:
    path = tmp_path / "out"
    write_all(path, [score(1)], format)
    n = path.stat().st_size
    write_all(path, [score(1), failure("next", "e" * 400)], format, resume=True)
    whole = path.read_bytes()
    for padding in (b"", b"\0" * 4096):  # file systems may fill what was lost
        path.write_bytes(whole[: n + left] + padding)
        write_all(path, [score(1), failure("next", "e" * 400)], format, resume=True)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("format", ["jsonl", "csv"])
@pytest.mark.parametrize("tail", [b"my notes", b"my notes\n", b'{"id": "another one', b"2,", b"t", b"\n"])
@pytest.mark.parametrize("torn", [False, True])
def test_a_last_line_that_no_run_noted_is_not_cut_off(tmp_path: Path, tail: bytes, format: str, torn: bool) -> None:
    # Of CSV any last line without an end was taken for a torn row.
    path = tmp_path / "out"
    write_all(path, [score(1), score("xyz")], format)
    data = path.read_bytes()
    if torn:
        data = data[: data.rindex(b"\n", 0, -1) + 1]
    path.write_bytes(data + tail)
    with pytest.raises(OutputError, match="or not the one that its run noted"):
        open_writer(path, format=format, labels=LABELS, resume=True)
    assert path.read_bytes() == data + tail


@pytest.mark.parametrize(
    "foreign",
    [
        b"my notes\n",
        b"my notes",
        b'{"id": 1, "text": "an input line"}\n{"id": 2, "text": "b"}\n',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_somebody_elses_file_is_not_touched_by_resume(tmp_path: Path, foreign: bytes, format: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(foreign)
    with pytest.raises(OutputError, match=r"not a result row|header row is not the one"):
        open_writer(path, format=format, labels=LABELS, resume=True)
    assert path.read_bytes() == foreign


def test_csv_of_another_taxonomy_is_not_resumed(tmp_path: Path) -> None:
    write_all(tmp_path / "out", [score(1)], "csv")
    with pytest.raises(OutputError, match="header row is not the one of this taxonomy"):
        open_writer(tmp_path / "out", format="csv", labels=["S1"], resume=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_killed_at_any_time_can_be_resumed(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_output import *\n"
        "with open_writer(sys.argv[2], format=sys.argv[3], labels=LABELS) as writer:\n"
        "    for i in range(10**5): writer.write(score(i))\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(path), format]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        end = time.monotonic() + 60
        while not any(one.stat().st_size > 10_000 for one in tmp_path.iterdir() if one.name.endswith(("out", ".rows"))):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    with open_writer(path, format=format, labels=LABELS, resume=True) as writer:
        n = writer.resumed
        assert [str(row.id) for row in writer.resumed_rows()] == [str(i) for i in range(n)]
        writer.write(score(n))
    write_all(tmp_path / "whole", [score(i) for i in range(n + 1)], format)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
