"""Files as people have them: a small one of every kind, compression, encoding and shape of record."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeguard
from edgeguard.errors import InputError
from edgeguard.rows import shapes
from edgeguard.rows.judging import judged
from edgeguard.rows.readers import Reading, count_records, peeked, read_fields, read_records
from edgeguard.rows.record import Failure, Message, Record
from edgeguard.rows.shapes import Fields

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    str.strip
)


def zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        from backports import zstd as module
    packed: bytes = module.compress(data)
    return packed


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def read(data: bytes | str, **options: Any) -> list[Record | Failure]:
    return list(read_records(io.BytesIO(data.encode() if isinstance(data, str) else data), **options))


def said(record: Record | Failure) -> str:
    assert isinstance(record, Record), record
    return " ".join(f"{message.role[0]}:{message.content}" for message in record.messages)


def only(data: bytes | str, **options: Any) -> Record | Failure:
    (record,) = read(data, **options)
    return record


# ---------------------------------------------------------------- compression and encodings


@pytest.mark.parametrize("ending", PACKINGS)
@pytest.mark.parametrize(
    "data",
    [
        jsonl({"text": "a"}, {"text": "b"}),
        json.dumps([{"text": "a"}, {"text": "b"}]).encode(),
        b"id,text\n1,a\n2,b\n",
        parquet(text=["a", "b"]),
    ],
)
def test_every_compression_is_told_by_content(tmp_path: Path, ending: str, data: bytes) -> None:
    name = "in.csv" if data.startswith(b"id") else "in"
    packed = write(tmp_path / f"{name}{ending}", PACKINGS[ending](data))
    assert [said(record) for record in read_records(packed)] == ["u:a", "u:b"]
    assert count_records(packed) is None
    assert [said(record) for record in read(PACKINGS[ending](jsonl({"text": "c"})))] == ["u:c"]  # without a name


@pytest.mark.parametrize("ending", PACKINGS)
def test_a_compressed_file_cut_short_is_an_error_after_the_records_before_it(ending: str) -> None:
    rows = jsonl(*({"id": i, "text": f"{i * 7919 % 10007} {i * 104729}"} for i in range(40_000)))
    packed = PACKINGS[ending](rows)
    got: list[Record | Failure] = []
    with pytest.raises(InputError, match=r"data is broken or cut short"):
        got.extend(read_records(io.BytesIO(packed[: -len(packed) // 4])))
    assert len(got) < 40_000 and all(isinstance(record, Record) for record in got[:-1])


@pytest.mark.parametrize("ending", PACKINGS)
def test_compressed_parts_one_after_the_other_are_one_file(ending: str) -> None:
    parts = PACKINGS[ending](jsonl({"text": "a"})) + PACKINGS[ending](jsonl({"text": "b"}))
    assert [said(record) for record in read(parts)] == ["u:a", "u:b"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd is in the standard library")
def test_without_its_library_zstd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(jsonl({"text": "a"}))
    monkeypatch.delattr("backports.zstd")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(InputError, match=r"pip install 'edgeguard\[zstd\]'"):
        read(packed)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    # PowerShell's `>` writes UTF-16.
    text = '{"text": "Grüße, 漢字 😀"}\r\n{"text": "b"}\r\n'
    for data in (text.encode(encoding), gzip.compress(text.encode(encoding))):
        assert [said(record) for record in read(data)] == ["u:Grüße, 漢字 😀", "u:b"]
    table = write(tmp_path / "in.csv", "id;text\n1;Grüße\n".encode(encoding))
    assert [said(record) for record in read_records(table)] == ["u:Grüße"]
    assert count_records(table) == 1
    assert [said(r) for r in read("\ufefftext\nä\n".encode("utf-16-be"), format="csv")] == ["u:ä"]


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["utf-16", "utf-32", "gb18030", "utf-8-sig"]))
def test_text_in_another_encoding_is_the_same_text(texts: list[str], encoding: str) -> None:
    data = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode(encoding)
    assert [said(record) for record in read(data, format="jsonl", encoding=encoding)] == [f"u:{text}" for text in texts]


def test_bytes_that_are_no_text_in_the_encoding_that_was_named_spoil_their_own_record() -> None:
    bad, good = read(b'{"text": "na\xefve \x81"}\n{"text": "na\xefve"}\n', encoding="cp1252")
    assert isinstance(bad, Failure) and bad.kind == "invalid_encoding"
    assert "is not cp1252 at character 17" in bad.message
    assert said(good) == "u:naïve"
    pair, good = read('{"text": "a"}\n{"text": "b"}\n'.replace("a", "\ud800").encode("utf-16", "surrogatepass"))
    assert isinstance(pair, Failure) and pair.kind == "invalid_encoding" and said(good) == "u:b"
    with pytest.raises(InputError, match="is not utf-16"):
        read('{"text": "a"}'.encode("utf-16")[:-1])


def test_an_encoding_that_python_has_not_is_a_value_error() -> None:
    for name in ("latin-0", "base64", ""):
        with pytest.raises(ValueError, match="expected one that Python has"):
            read(b"", encoding=name)


def test_windows_1252_is_shown_as_a_person_reads_it_and_named(tmp_path: Path) -> None:
    # The byte came out as \udcf6.
    (bad,) = read_records(write(tmp_path / "a.csv", "id;text\n1;schön und größer\n".encode("cp1252")))
    assert isinstance(bad, Failure) and (bad.kind, bad.id) == ("invalid_utf8", "1")
    assert 'byte 4 is 0xf6; in cp1252 it reads "schön und größer"' in bad.message
    line = only('{"text": "schön"}'.encode("cp1252"))
    assert isinstance(line, Failure) and "in cp1252 it reads" in line.message and "schön" in line.message
    with pytest.raises(InputError, match='in cp1252 it reads "Größe"') as caught:
        list(read_records(write(tmp_path / "b.csv", "text;Größe\na;b\n".encode("cp1252"))))
    assert caught.value.data["encoding"] == "cp1252"
    good = read("id;text\n1;schön\n".encode("cp1252"), format="csv", encoding="windows-1252")
    assert [said(record) for record in good] == ["u:schön"]


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(delimiter: str) -> None:
    data = f'id{delimiter}"te""xt"{delimiter}text\n1{delimiter}x{delimiter}"a,b;c|d"\n'
    assert said(only(data, format="csv")) == "u:a,b;c|d"


def test_one_column_needs_no_delimiter() -> None:
    assert [said(r) for r in read("text\na;b\nc|d\n", format="csv")] == ["u:a;b", "u:c|d"]


def test_excels_own_first_line_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbfsep=;\r\nid;text\r\n1;a\r\n\r\n2;b\r\n")
    assert [(said(record), record.line) for record in read_records(path)] == [("u:a", 3), ("u:b", 5)]
    assert count_records(path) == 2


@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([";", "\t", "|"]))
def test_texts_are_read_back_whatever_the_delimiter(texts: list[str], delimiter: str) -> None:
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    data = f"id{delimiter}text\n" + "".join(f"{i}{delimiter}{cell}\n" for i, cell in enumerate(cells))
    assert [said(record) for record in read(data, format="csv")] == [f"u:{text}" for text in texts]


# ---------------------------------------------------------------- JSON arrays


@given(
    st.lists(st.dictionaries(st.sampled_from(["text", "a", "]}"]), TEXTS | st.just('\\",]}') | st.lists(TEXTS))),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_an_array_holds_what_its_elements_hold_as_lines(
    rows: list[dict[str, Any]], indent: int | str | None, ascii: bool
) -> None:
    array = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode()
    in_lines = [fields for _, fields in read_fields(io.BytesIO(jsonl(*rows)), format="jsonl")]
    assert [fields for _, fields in read_fields(io.BytesIO(array), format="json")] == in_lines == rows


def test_a_damaged_element_is_one_failure_with_its_line_and_the_next_one_is_read() -> None:
    data = '[\n  {"text": "a"},\n  {"text": oops},\n\n  7, "b,]",\n  {"text": "\\"}]"}\n]\n'
    found = read(data)
    assert [(r.kind if isinstance(r, Failure) else said(r), r.line) for r in found] == [
        ("u:a", 2),
        ("invalid_json", 3),
        ("invalid_type", 5),
        ("invalid_type", 5),
        ('u:"}]', 6),
    ]
    assert isinstance(found[1], Failure) and found[1].message.startswith("<stdin>:3: the element is not JSON")


def test_an_element_over_16_mib_is_one_failure() -> None:
    found = read(b'[{"text": "' + b"x" * (16 * 2**20) + b'"}, {"text": "b"}]')
    assert [r.kind if isinstance(r, Failure) else said(r) for r in found] == ["too_large", "u:b"]


@pytest.mark.parametrize("data", ["[]", " [ ] \n", "[{}", '[{"text": "a"}', '[{"text": "a"}, {"te', '["', "["])
def test_an_array_that_breaks_off_is_an_error_after_its_elements(data: str) -> None:
    if data.strip().endswith("]"):
        assert read(data) == []
        return
    with pytest.raises(InputError, match="the JSON array breaks off, its closing ] is missing"):
        read(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[{"text": "a"}]\n[{"text": "b"}]', r"goes on behind the array's closing \]"),
        (
            '{\n "data": [\n  {"text": "a"}\n ]\n}',
            r"""one JSON object with a list under "data", .* jq '\.\["data"\]'""",
        ),
    ],
)
def test_what_is_no_one_array_says_what_to_do(data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(data)
    with pytest.raises(InputError, match="is no JSON array"):
        read('{"text": "a"}', format="json")


def test_a_file_named_jsonl_holds_lines_whatever_they_are(tmp_path: Path) -> None:
    (bad,) = read_records(write(tmp_path / "a.jsonl", '[{"text": "a"}]\n'))
    assert isinstance(bad, Failure) and bad.kind == "invalid_type"
    array = write(tmp_path / "a.json", '[{"text": "a"},\n{"text": "b"}]')
    assert count_records(array) == len(list(read_records(array))) == 2


class Streamed(io.RawIOBase):
    """A stream of bytes that are made as they are read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self.rest = self.rest or next(self.chunks, b"")
        data, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def test_a_large_array_on_one_line_takes_no_memory() -> None:
    element = json.dumps({"text": "How long do I boil an egg? " * 40}).encode()
    n = 20_000  # 20 MB
    parts = itertools.chain([b"["], itertools.repeat(element + b", ", n - 1), [element, b"]"])
    tracemalloc.start()
    try:
        found = sum(isinstance(record, Record) for record in read_records(Streamed(parts)))  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == n
    assert peak < n * len(element) / 20


# ---------------------------------------------------------------- shapes of records


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "u:a a:b"),
        ({"conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "u:a a:b"),
        ({"custom_id": "7", "body": {"model": "m", "messages": [{"role": "user", "content": "a"}]}}, "u:a"),
        ({"custom_id": "7", "body": {"model": "m", "input": "a"}}, "u:a"),
        ({"custom_id": "7", "body": {"model": "m", "input": ["a"]}}, "u:a"),
        ({"custom_id": "7", "body": {"input": [{"role": "user", "content": "a"}]}}, "u:a"),
        (
            {"body": {"input": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}},
            "u:a",
        ),
    ],
)
def test_logs_of_other_makers_are_read(fields: dict[str, Any], expected: str) -> None:
    record = only(jsonl(fields))
    assert said(record) == expected
    assert record.id == fields.get("custom_id")


def test_a_batch_request_of_several_texts_is_an_error_for_one_record_is_one_row() -> None:
    several = only(jsonl({"custom_id": "7", "body": {"input": ["a", "b"]}}))
    assert isinstance(several, Failure) and (several.kind, several.id) == ("several_texts", "7")
    nothing = only(jsonl({"custom_id": "7", "body": {"model": "m"}}))
    assert isinstance(nothing, Failure) and nothing.kind == "missing_field"


def test_a_field_called_conversation_may_be_no_chat() -> None:
    assert said(only(jsonl({"text": "a", "conversation": "c-17", "conversations": 3}))) == "u:a"
    alone = only(jsonl({"conversation": "c-17"}))
    assert isinstance(alone, Failure) and alone.kind == "missing_field"
    both = only(jsonl({"text": "a", "conversation": [{"from": "human", "value": "b"}]}))
    assert isinstance(both, Failure) and both.kind == "ambiguous"


def test_sharegpt_comes_in_parquet_too() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert said(only(parquet(conversations=[turns], other=[1]))) == "u:a a:b"


TOXIC_CHAT = {"conv_id": "c1", "user_input": "a", "model_output": "b", "toxicity": 0}
PAIR = Fields(prompt="user_input", response="model_output", id="conv_id")


@pytest.mark.parametrize(
    "data",
    [
        jsonl(TOXIC_CHAT),
        json.dumps([TOXIC_CHAT]).encode(),
        b"conv_id,user_input,model_output,toxicity\nc1,a,b,0\n",
        parquet(**{name: [value] for name, value in TOXIC_CHAT.items()}),
    ],
)
def test_fields_of_other_names_are_named(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / ("in.csv" if data.startswith(b"conv") else "in"), data)
    (record,) = read_records(path, fields=PAIR)
    assert (said(record), record.id) == ("u:a a:b", "c1")
    (alone,) = read_records(path, fields=Fields(text="user_input"))
    assert said(alone) == "u:a"


def test_a_dot_reaches_into_objects_and_a_name_with_a_dot_goes_first() -> None:
    nested = {"meta": {"key": 3}, "turn": {"in": "a", "out": None}}
    found = only(jsonl(nested), fields=Fields(prompt="turn.in", response="turn.out", id="meta.key"))
    assert (said(found), found.id) == ("u:a", 3)
    assert said(only(jsonl({"a.b": "x", "a": {"b": "y"}}), fields=Fields(text="a.b"))) == "u:x"
    assert said(only(parquet(turn=[{"in": "a"}], noise=[1]), fields=Fields(text="turn.in"))) == "u:a"
    chat = {"log": {"turns": [{"from": "human", "value": "a"}]}}
    assert said(only(jsonl(chat), fields=Fields(messages="log.turns"))) == "u:a"


@pytest.mark.parametrize("fields", [{"text": "a", "prompt": "b"}, {"text": "a", "messages": "b"}])
def test_two_kinds_of_content_cannot_be_named(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="names two kinds of content"):
        Fields(**fields)


@pytest.mark.parametrize(
    ("columns", "fields", "kind", "data"),
    [
        (["id", "comment_text"], Fields(), "unnamed_field", {"field": "text", "name": "comment_text"}),
        (["id", "Text"], Fields(), "unnamed_field", {"field": "text", "name": "Text"}),
        (
            ["user_input", "model_output"],
            Fields(),
            "unnamed_pair",
            {"prompt": "user_input", "response": "model_output"},
        ),
        (["prompt", "completion"], Fields(), "unnamed_field", {"field": "response", "name": "completion"}),
        (["q", "completion"], Fields(prompt="q"), "unnamed_field", {"field": "response", "name": "completion"}),
        (["question", "response"], Fields(), "unnamed_pair", {"prompt": "question", "response": "response"}),
        (["text", "x"], Fields(text="txet"), "no_such_field", {}),
        (["text", "x"], Fields(id="ID"), "no_such_field", {}),
    ],
)
def test_a_field_that_looks_like_the_one_meant_is_named_before_anything_is_scored(
    tmp_path: Path, columns: list[str], fields: Fields, kind: str, data: dict[str, str]
) -> None:
    # The completion of a prompt was left out in silence.
    table = write(tmp_path / "a.csv", ",".join(columns) + "\n" + ",".join("v" for _ in columns) + "\n")
    lines = write(tmp_path / "a.jsonl", jsonl(dict.fromkeys(columns, "v")))
    typed = write(tmp_path / "a.parquet", parquet(**{name: ["v"] for name in columns}))
    for path in (table, lines, typed):
        with pytest.raises(InputError) as caught:
            peeked(read_records(path, fields=fields))
        assert (caught.value.kind, caught.value.data) == (kind, data)
        with pytest.raises(InputError):
            Reading(fields=fields).check(path)


def test_peeking_loses_no_record_and_one_good_one_is_enough() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"text": "c"}, {"prompt": "d", "completion": "e"}]
    found = list(peeked(read_records(io.BytesIO(jsonl(*rows)))))
    assert [type(record) for record in found] == [Failure, Record, Failure]
    assert [r.kind for r in found if isinstance(r, Failure)] == ["unnamed_field"] * 2
    assert list(peeked(read_records(io.BytesIO(b"")))) == []
    (bad,) = peeked(read_records(io.BytesIO(b'{"id": 1}\n')))  # a record that lacks its text is one failed record
    assert isinstance(bad, Failure) and bad.kind == "missing_field"


# ---------------------------------------------------------------- documentation


def documented() -> list[tuple[str, str]]:
    """(format, text) of each file that docs/inputs.md shows."""
    text = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text(encoding="utf-8")
    return re.findall(r"^```(jsonl|json|csv)\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.parametrize(("format", "text"), documented())
def test_every_file_of_the_documentation_is_read(tmp_path: Path, format: str, text: str) -> None:
    records = list(read_records(write(tmp_path / f"in.{format}", text)))
    assert records and all(isinstance(record, Record) for record in records)


# ---------------------------------------------------------------- raw fields, and the loop


def test_the_fields_of_records_are_given_as_they_are() -> None:
    (first, second) = read_fields(io.BytesIO(b"S;H;text\n1;;a\n0;1\n"), format="csv")
    assert first == (2, {"S": "1", "H": "", "text": "a"})
    assert isinstance(second[1], Failure) and (second[0], second[1].kind) == (3, "invalid_type")
    assert list(read_fields(io.BytesIO(jsonl({"x": {"y": 1}})))) == [(1, {"x": {"y": 1}})]
    table = parquet(labels=[{"a": True}], text=["t"])
    assert list(read_fields(io.BytesIO(table), names={"labels"})) == [(1, {"labels": {"a": True}})]


def test_a_record_is_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was three times: 30 for 10 records.
    calls = []
    real = shapes._conversation
    monkeypatch.setattr(shapes, "_conversation", lambda *args, **kw: calls.append(args) or real(*args, **kw))
    source = io.BytesIO(jsonl(*({"text": f"t{i}"} for i in range(10))))
    results = [result for _, result in judged(read_records(source), lambda record: shapes.make_record(record).messages)]
    assert len(results) == len(calls) == 10


def test_one_in_one_out_in_order_and_what_cannot_be_judged_fails_in_its_place() -> None:
    def judge(record: Record) -> str:
        if record.messages[0].content == "no":
            raise edgeguard.RecordError("will not", kind="refused")
        return record.messages[0].content.upper()

    bad = Failure("x", "invalid_json", "a.jsonl:1: no", 1)
    given: list[Any] = ["a", bad, {"id": 7, "text": "no"}, None, ["b"], {"id": "e", "text": ""}, "c"]
    found = list(judged(given, judge, where="a.jsonl"))
    assert [result if isinstance(result, str) else (result.id, result.kind) for _, result in found] == [
        "A",
        ("x", "invalid_json"),
        (7, "refused"),
        (None, "invalid_type"),
        (None, "invalid_type"),
        ("e", "empty_text"),
        "C",
    ]
    assert found[2][0] == Record((Message("user", "no"),), 7)
    assert all(isinstance(record, Failure) == (i in (1, 3, 4, 5)) for i, (record, _) in enumerate(found))
    (_, failed) = next(judged([Record((Message("user", "no"),), line=3)], judge, where="a.jsonl"))
    assert isinstance(failed, Failure) and (failed.message, failed.line) == ("a.jsonl:3: will not", 3)
