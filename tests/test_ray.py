"""Ray: the bits of one machine, in order; and nothing is lost or doubled with an actor or a driver that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, RunProcess
from processes import children, gone, until
from test_cli import jsonl, one_line

pytest.importorskip("ray", reason="the extra `ray` is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from edgeguard import Fields, Guard, InputError, read_records
from edgeguard.errors import OutputError
from edgeguard.ray import score_dataset
from edgeguard.ray.cluster import cluster
from edgeguard.ray.places import input_files, place_of
from edgeguard.ray.run import Outcome, RayRun, score_files
from edgeguard.ray.scorer import GuardJob
from edgeguard.rows.judging import judged
from edgeguard.rows.schema import flatten

pytestmark = [  # Ray's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Tiny = tuple[str, ...]
MakePlan = Callable[..., RayRun]
ON_RAY = ("--ray", "--workers", "2")
TEXTS = [f"record {i}, {'word ' * (i * 37 % 150)}" for i in range(30)]
LINES = b"".join(  # very different costs, and records that are errors: no text, too long, not understood
    line + b"\n"
    for line in (
        *jsonl(TEXTS).splitlines()[:10],
        b'{"id": "empty", "text": ""}',
        b'{"id": "long", "text": "' + b"too long " * 3000 + b'"}',
        *jsonl(TEXTS).splitlines()[10:20],
        b"no JSON at all",
        b'{"id": "odd", "text": 7}',
        *jsonl(TEXTS).splitlines()[20:],
    )
)
WITH_ONE = ("--ray", "--workers", "1")


@pytest.fixture(scope="session")
def run(run_with_processes: Run) -> Run:
    return run_with_processes


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two actors' size, for the whole module: to start one takes seconds."""
    with cluster(None, cpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def job(tiny_model: Path, tiny_profile: Path) -> GuardJob:
    return GuardJob.of({"model": tiny_model, "profile": tiny_profile}, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    path.write_bytes(LINES)
    return path


@pytest.fixture
def make_plan(job: GuardJob, tmp_path: Path) -> MakePlan:
    def make(source: object, **options: Any) -> RayRun:
        options = {"actors": 2, "cores": 2, "batch_size": 4, "rows_per_file": 8, **options}
        return RayRun(str(source), tmp_path / "out", job, **options)

    return make


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records enough that a run has a middle."""
    path = tmp_path_factory.mktemp("input") / "many.jsonl"
    path.write_bytes(jsonl([f"record {i}, {'word ' * (i * 37 % 100)}" for i in range(240)]))
    return path


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in parts(folder))


def one_machine(guard: Guard, source: Path) -> list[dict[str, Any]]:
    """The rows, as the command line makes them."""
    return [result.row() for _, result in judged(read_records(source), guard.score, where=str(source))]


def by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["id"]))


# ------------------------------------------------------------ the same bits, in order


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_one_process_workers_and_ray_write_the_same_bytes(
    run: Run, ray: Any, tiny: Tiny, source: Path, tmp_path: Path, form: str
) -> None:
    alone = run("score", source, "-f", form, *tiny)
    workers = run("score", source, "-f", form, "--workers", 2, *tiny)
    actors = run("score", source, "-f", form, "-o", tmp_path / "out", *ON_RAY, *tiny)
    assert alone.stdout_bytes == workers.stdout_bytes == written(tmp_path / "out")
    assert alone.exit_code == workers.exit_code == actors.exit_code == 1
    assert actors.stdout_bytes == b""
    assert actors.stderr.split(", ")[:3] == alone.stderr.split(", ")[:3]
    assert actors.stderr.split(", ")[4:] == alone.stderr.split(", ")[4:]


def test_parquet_has_the_rows_of_one_process_in_every_file_of_a_folder(
    ray: Any, make_plan: MakePlan, tiny_guard: Guard, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "deeper" / "b.csv").write_text("id,text\n7,some words\n8,\n")
    (folder / "_SUCCESS").write_text("no records")
    (folder / ".hidden.jsonl").write_text("no records")
    outcome = score_files(make_plan(f"file://{folder}", format="parquet"))
    assert outcome.now.records == 36
    labels = (*tiny_guard.codes, *tiny_guard.field_labels)
    files = parts(tmp_path / "out")
    assert len(files) > 2 and (tmp_path / "out" / "_SUCCESS").is_file()
    found = pa.concat_tables([pq.read_table(path) for path in files]).to_pylist()
    expected = [row for name in ("a.jsonl", "deeper/b.csv") for row in one_machine(tiny_guard, folder / name)]
    assert [{**row, "error_message": None} for row in found] == [
        {**flatten(row, labels), "error_message": None} for row in expected
    ]
    assert [row["error_message"] for row in found if row["error_message"]] == [
        row["error"]["message"].replace(str(folder), f"file://{folder}") for row in expected if "error" in row
    ]


def test_nothing_in_is_nothing_out(ray: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"")
    assert score_files(make_plan(tmp_path / "in.jsonl", actors=1)).now.records == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_SUCCESS"]


# ------------------------------------------------------------ datasets


def test_a_dataset_has_a_row_for_each_record_and_keeps_what_it_is_told_to(
    ray: Any, tiny_model: Path, tiny_profile: Path, tiny_guard: Guard
) -> None:
    chat = [{"role": "user", "content": "Boil an egg"}]
    records = [
        *({"id": f"r{i}", "text": f"record {i}", "prompt": None, "messages": None} for i in range(12)),
        {"id": "empty", "text": " ", "prompt": None, "messages": None},
        {"id": "pair", "text": None, "prompt": "Boil an egg", "messages": None},
        {"id": "chat", "text": None, "prompt": None, "messages": chat},
        {"id": "both", "text": "a", "prompt": "b", "messages": None},
        {"id": "long", "text": "too long " * 3000, "prompt": None, "messages": None},
    ]
    table = pa.Table.from_pylist([{**record, "number": i} for i, record in enumerate(records)])
    scored = score_dataset(
        ray.data.from_arrow(table), tiny_model, profile=tiny_profile, num_actors=2, batch_size=3, keep=("number",)
    )
    scored.context.enable_progress_bars = False
    rows = scored.take_all()
    assert [row.pop("number") for row in rows] == list(range(len(records)))
    labels = (*tiny_guard.codes, *tiny_guard.field_labels)
    assert rows == [flatten(result.row(), labels) for result in tiny_guard.score_many(records)]
    assert [row["id"] for row in rows if row["error_type"]] == ["empty", "both", "long"]


def test_what_is_wrong_with_a_dataset_s_columns_is_said_at_once(ray: Any, tiny_model: Path) -> None:
    ds = ray.data.from_arrow(pa.table({"comment": ["a"], "n": [1]}))
    with pytest.raises(InputError, match=r"looks like the text.*the columns are comment, n"):
        score_dataset(ds, tiny_model)
    with pytest.raises(InputError, match='"nope" is missing'):
        score_dataset(ds, tiny_model, fields=Fields(text="nope"))
    with pytest.raises(ValueError, match="'m' is to be kept and is no column"):
        score_dataset(ds, tiny_model, fields=Fields(text="comment"), keep=("m",))
    with pytest.raises(ValueError, match="'unsafe' is to be kept, and rows have a column of that name"):
        score_dataset(ray.data.from_arrow(pa.table({"text": ["a"], "unsafe": [1]})), tiny_model, keep=("unsafe",))
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_dataset(ds, tiny_model, batch_size=0)


# ------------------------------------------------------------ who dies


def test_an_actor_killed_in_the_middle_loses_no_record(
    ray: Any, make_plan: MakePlan, tiny_guard: Guard, many: Path, tmp_path: Path
) -> None:
    outcomes: list[Outcome] = []
    running = threading.Thread(target=lambda: outcomes.append(score_files(make_plan(many))))
    running.start()
    until(lambda: len(parts(tmp_path / "out")) > 1)
    os.kill(next(filter(is_actor, descendants(os.getpid()))), signal.SIGKILL)
    running.join()
    assert outcomes[0].now.records == 240
    assert [json.loads(line) for line in written(tmp_path / "out").splitlines()] == one_machine(tiny_guard, many)


def test_a_driver_killed_and_started_again_loses_no_record_and_doubles_none(
    run: Run, ray: Any, tiny: Tiny, tiny_guard: Guard, many: Path, tmp_path: Path
) -> None:
    out, folders = tmp_path / "out", set(Path("/tmp").glob("edgeguard-ray-*"))
    arguments = [str(many), str(out), *tiny]
    code = (
        "import sys; from pathlib import Path; from edgeguard.ray.run import *;"
        "source, out, _, model, _, profile, *_ = sys.argv[1:];"
        "job = GuardJob.of({'model': Path(model), 'profile': Path(profile)}, 1);"
        "score_files(RayRun(source, out, job, actors=2, cores=2, batch_size=4, rows_per_file=8))"
    )
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL) as driver:
        until(lambda: len(parts(out)) > 2)
        started = descendants(driver.pid)
        actors = [pid for pid in started if is_actor(pid)]
        driver.kill()
    assert len(actors) == 2
    until(lambda: all(map(gone, actors)))
    for pid in started:  # two helpers of Ray's wait a minute, and would write to its folder
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not (out / "_SUCCESS").exists()
    again = ("score", many, "-o", out, *ON_RAY, *tiny)
    assert "exists already; --resume goes on" in one_line(run(*again).stderr)
    done = run(*again, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resumed)" in done.stderr
    rows = [json.loads(line) for line in written(out).splitlines()]
    assert by_id(rows) == by_id(one_machine(tiny_guard, many))
    assert (out / "_SUCCESS").is_file() and not out.with_name("out.partial").exists()
    for folder in set(Path("/tmp").glob("edgeguard-ray-*")) - folders:
        shutil.rmtree(folder)
    finished = written(out)
    assert run(*again, "--resume").stderr.startswith("0 records (and 240 resumed)")
    assert written(out) == finished


def is_actor(pid: int) -> bool:
    try:
        return b"ray::MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return False


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(below for child in found for below in descendants(child))]


# ------------------------------------------------------------ what is refused


def test_a_run_goes_on_with_the_same_model_and_input_only(
    run: Run, ray: Any, tiny: Tiny, tmp_path: Path, source: Path
) -> None:
    out, records = tmp_path / "out", tmp_path / "in.jsonl"
    records.write_bytes(jsonl(["one", "two"]))
    score = ("score", records, "-o", out, *WITH_ONE, *tiny)
    assert run(*score).exit_code == 0
    assert "estimator was marginal, is joint" in one_line(run(*score, "--resume", "-e", "joint").stderr)
    assert "format was jsonl, is csv" in one_line(run(*score, "--resume", "-f", "csv").stderr)
    assert "threshold was 0.5, is 0.7" in one_line(run(*score, "--resume", "--threshold", 0.7).stderr)
    records.write_bytes(jsonl(["one", "two", "three"]))
    assert "is not the output of this input" in one_line(run(*score, "--resume").stderr)
    assert run(*score, "--overwrite").exit_code == 0
    assert written(out).count(b"\n") == 3
    (out / "notes.txt").write_text("mine")
    assert "was not written by such a run" in one_line(run(*score, "--overwrite").stderr)
    assert (out / "notes.txt").is_file() and parts(out)


def test_a_model_that_cannot_be_loaded_is_said_in_one_line(run: Run, ray: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")
    said = one_line(run("score", source, "-m", tmp_path / "no.gguf", "-o", tmp_path / "out", *ON_RAY).stderr)
    assert "no.gguf" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_breaks_off_ends_the_run_and_says_where(ray: Any, make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('[{"text": "a"}, ' + ", ".join(['{"text": "b"}'] * 30) + ', {"te')
    with pytest.raises(InputError, match=r"in\.json"):
        score_files(make_plan(tmp_path / "in.json", actors=1))


def test_ray_goes_with_files_and_a_folder(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    assert "name one with --output" in run("score", source, "--ray").stderr
    assert "stdin is none" in run("score", "-", "-o", tmp_path / "out", "--ray").stderr
    assert "read and written with --ray" in run("score", "s3://bucket/in.jsonl").stderr
    assert "read and written with --ray" in run("score", source, "-o", "s3://bucket/out").stderr
    (tmp_path / "file").write_text("")
    assert "is a file; rows of many machines" in one_line(
        run("score", source, "-o", tmp_path / "file", "--ray", *tiny).stderr
    )
    assert "no such file" in one_line(run("score", tmp_path / "none", "-o", tmp_path / "out", "--ray", *tiny).stderr)
    assert "cannot be reached" in one_line(run("score", "odd://there", "-o", tmp_path / "out", "--ray", *tiny).stderr)


def test_without_ray_the_error_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'edgeguard[ray]'" in one_line(run("score", source, "-o", tmp_path / "out", "--ray").stderr)


def test_a_folder_that_a_run_did_not_write_is_not_gone_on_with(
    make_plan: MakePlan, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no run that could be gone on with"):
        score_files(make_plan(source, resume=True))


def test_places_are_paths_and_uris(tmp_path: Path) -> None:
    (tmp_path / "a b.jsonl").write_text("{}")
    for text in (str(tmp_path / "a b.jsonl"), f"file://{tmp_path}/a%20b.jsonl"):
        (file,) = input_files(text)
        assert (file.path, file.size, file.shown) == (str(tmp_path / "a b.jsonl"), 2, text)
        with file.opened() as stream:
            assert stream.read() == b"{}"
    assert place_of("memory://somewhere/in").path.endswith("somewhere/in")


# ------------------------------------------------------------ a Ray of its own


def test_a_ray_that_the_command_starts_ends_with_it_and_says_nothing(
    run_process: RunProcess, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    before = set(Path("/tmp").glob("edgeguard-ray-*"))
    done = run_process("score", source, "-o", tmp_path / "out", "--limit", 4, "--ray", *tiny)
    assert (done.returncode, done.stdout) == (0, b"")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert set(Path("/tmp").glob("edgeguard-ray-*")) <= before
    assert written(tmp_path / "out").count(b"\n") == 4
