"""One process writes an output, and nothing that is read is written over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run, RunProcess
from test_output import LABELS, score, write_all

from edgeguard.errors import OutputError
from edgeguard.files import check_not_read, hidden_beside, write_whole
from edgeguard.rows.run import run_file
from edgeguard.rows.writer import open_writer

FORMATS = ["jsonl", "csv", "parquet"]
Tiny = tuple[str, ...]


def records(path: Path, n: int = 3) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": f"word {i}"}) + "\n" for i in range(n)))
    return path


def a_link(kind: str, path: Path, to: Path) -> Path:
    """Another name for a file: the same one, one over a folder, a symbolic link, a hard link."""
    if kind == "symbolic":
        path.symlink_to(to)
    elif kind == "hard":
        path.hardlink_to(to)
    else:
        return to if kind == "same" else to.parent / ".." / to.parent.name / to.name
    return path


# ---------------------------------------------------------------- two at once


@pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("format", FORMATS)
def test_while_one_writes_no_other_one_may(tmp_path: Path, format: str, flags: dict[str, bool]) -> None:
    path = tmp_path / "out"
    with open_writer(path, format=format, labels=LABELS) as writer:
        writer.write(score(1))
        with pytest.raises(OutputError, match="out: another process is writing it"):
            open_writer(path, format=format, labels=LABELS, **flags)
        writer.write(score(2))
    write_all(tmp_path / "whole", [score(1), score(2)], format)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    open_writer(path, format=format, labels=LABELS, **flags).__exit__(None, None, None)  # it has been let go


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_by_another_name_no_other_one_may_write_either(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with open_writer(path, format="jsonl", labels=LABELS) as writer:
        writer.write(score(1))
        other = a_link(kind, tmp_path / "other", path)
        with pytest.raises(OutputError, match="another process is writing it"):
            open_writer(other, format="jsonl", labels=LABELS, overwrite=True)
        assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("format", FORMATS)
def test_the_death_of_the_writer_lets_the_output_go(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from test_output import *\n"
        "writer = open_writer(sys.argv[2], format=sys.argv[3], labels=LABELS); writer.write(score(1))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent), str(path), format], check=False)
    write_all(path, [score(1), score(2)], format, resume=True)
    write_all(tmp_path / "whole", [score(1), score(2)], format)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_run_that_never_began_leaves_nothing(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    source = records(tmp_path / "in.jsonl")
    model = ("-m", tmp_path / "no.gguf", *tiny[2:])
    assert run("score", source, "-o", tmp_path / "out.jsonl", *model).exit_code == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_of_two_commands_at_once_the_second_is_refused_before_it_loads_a_model(
    run: Run, tiny: Tiny, edgeguard_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    line = b'{"id": 1, "text": "a word"}\n'
    with subprocess.Popen(
        edgeguard_command("score", "-", "-o", out, *tiny), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as first:
        assert first.stdin is not None
        first.stdin.write(line)
        first.stdin.flush()
        while not out.exists() or not out.read_bytes():
            assert first.poll() is None
        second = run("score", "-", "-o", out, "--resume", "-m", tmp_path / "no.gguf", *tiny[2:], input=line)
        assert second.exit_code == 1 and "another process is writing it" in second.stderr
        first.stdin.close()
        assert first.wait(60) == 0
    assert out.read_bytes().count(b"\n") == 1


# ---------------------------------------------------------------- names of partial files


@pytest.mark.parametrize("format", FORMATS)
def test_a_strangers_file_with_the_name_of_the_noted_run_is_left_alone(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    for foreign in (b"notes", b'{"id": 1, "text": "a record"}\n', b'{"edgeguard_run": 2}\n', b"\0" * 99):
        run_file(path).write_bytes(foreign)
        for flags in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(OutputError, match="is none that edgeguard wrote; move it away"):
                open_writer(path, format=format, labels=LABELS, **flags)
        assert run_file(path).read_bytes() == foreign and not path.exists()


def test_an_input_by_the_old_name_of_a_partial_file_is_not_touched(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    for name in ("x.parquet.partial.jsonl", ".x.parquet.rows", "x.parquet.partial"):
        source = records(tmp_path / name)
        before = source.read_bytes()
        args = ("score", source, *tiny, "--input-format", "jsonl", "-o", tmp_path / "x.parquet", "--overwrite")
        assert run(*args).exit_code == 0
        assert source.read_bytes() == before


def test_a_long_name_has_room_for_its_partial_files(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".parquet")
    write_all(path, [score(1)], "parquet")
    write_all(path, [score(1), score(2)], "parquet", resume=True)
    assert len(os.fsencode(hidden_beside(path, "0" * 16, "rows").name)) < 255


# ---------------------------------------------------------------- inputs as outputs


@pytest.mark.parametrize("kind", ["same", "roundabout", "symbolic", "hard"])
@pytest.mark.parametrize("what", ["input", "model", "profile", "calibration", "threshold", "lora"])
def test_nothing_that_a_run_reads_can_be_its_output(run: Run, tiny: Tiny, tmp_path: Path, what: str, kind: str) -> None:
    read = {"input": records(tmp_path / "in.jsonl")}
    for name in ("model", "profile", "calibration", "threshold", "lora"):
        read[name] = tmp_path / f"{name}.file"
        read[name].write_bytes(Path(tiny[1]).read_bytes() if name == "model" else b"default = 0.5\n")
    before = {name: path.read_bytes() for name, path in read.items()}
    options = [word for name, path in read.items() if name != "input" for word in (f"--{name}", path)]
    out = a_link(kind, tmp_path / "out", read[what])
    for format in FORMATS:
        for flag in ("--overwrite", "--resume"):
            result = run("score", read["input"], *options, "-f", format, "-o", out, flag)
            assert result.exit_code == 2 and f"is the {what} (" in result.stderr, result.stderr
    assert {name: path.read_bytes() for name, path in read.items()} == before


def test_stdin_can_not_be_the_output(run_process: RunProcess, tiny: Tiny, tmp_path: Path) -> None:
    source = records(tmp_path / "same.jsonl")
    before = source.read_bytes()
    for flag in ("--overwrite", "--resume"):
        with source.open("rb") as stdin:
            result = run_process("score", "-", "-o", source, flag, *tiny, stdin=stdin, capture_output=True)
        assert result.returncode == 2 and b"is the input (stdin), which would be destroyed" in result.stderr
    assert source.read_bytes() == before


def test_a_file_inside_of_a_models_folder_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    with pytest.raises(OutputError, match="is the model"):
        check_not_read([folder / "model.onnx"], [("the model", folder)])
    check_not_read([folder / "rows.jsonl"], [("the model", folder), ("the input", "no\0name")])


def test_the_guards_that_come_with_edgeguard_are_not_written_over(run: Run, tmp_path: Path) -> None:
    from edgeguard.builtin import built_in

    table = built_in("edgeguard-135m").folder / "guard.toml"
    before = table.read_bytes()
    source = records(tmp_path / "in.jsonl")
    result = run("score", source, "-o", table, "-f", "csv", "--overwrite")
    assert result.exit_code == 2 and "a file of edgeguard's own" in result.stderr
    assert table.read_bytes() == before


@pytest.mark.parametrize("kind", ["same", "symbolic", "hard"])
@pytest.mark.parametrize("what", ["input", "labels", "model", "profile"])
def test_calibrate_does_not_write_over_what_it_reads(
    run: Run, tiny: Tiny, tmp_path: Path, what: str, kind: str
) -> None:
    read = {name: records(tmp_path / f"{name}.file") for name in ("input", "labels", "model", "profile")}
    options = [word for name, path in read.items() if name != "input" for word in (f"--{name}", path)]
    out = a_link(kind, tmp_path / "out", read[what])
    before = read[what].read_bytes()
    result = run("calibrate", read["input"], *options, "-o", out, "--overwrite")
    assert result.exit_code == 2 and f"is the {what} (" in result.stderr
    assert read[what].read_bytes() == before


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("format", FORMATS)
def test_a_link_is_followed_in_every_format(tmp_path: Path, format: str) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    link.symlink_to(real)
    write_all(link, [score(1)], format)  # its end is not there: the file is made where it leads
    assert link.is_symlink() and real.is_file()
    with pytest.raises(OutputError, match="real: exists already"):
        open_writer(link, format=format, labels=LABELS)
    write_all(link, [score(1), score(2)], format, resume=True)
    write_all(tmp_path / "whole", [score(1), score(2)], format)
    assert link.is_symlink() and real.read_bytes() == (tmp_path / "whole").read_bytes()
    write_all(link, [score(3)], format, overwrite=True)
    write_all(real, [score(3), score(4)], format, resume=True)  # by either name
    assert link.is_symlink()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_link_that_leads_nowhere_says_why(tmp_path: Path, format: str, flags: dict[str, bool]) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OutputError, match="lead round in a circle"):
        open_writer(tmp_path / "circle", format=format, labels=LABELS, **flags)
    (tmp_path / "gone").symlink_to(tmp_path / "no" / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        open_writer(tmp_path / "gone", format=format, labels=LABELS, **flags)


# ---------------------------------------------------------------- at once or not at all


def test_a_whole_file_is_there_or_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")
    path.chmod(0o600)
    with pytest.raises(FileExistsError):
        write_whole(path, b"two", overwrite=False)
    link = a_link("symbolic", tmp_path / "link", path)
    write_whole(link, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777, link.is_symlink()) == (b"two", 0o600, True)
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), b"three")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_full_disk_leaves_neither_an_empty_calibration_nor_a_half_one(
    tiny: Tiny, edgeguard_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    # It left an empty file, and had destroyed the one that was there.
    import shlex

    out = tmp_path / "c.json"
    for before in (None, b"the old one"):
        if before is not None:
            out.write_bytes(before)
        command = shlex.join(edgeguard_command("calibrate", "--method", "contextual", "-o", out, "--overwrite", *tiny))
        done = subprocess.run(["bash", "-c", f"ulimit -f 0; exec {command}"], capture_output=True, check=False)
        assert done.returncode == 1 and b"c.json cannot be written" in done.stderr, done.stderr
        assert (out.read_bytes() if out.exists() else None) == before
        assert [path for path in tmp_path.iterdir() if path != out] == []
