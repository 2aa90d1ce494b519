"""stdin, stdout and stderr that are closed, full, slow or gone; and Ctrl-C at any moment: a line, and whole data."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from test_output import LABELS, Stdout, score

from edgeguard.errors import InputError
from edgeguard.rows.readers import read_records
from edgeguard.rows.writer import open_writer

Tiny = tuple[str, ...]
Command = Callable[..., list[str]]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams of Unix")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"word {i}"}) + "\n" for i in range(3)))
    return path


def shell(command: list[str], streams: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command with redirections of the shell's."""
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {streams}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def is_one_line(text: str, holds: str) -> bool:
    return text.count("\n") == 1 and text.startswith("edgeguard: ") and holds in text


# ---------------------------------------------------------------- closed


def test_with_stderr_closed_nothing_is_begun_and_stdout_says_so(
    edgeguard_command: Command, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    # The output got stderr's number, and what silences llama.cpp wrote it empty.
    out = tmp_path / "out.jsonl"
    for args in (("score", source, "-o", out, *tiny), ("score", source, *tiny), ("profiles",), ("--version",)):
        code, stdout, stderr = shell(edgeguard_command(*args), "2>&-")
        assert code == 1 and is_one_line(stdout, "stderr is closed") and stderr == ""
        assert shell(edgeguard_command(*args), "2>&- >&-") == (1, "", "")
    assert not out.exists()


def test_a_closed_stdin_is_an_input_error_where_it_is_read(
    edgeguard_command: Command, tiny: Tiny, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in ((), ("--workers", "1")):
        code, stdout, stderr = shell(edgeguard_command("score", "-", *tiny, *workers), "<&-")
        assert code == 1 and stdout == "" and is_one_line(stderr, "<stdin>: it is closed")
    assert shell(edgeguard_command("score", source, *tiny), "<&-")[0] == 0
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="<stdin>: it is closed"):
        next(read_records("-"))


@pytest.mark.parametrize(
    "args",
    [
        ("score", "IN", "TINY"),
        ("score", "IN", "--table", "TINY"),
        ("profiles",),
        ("--help",),
        ("explain", "hi", "TINY"),
    ],
)
def test_a_closed_stdout_is_one_line_where_it_is_written(
    edgeguard_command: Command, tiny: Tiny, source: Path, args: tuple[str, ...]
) -> None:
    words = [word for arg in args for word in {"IN": (source,), "TINY": tiny}.get(arg, (arg,))]
    code, _, stderr = shell(edgeguard_command(*words), ">&-")
    assert code == 1 and is_one_line(stderr, "")


def test_with_an_output_of_its_own_a_run_needs_neither_stdin_nor_stdout(
    edgeguard_command: Command, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        one, other = tmp_path / name, tmp_path / f"other-{name}"
        assert shell(edgeguard_command("score", source, "-o", one, *tiny), "<&- >&-")[0] == 0
        assert shell(edgeguard_command("score", source, "-o", other, *tiny), "")[0] == 0
        assert one.read_bytes() == other.read_bytes()


# ---------------------------------------------------------------- full, and gone


@pytest.mark.parametrize("streams", ["2>/dev/full", "2> >(exec true)"])
def test_where_stderr_takes_nothing_the_data_are_whole_and_the_status_says_it(
    edgeguard_command: Command, tiny: Tiny, source: Path, tmp_path: Path, streams: str
) -> None:
    out = tmp_path / "out.jsonl"
    for args in (("-o", out), ()):
        code, stdout, stderr = shell(edgeguard_command("score", source, *args, *tiny), streams)
        assert code == 1 and stderr == ""
        assert len((out.read_text() if args else stdout).splitlines()) == 3
        assert is_one_line(stdout, "stderr cannot be written") or not args
    assert shell(edgeguard_command("score", tmp_path / "no", "-o", tmp_path / "x", *tiny), streams)[0] == 1
    assert shell(edgeguard_command("nonsense"), "2>/dev/full") == (2, "", "")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("args", [("--help",), ("profiles",), ("score", "--help"), ("--version",)])
def test_a_full_stdout_is_one_line_for_every_command(edgeguard_command: Command, args: tuple[str, ...]) -> None:
    code, _, stderr = shell(edgeguard_command(*args), ">/dev/full")
    assert code == 1 and is_one_line(stderr, "stdout cannot be written (No space left on device)")


# ---------------------------------------------------------------- slow


def test_a_pipe_that_does_not_wait_loses_no_record() -> None:
    # An empty pipe was taken for the end of the input, and the run ended well.
    read, write = os.pipe()
    os.set_blocking(read, False)
    lines = [json.dumps({"id": i, "text": f"word {i}"}).encode() + b"\n" for i in range(6)]

    def feed() -> None:
        with open(write, "wb", buffering=0) as pipe:
            for line in lines:
                pipe.write(line[:9])
                time.sleep(0.02)
                pipe.write(line[9:])

    thread = threading.Thread(target=feed)
    thread.start()
    with open(read, "rb") as stream:
        assert [record.id for record in read_records(stream)] == list(range(6))
    thread.join()


def test_a_slow_reader_on_a_pipe_that_does_not_wait_gets_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    got = BytesIO()

    def drain() -> None:
        while data := os.read(read, 3000):
            got.write(data)
            time.sleep(0.001)

    thread = threading.Thread(target=drain)
    thread.start()
    with open(write, "wb") as pipe:
        monkeypatch.setattr(sys, "stdout", Stdout(pipe))
        with open_writer(None, format="jsonl", labels=LABELS) as writer:
            for i in range(300):  # more than a pipe holds
                writer.write(score(i))
    thread.join()
    os.close(read)
    assert [json.loads(line)["id"] for line in got.getvalue().splitlines()] == list(range(300))


def test_rows_go_out_one_by_one_while_the_input_trickles(edgeguard_command: Command, tiny: Tiny) -> None:
    with subprocess.Popen(
        edgeguard_command("score", "-", *tiny), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for i in range(3):
            process.stdin.write(json.dumps({"id": i, "text": "word"}).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == i
        process.stdin.close()
        assert process.wait(60) == 0


# ---------------------------------------------------------------- Ctrl-C


# Ctrl-C at the n-th import, or at the n-th call of a function after the first row: no moment is left out by chance.
INTERRUPTED = """
import _signal, sys
left = int(sys.argv.pop(1))
def hook(event, args):
    global left
    if event in ("import", "exec", "compile"):
        left -= 1
        if left == 0:
            _signal.raise_signal(_signal.SIGINT)
from edgeguard.__main__ import main
sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize("at", [1, 2, 3, 10, 40, 100, 160, 250, 400, 600, 900])
def test_ctrl_c_at_any_import_is_one_line_and_130(tiny: Tiny, source: Path, tmp_path: Path, at: int) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", INTERRUPTED, str(at), "score", str(source), "-o", str(out), *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 0:  # there were fewer imports
        assert at > 300 and len(out.read_text().splitlines()) == 3
    else:
        assert done.returncode == 130 and is_one_line(done.stderr, "interrupted"), done.stderr
        assert not out.exists() or all(json.loads(line) for line in out.read_text().splitlines())


def test_who_is_started_with_ctrl_c_ignored_goes_on(tiny: Tiny, source: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "40", "score", str(source), *tiny]
    done: Any = subprocess.run(
        ["bash", "-c", f"trap '' INT; {shlex.join(command)}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3


def test_ctrl_c_in_a_callback_of_native_code_is_heard() -> None:
    program = (
        "import ctypes, _signal\n"
        "from edgeguard import __main__\n"
        "import edgeguard.cli\n"
        "def work(arguments):\n"
        "    call = ctypes.CFUNCTYPE(None)(lambda: _signal.raise_signal(_signal.SIGINT))\n"
        "    call()\n"
        "    for i in range(10**7): pass\n"
        "    return 0\n"
        "edgeguard.cli.run = work\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130 and is_one_line(done.stderr, "interrupted"), done.stderr
