"""What `edgeguard score` wrote, read back."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_output import LABELS, failure, score, write_all

from edgeguard.errors import InputError
from edgeguard.rows.results import holds_results, read_rows
from edgeguard.rows.schema import KEYS, columns, flatten, labels_of, typed, types_of, unflatten

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('",\n\r;='))
LONG = 'x,"\n\u2028漢' * 33_333
IDS = st.none() | st.integers(-9, 9) | TEXTS
PROBS = st.floats(0, 1)


@st.composite
def scores(draw: st.DrawFn) -> dict[str, Any]:
    bounds = {label: sorted(draw(st.tuples(PROBS, PROBS))) for label in ("unsafe", *LABELS)}
    categories = draw(st.lists(st.sampled_from(["S1", "S2"]), unique=True))
    changes = {
        "category_scores": {label: draw(PROBS) for label in LABELS if "=" not in label},
        "fields": {"refusal": {"yes": draw(PROBS), "no": draw(PROBS)}},
        "skipped": draw(st.integers(0, 9)),
        "window": draw(st.none() | st.just({"number": 2, "of": 3, "begin": 900, "end": 2**40})),
    }
    return score(draw(IDS), draw(PROBS), bounds=bounds, categories=categories, **changes)


ROWS = st.lists(scores() | st.builds(failure, IDS, TEXTS, st.integers(0, 99)), min_size=1, max_size=4)


def with_flat_id(row: dict[str, Any], ending: str) -> dict[str, Any]:
    """As CSV and Parquet have it: ids are strings, and CSV has no empty text."""
    flat = {**row, "id": None if row["id"] is None else str(row["id"])}
    if ending == "csv":
        flat["id"] = flat["id"] or None
        if "error" in row:
            flat["error"] = {**row["error"], "message": row["error"]["message"] or None}
    return flat


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@given(rows=ROWS)
@settings(deadline=None)  # files
def test_what_was_written_is_read_back(rows: list[dict[str, Any]], ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"out.{ending}")
        write_all(path, rows, ending)
        assert holds_results(path)
        assert list(read_rows(path)) == (rows if ending == "jsonl" else [with_flat_id(r, ending) for r in rows])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_id_of_200_000_characters_is_read_back(tmp_path: Path, ending: str) -> None:
    # csv.DictReader refused such a cell, which edgeguard itself had written.
    rows = [score(LONG), failure("x" * 200_000)]
    write_all(tmp_path / "out", rows, ending)
    assert list(read_rows(tmp_path / "out")) == rows


@given(scores() | st.builds(failure, TEXTS, TEXTS, st.integers(0, 99)))
def test_unflatten_is_the_inverse_of_flatten(row: dict[str, Any]) -> None:
    flat = flatten(row, LABELS)
    assert list(flat) == columns(LABELS) and labels_of([*flat]) == tuple(LABELS)
    assert unflatten(flat) == with_flat_id(row, "parquet")


def test_a_scored_row_has_the_schemas_keys_in_order() -> None:
    assert tuple(score(1)) == KEYS
    assert set(types_of(LABELS).values()) == {"string", "double", "bool", "int64"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_results_may_be_compressed(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    write_all(tmp_path / "out", [score("a"), failure("b")], ending)
    packed = tmp_path / "packed"
    packed.write_bytes(pack((tmp_path / "out").read_bytes()))
    assert holds_results(packed)
    assert [row["id"] for row in read_rows(packed)] == ["a", "b"]


def test_a_table_that_a_spreadsheet_saved_again_is_read_back(tmp_path: Path) -> None:
    write_all(tmp_path / "out.csv", [score("a", 0.75)], "csv")
    saved = (tmp_path / "out.csv").read_text().replace(",", ";").replace("S1;S2;", '"S1;S2";').replace("true", "TRUE")
    (tmp_path / "out.csv").write_bytes(b"\xef\xbb\xbf" + saved.replace("\n", "\r\n").encode())
    assert list(read_rows(tmp_path / "out.csv")) == [score("a", 0.75)]


def test_rows_of_before_there_were_skipped_and_window_are_read(tmp_path: Path) -> None:
    old = {key: value for key, value in score("a").items() if key not in ("skipped", "window")}
    write_all(tmp_path / "out", [old], "jsonl")
    assert list(read_rows(tmp_path / "out")) == [old]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unsafe": "1,5"}, "out.csv:2: unsafe is '1,5'; expected a number"),
        ({"calibrated": "perhaps"}, "out.csv:2: calibrated is 'perhaps'; expected true or false"),
        ({"score_S1": ""}, "out.csv:2: S1 is None; expected a probability"),
        ({"margin": ""}, "out.csv:2: has no margin"),
    ],
)
def test_a_cell_that_is_no_value_is_named_with_its_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_all(tmp_path / "out.csv", [score("a")], "csv")
    header, row = (line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines())
    cells = dict(zip(header, row, strict=True)) | {k: f'"{v}"' for k, v in changes.items()}
    (tmp_path / "out.csv").write_text("\n".join((",".join(header), ",".join(cells.values()), "")))
    with pytest.raises(InputError) as caught:
        list(read_rows(tmp_path / "out.csv"))
    assert message in str(caught.value)


def test_cells_that_are_not_of_the_schema_stay_text() -> None:
    assert typed({"id": "007", "note": "1.5", "unsafe": "0.5", "flagged": "", "tokens_answer": "3"}) == {
        "id": "007",
        "note": "1.5",
        "unsafe": 0.5,
        "flagged": None,
        "tokens_answer": 3,
    }
