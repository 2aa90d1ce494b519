"""A file's hash is taken from the cache folder only where the file has not changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError
from edgeguard.formats import hashes
from edgeguard.formats.hashes import Digest, known_sha256, sha256_of_all

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no time of a status change is kept here")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH_KEEPING", 1000)
    monkeypatch.setattr(hashes, "_SETTLED", -1.0)  # nobody waits for a clock's tick
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x" * 2000)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entries() -> list[Path]:
    return sorted((cache_folder() / "hashes").glob("*"))


def claim(path: Path, text: str) -> None:
    """Have the cache folder say another hash of the file, which it would never have of itself."""
    (entry,) = entries()
    *state, _ = json.loads(entry.read_text())
    entry.write_text(json.dumps([*state, text]))


def test_a_file_that_has_not_changed_is_not_read_again(file: Path):
    assert known_sha256(file) == digest(file)
    claim(file, "a" * 64)
    assert known_sha256(file) == "a" * 64


@pytest.mark.parametrize("how", ["grown", "rewritten", "rewritten, its date put back", "replaced"])
def test_a_file_that_changed_is_hashed_again(file: Path, how: str):
    known_sha256(file)
    claim(file, "a" * 64)
    was = file.stat()
    if how == "grown":
        file.write_bytes(b"x" * 2001)
    elif how == "replaced":
        other = file.with_name("other")
        other.write_bytes(b"y" * 2000)
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
        other.replace(file)
    else:
        file.write_bytes(b"y" * 2000)
        if how != "rewritten":
            os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert known_sha256(file) == digest(file)
    assert known_sha256(file) == digest(file)


def test_the_hash_of_a_file_that_has_just_changed_is_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hashes, "_SETTLED", 2.0)
    assert known_sha256(file) == digest(file)
    assert entries() == []


def test_small_files_are_not_kept(file: Path):
    file.write_bytes(b"x" * 999)
    assert known_sha256(file) == digest(file)
    assert entries() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "[1]", "{}", "null", '"abcd"', "[" * 400, "[2000, 1, 2, 7]", '[2000, 1, 2, "zz"]', "\xff"]
)
def test_what_is_no_kept_hash_is_not_believed(file: Path, text: str):
    known_sha256(file)
    (entry,) = entries()
    entry.write_text(text, encoding="latin-1")
    assert known_sha256(file) == digest(file)
    claim(file, digest(file))  # it was written anew: state and hash


@pytest.mark.parametrize("text", ["A" * 64, "a" * 63, "a" * 65, 7, None])
def test_a_kept_hash_has_the_form_of_one(file: Path, text: object):
    known_sha256(file)
    claim(file, text)  # type: ignore[arg-type]
    assert known_sha256(file) == digest(file)


def test_a_cache_folder_that_takes_nothing_is_no_error(file: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("no folder")
    assert known_sha256(file) == digest(file)


def test_of_several_files_each_is_known(file: Path):
    second = file.with_name("adapter.gguf")
    second.write_bytes(b"z" * 1500)
    assert Digest([file, second]).hex() == sha256_of_all([file, second])
    assert len(entries()) == 2


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot be read to its end: No such file"):
        Digest([tmp_path / "none.gguf"]).hex()
