from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import InputError, RecordError
from edgeguard.rows.ids import SeenIds
from edgeguard.rows.readers import count_records, read_records
from edgeguard.rows.record import Failure, Message, Record
from edgeguard.rows.shapes import Fields, make_record

# Texts a record may have: not blank, no lone surrogates, no NUL.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    str.strip
)


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(data: bytes | str, **options: object) -> list[Record | Failure]:
    data = data.encode() if isinstance(data, str) else data
    return list(read_records(io.BytesIO(data), **{"format": "jsonl", **options}))


def only_error(data: bytes | str, **options: object) -> Failure:
    (bad,) = read(data, **options)
    assert isinstance(bad, Failure)
    assert bad.message.startswith(f"<stdin>:{bad.line}: ")
    return bad


def kind_of(fields: dict[str, object]) -> str:
    return only_error(jsonl(fields)).kind


def text_of(record: Record | Failure) -> str:
    assert isinstance(record, Record), record
    (message,) = record.messages
    return message.content


# ---------------------------------------------------------------- what a record may be


def test_a_text_is_one_user_turn() -> None:
    assert read(jsonl({"id": "a", "text": "hello"})) == [Record((Message("user", "hello"),), "a", 1)]


def test_a_prompt_may_have_a_response() -> None:
    both, alone = read(jsonl({"prompt": "p", "response": "r"}, {"prompt": "p", "response": None}))
    assert isinstance(both, Record) and isinstance(alone, Record)
    assert both.messages == (Message("user", "p"), Message("assistant", "r"))
    assert alone.messages == (Message("user", "p"),)


def test_messages_take_role_aliases_and_text_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "human", "content": parts}, {"role": "model", "content": "b", "name": "x"}]
    (record,) = read(jsonl({"messages": messages}))
    assert isinstance(record, Record)
    assert record.messages == (Message("user", "one\ntwo"), Message("assistant", "b"))


@pytest.mark.parametrize("labels", [["S1"], "safe", 1, {"hate": True}, [1, 0], [["S1"], None], "[not JSON"])
def test_whatever_stands_under_labels_a_record_can_be_scored(labels: object) -> None:
    """Ground truth is an evaluation's: of a file with odd labels every text was an error once."""
    assert text_of(make_record({"text": "t", "labels": labels})) == "t"


def test_an_id_keeps_its_type() -> None:
    one, two = read(jsonl({"id": 1, "text": "a"}, {"id": "1", "text": "a"}))
    assert (one.id, two.id) == (1, "1")
    assert isinstance(two, Record)


def test_text_field_reads_another_field_and_ignores_the_usual_ones() -> None:
    (record,) = read(jsonl({"body": "b", "text": "t", "messages": 3}), fields=Fields(text="body"))
    assert text_of(record) == "b"
    assert only_error(jsonl({"text": "t"}), fields=Fields(text="body")).kind == "no_such_field"
    assert only_error(jsonl({"body": None}), fields=Fields(text="body")).kind == "missing_field"


# ---------------------------------------------------------------- what a record may not be


def test_the_message_says_what_happened_what_was_expected_and_where() -> None:
    assert only_error(b'\n\n{"id": 3}\n').message == (
        '<stdin>:3: "text" is missing; each record needs "text", or "prompt" and optional "response", or "messages"'
    )


def test_a_value_in_a_message_is_short_and_without_control_characters() -> None:
    message = only_error(jsonl({"messages": "\x1b[2J\n" + "x" * 500})).message
    assert r'"\x1b[2J\nxx' in message and "…" in message
    assert message.isprintable() and len(message) < 200


def test_a_line_that_is_not_json_is_reported_and_the_next_one_read() -> None:
    bad, good = read(b'{"text": "a"\n{"text": "b"}\n')
    assert isinstance(bad, Failure) and (bad.kind, bad.line) == ("invalid_json", 1)
    assert text_of(good) == "b"


def test_an_integer_with_too_many_digits_is_invalid_json() -> None:
    assert only_error('{"text": "a", "n": ' + "9" * 5000 + "}").kind == "invalid_json"


def test_bytes_that_are_not_utf8_spoil_their_own_line_only() -> None:
    bad, good = read(b'{"text": "\xff"}\n{"text": "b"}\n')
    assert isinstance(bad, Failure) and bad.kind == "invalid_utf8"
    assert text_of(good) == "b"


def test_a_record_without_text_misses_a_field() -> None:
    assert kind_of({"id": "a"}) == "missing_field"
    assert kind_of({"text": None}) == "missing_field"
    assert kind_of({"response": "r"}) == "missing_field"
    assert kind_of({"messages": [{"role": "user"}]}) == "missing_field"
    assert kind_of({"messages": [{"content": "c"}]}) == "missing_field"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": 3},
        {"text": ["a"]},
        {"text": True},
        {"prompt": "p", "response": {}},
        {"messages": "hello"},
        {"messages": {}},
        {"messages": ["hello"]},
        {"messages": [{"role": 1, "content": "c"}]},
        {"messages": [{"role": "user", "content": 1.5}]},
        {"messages": [{"role": "user", "content": [{"type": "smell", "text": "t"}]}]},
        {"messages": [{"role": "user", "content": ["c"]}]},
        {"text": "t", "id": 1.5},
        {"text": "t", "id": True},
        {"text": "t", "id": []},
    ],
)
def test_a_field_of_the_wrong_type_is_invalid_type(fields: dict[str, object]) -> None:
    assert kind_of(fields) == "invalid_type"


@pytest.mark.parametrize("line", ["[1]", "3", '"text"', "null", "NaN"])
def test_a_line_that_is_no_object_is_invalid_type(line: str) -> None:
    assert only_error(line).kind == "invalid_type"


def test_a_record_with_two_kinds_of_text_is_ambiguous() -> None:
    assert kind_of({"text": "t", "messages": [{"role": "user", "content": "c"}]}) == "ambiguous"
    assert kind_of({"text": "t", "response": "r"}) == "ambiguous"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": " \n\t\u00a0"},
        {"prompt": "p", "response": ""},
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": []}]},
    ],
)
def test_a_blank_text_is_an_error_and_not_safe(fields: dict[str, object]) -> None:
    assert kind_of(fields) == "empty_text"


def test_a_lone_surrogate_or_a_nul_is_invalid_text() -> None:
    assert only_error(r'{"text": "a\ud800b"}').kind == "invalid_text"
    assert only_error(r'{"text": "a\u0000b"}').kind == "invalid_text"
    bad = only_error(r'{"text": "a", "id": "\udfff"}')
    assert (bad.kind, bad.id) == ("invalid_text", None)
    assert text_of(read(r'{"text": "\ud83d\ude00"}')[0]) == "😀"


def test_a_line_over_16_mib_is_skipped_without_being_held() -> None:
    class Endless(io.RawIOBase):
        """64 MiB without a line end, then a good record."""

        left = 64 * 2**20
        tail = io.BytesIO(b'\n{"text": "b"}\n')

        def readable(self) -> bool:
            return True

        def read(self, n: int = -1) -> bytes:
            if self.left <= 0:
                return self.tail.read(n)
            self.left -= n
            return b"x" * n

    tracemalloc.start()
    try:
        bad, good = read_records(Endless(), format="jsonl")  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(bad, Failure) and (bad.kind, bad.line) == ("too_large", 1)
    assert text_of(good) == "b" and good.line == 2
    assert peak < 48 * 2**20


def test_deep_nesting_is_too_deep_and_no_crash() -> None:
    deep = b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bad, good = read(deep + b"\n" + jsonl({"text": "b"}))
    assert isinstance(bad, Failure) and bad.kind == "too_deep"
    assert text_of(good) == "b"


def test_the_later_of_two_records_with_one_id_is_an_error_that_names_the_first() -> None:
    first, _, again = read(jsonl({"id": "a", "text": "x"}, {"id": "b", "text": "x"}, {"id": "a", "text": "y"}))
    assert isinstance(first, Record)
    assert isinstance(again, Failure)
    assert (again.kind, again.id, again.line) == ("duplicate_id", "a", 3)
    assert 'the id "a" was already used on line 1' in again.message


def test_a_bad_record_uses_its_id_up_and_keeps_its_own_error() -> None:
    bad, again = read(jsonl({"id": "a", "text": ""}, {"id": "a", "text": "x"}))
    assert isinstance(bad, Failure) and (bad.kind, bad.id) == ("empty_text", "a")
    assert isinstance(again, Failure) and again.kind == "duplicate_id"


def test_ids_seen_take_no_more_than_they_promise() -> None:
    tracemalloc.start()
    try:
        seen = SeenIds()
        assert all(seen.first_line(f"record-{i}", i) == i for i in range(30_000))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert all(seen.first_line(f"record-{i}", 99_999) == i for i in range(0, 30_000, 7))
    assert held < 0.9 * 2**20


# ---------------------------------------------------------------- files


def test_a_bom_crlf_and_blank_lines_are_skipped() -> None:
    first, second = read(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}', format=None)
    assert (text_of(first), text_of(second), second.line) == ("a", "b", 4)


def test_content_decides_before_the_extension(tmp_path: Path) -> None:
    assert len(list(read_records(write(tmp_path / "a.csv", '{"text": "a"}\n')))) == 1
    assert len(list(read_records(write(tmp_path / "a.jsonl", gzip.compress(b'{"text": "a"}\n'))))) == 1
    assert len(list(read_records(write(tmp_path / "a.csv.gz", gzip.compress(b"text\na\nb\n"))))) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.json"])
def test_the_extension_decides_where_the_content_is_no_help(tmp_path: Path, name: str) -> None:
    (bad,) = read_records(write(tmp_path / name, "nonsense\n"))
    assert isinstance(bad, Failure) and bad.kind == "invalid_json"


def test_an_unknown_format_names_what_was_seen_and_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'begins with "%PDF-1\.7\\n"; expected JSONL .*, CSV'):
        list(read_records(write(tmp_path / "a.txt", "%PDF-1.7\n")))
    with pytest.raises(ValueError, match="format is 'xml'"):
        read(b"", format="xml")


def test_no_input_is_no_records_but_csv_needs_its_header(tmp_path: Path) -> None:
    assert read(b"", format=None) == read(b" \n\n", format=None) == []
    with pytest.raises(InputError, match=r"is empty, CSV needs a header row"):
        list(read_records(write(tmp_path / "a.csv", "")))


def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl: there is no such file; check the path$"):
        list(read_records(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match=r"is a directory; give one of its files$"):
        list(read_records(tmp_path))
    with pytest.raises(InputError, match=r"a\\x00b: cannot be opened"):
        list(read_records("a\0b"))


def test_a_file_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list(read_records(tmp_path / "a\x1b[31m\n.jsonl"))
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_input_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        list(read_records(path))


def test_a_disk_that_fails_is_an_input_error() -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="reading failed"):
        list(read_records(Failing(), format="jsonl"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "trailing"])
def test_broken_gzip_is_an_error_after_the_records_before_it(tmp_path: Path, damage: str) -> None:
    rows = jsonl(*({"id": i, "text": os.urandom(200).hex()} for i in range(500)))
    packed = bytearray(gzip.compress(rows))
    if damage == "cut":
        del packed[-len(packed) // 3 :]
    elif damage == "flipped":
        packed[-6] ^= 0xFF
    else:
        packed += b"garbage that is not gzip"
    stream = read_records(write(tmp_path / "a.jsonl.gz", bytes(packed)))
    got: list[Record | Failure] = []
    with pytest.raises(InputError, match="gzip data is broken or cut short"):
        got.extend(stream)  # extend keeps what came before the error
    assert len(got) > 250
    assert all(isinstance(record, Record) for record in got)


def test_a_gzip_inside_a_gzip_is_not_guessed_at(tmp_path: Path) -> None:
    twice = gzip.compress(gzip.compress(b'{"text": "a"}\n'))
    with pytest.raises(InputError, match="format is not recognised"):
        list(read_records(write(tmp_path / "a.gz", twice)))


def test_limit_counts_bad_records_too() -> None:
    assert len(read(b"x\n" + jsonl({"text": "a"}, {"text": "b"}), limit=2)) == 2
    assert read(jsonl({"text": "a"}), limit=0) == []


def test_a_stream_that_was_passed_in_stays_open() -> None:
    stream = io.BytesIO(jsonl({"text": "a"}))
    list(read_records(stream))
    assert not stream.closed


def test_stdin_is_read_as_its_lines_come(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as stdin, open(writer, "wb", buffering=0) as out:
        monkeypatch.setattr("sys.stdin", stdin)
        stream = read_records("-")
        out.write(jsonl({"text": "a"}))
        assert text_of(next(stream)) == "a"  # would hang if it waited for a full buffer
        out.write(b"x\n")
        bad = next(stream)
        assert isinstance(bad, Failure) and bad.message.startswith("<stdin>:2: ")
        out.close()
        assert list(stream) == []


# ---------------------------------------------------------------- CSV


def test_csv_reads_its_columns(tmp_path: Path) -> None:
    data = 'id,prompt,response,labels\n7,"a, ""b""\r\nc",,S1;S2\n8,p,r,"[""S3""]"\n\n9,p,r,\n'
    one, two, three = read_records(write(tmp_path / "a.csv", data))
    assert isinstance(one, Record) and isinstance(two, Record) and isinstance(three, Record)
    assert one == Record((Message("user", 'a, "b"\r\nc'),), "7", 2)
    assert (two.line, len(two.messages), three.line) == (4, 2, 6)


def test_csv_has_messages_as_json(tmp_path: Path) -> None:
    cell = json.dumps([{"role": "user", "content": "hi"}]).replace('"', '""')
    good, bad, empty = read_records(write(tmp_path / "a.csv", f'messages\n"{cell}"\n[{{\n""\n'))
    assert text_of(good) == "hi"
    assert isinstance(bad, Failure) and bad.kind == "invalid_json"
    assert isinstance(empty, Failure) and empty.kind == "empty_text"


def test_tsv_is_csv_with_tabs(tmp_path: Path) -> None:
    (record,) = read_records(write(tmp_path / "a.tsv", 'id\ttext\n1\t"a\tb"\n'))
    assert text_of(record) == "a\tb"


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (
            "hello,world\n",
            r'"text" is missing; .*; the columns are "hello", "world"',
        ),
        ("id,text,text\n", r'column "text" is there twice'),
        ('"text\n', r"header row cannot be read"),
        (b"text,\xff\n", r'header row cannot be read: .* is not UTF-8: byte 1 is 0xff; in cp1252 it reads "ÿ"'),
        ("id,text\r1,a\r", r"end in CR alone"),
    ],
)
def test_csv_without_a_usable_header_is_an_input_error(tmp_path: Path, header: bytes | str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        list(read_records(write(tmp_path / "a.csv", header)))


def test_csv_text_field_must_be_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "body,text\nb,t\n,t\n")
    good, bad = read_records(path, fields=Fields(text="body"))
    assert text_of(good) == "b"
    assert isinstance(bad, Failure) and bad.kind == "empty_text"
    with pytest.raises(InputError, match=r'"tweet" is missing; .*the columns are "body", "text"'):
        list(read_records(path, fields=Fields(text="tweet")))


@pytest.mark.parametrize(
    ("row", "kind", "bad_id"),
    [
        (b"1,a,b", "invalid_type", None),
        (b"1", "invalid_type", None),
        (b"1,\xff", "invalid_utf8", "1"),
        (b'1,"a"b', "invalid_csv", None),
        (b"1,", "empty_text", "1"),
        (b"1,a\0b", "invalid_text", "1"),
        (b"1," + b"x" * (16 * 2**20), "too_large", None),
        (b'1,"' + b"x" * 2**20 + b"\n" + b"x\n" * 9 + (b"x" * 2**20 + b"\n") * 17 + b'"', "too_large", None),
    ],
)
def test_a_bad_csv_row_is_reported_and_the_next_one_read(row: bytes, kind: str, bad_id: str | None) -> None:
    bad, good = read(b"id,text\n" + row + b"\n2,good\n", format="csv")
    assert isinstance(bad, Failure)
    assert (bad.kind, bad.id, bad.line) == (kind, bad_id, 2)
    assert text_of(good) == "good"


def test_a_quote_that_is_never_closed_is_one_bad_row() -> None:
    good, bad = read('text\na\n"b\nc\n', format="csv")
    assert text_of(good) == "a"
    assert isinstance(bad, Failure) and (bad.kind, bad.line) == ("invalid_csv", 3)


def test_csv_takes_texts_longer_than_the_csv_modules_limit() -> None:
    (record,) = read("text\n" + "x" * 200_000, format="csv")
    assert len(text_of(record)) == 200_000


# ---------------------------------------------------------------- Parquet


def parquet(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


def test_parquet_reads_its_columns_with_row_numbers(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "hi"}], None, None]
    data = parquet(
        id=[1, 2, None], messages=messages, text=[None, "t", None], labels=[["S1"], [], None], other=[1.0] * 3
    )
    one, two, bad = read_records(write(tmp_path / "a.parquet", data))
    assert one == Record((Message("user", "hi"),), 1, 1)
    assert two == Record((Message("user", "t"),), 2, 2)
    assert isinstance(bad, Failure) and (bad.kind, bad.line) == ("missing_field", 3)
    assert ".parquet:3: " in bad.message


def test_parquet_comes_through_a_pipe_and_through_gzip(tmp_path: Path) -> None:
    data = parquet(text=["a", "b", "c"])
    reader, writer = os.pipe()
    with open(writer, "wb") as out:
        out.write(data)
    with open(reader, "rb") as stdin:
        assert [text_of(r) for r in read_records(stdin)] == ["a", "b", "c"]
    packed = write(tmp_path / "a.parquet.gz", gzip.compress(data))
    assert [text_of(r) for r in read_records(packed)] == ["a", "b", "c"]


def test_broken_parquet_is_an_input_error(tmp_path: Path) -> None:
    for data in (b"", b"PAR1", parquet(text=["a"])[:-20]):
        with pytest.raises(InputError, match="Parquet data is broken or cut short"):
            list(read_records(write(tmp_path / "a.parquet", data), format="parquet"))
    with pytest.raises(InputError, match=r'"text" is missing; .*; "body" looks like the text'):
        list(read_records(write(tmp_path / "a.parquet", parquet(body=["a"]))))


def test_parquet_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff", b"c"])
    column = pa.Array.from_buffers(pa.string(), 3, raw.buffers())  # pyarrow does not check here
    out = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2, 3], "text": column}), out)
    good, bad, last = read(out.getvalue(), format="parquet")
    assert (text_of(good), text_of(last)) == ("a", "c")
    assert isinstance(bad, Failure) and (bad.kind, bad.id) == ("invalid_utf8", 2)


def test_without_pyarrow_parquet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'edgeguard\[parquet\]'"):
        read(b"PAR1", format=None)


# ---------------------------------------------------------------- Python, counting, round trips


def test_make_record_checks_texts_mappings_and_records() -> None:
    assert make_record("hello").messages == (Message("user", "hello"),)
    assert make_record({"body": "b", "id": 3}, fields=Fields(text="body")) == Record((Message("user", "b"),), 3)
    own = Record((Message("human", "a"), Message("assistant", "b")), "x", 7)
    assert make_record(own) == Record((Message("user", "a"), Message("assistant", "b")), "x", 7)
    with pytest.raises(RecordError, match=r'^"text" is "", expected some text$'):
        make_record("")
    with pytest.raises(RecordError, match="wizard") as caught:
        make_record({"messages": [{"role": "wizard", "content": "c"}]}, line=3)
    assert caught.value.kind == "unknown_role"
    with pytest.raises(RecordError, match='"text" is missing'):
        make_record({1: "a", None: "b"})  # Python's mappings have keys that JSON's have not
    for value in (None, ["a"], 3):
        with pytest.raises(TypeError, match="is no record; give a text, a mapping or a Record"):
            make_record(value)


def test_a_record_made_by_hand_is_checked_once_and_a_copy_of_it_again() -> None:
    own = Record((Message("user", "a"),))
    made = make_record(own)
    assert not own.checked and made.checked and make_record(made) is made
    copy = replace(made, messages=(Message("user", "a\0b"),))
    assert not copy.checked
    with pytest.raises(RecordError, match="NUL"):
        make_record(copy)


def test_count_is_the_number_of_records_or_none(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\nx\n{"text": "b"}')
    assert count_records(lines) == len(list(read_records(lines))) == 3
    table = write(tmp_path / "a.csv", 'id,text\n1,"a\n\nb"\n\n2,c\n')
    assert count_records(table) == len(list(read_records(table))) == 2
    assert count_records(write(tmp_path / "a.parquet", parquet(text=["a", "b", "c"]))) == 3
    assert count_records(write(tmp_path / "a.gz", gzip.compress(jsonl({"text": "a"})))) is None
    assert count_records("-") is None
    os.mkfifo(tmp_path / "pipe")
    assert count_records(tmp_path / "pipe") is None
    with pytest.raises(InputError, match="no such file"):
        count_records(tmp_path / "no.jsonl")


@given(st.lists(TEXTS, max_size=8))
def test_texts_written_as_jsonl_are_read_back(texts: list[str]) -> None:
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    assert [text_of(r) for r in read("\n".join(rows))] == texts


@given(st.lists(TEXTS, max_size=8), st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_texts_written_as_csv_are_read_back(texts: list[str], dialect: tuple[str, str]) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=dialect[1], quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    assert [text_of(r) for r in read(out.getvalue(), format=dialect[0])] == texts


@given(st.lists(TEXTS, max_size=8))
def test_texts_written_as_parquet_are_read_back(texts: list[str]) -> None:
    data = parquet(text=pa.array(texts, pa.string()))
    assert [text_of(r) for r in read(data, format=None)] == texts


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv", "parquet", None]))
def test_any_bytes_give_records_or_an_input_error(data: bytes, format: str | None) -> None:
    for prefix in (b"", b"id,text\n", b'{"text": '):
        try:
            for record in read(prefix + data, format=format):
                assert isinstance(record, Record) or record.message.isprintable()
        except InputError as error:
            assert str(error).startswith("<stdin>")
