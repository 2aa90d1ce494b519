"""Formats that several readers share: bounded JSON, safetensors, manifests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import CalibrationError, ModelError, shortened, shown
from edgeguard.formats.bounded_json import MAX_BYTES, find_object, loose_object, read_object
from edgeguard.formats.manifest import Origin, Source, as_manifest, as_metadata, from_metadata, read_manifest
from edgeguard.formats.safetensors import read_entries, read_floats

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)

# JSON


@given(st.dictionaries(st.text(), JSON))
def test_what_json_wrote_is_read(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(json.dumps(value).encode())
    assert read_object(path) == find_object(path) == loose_object(path) == value
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())  # as Windows' editors write it
    assert read_object(path) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "is not JSON"),
        (b"[]", r"is no JSON object but \[\]"),
        (b'"\x1b[2J"'.replace(b"\x1b", rb"\u001b"), r"is no JSON object but '\\x1b\[2J'"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b'{"a": "' + b"a" * MAX_BYTES, "is larger than 16 MiB"),
    ],
)
def test_what_is_no_object_is_refused_by_name_and_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for read in (read_object, find_object):
        with pytest.raises(ModelError, match=rf"a\.json {said}.*; fetch it$") as caught:
            read(path, cure="fetch it")
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert loose_object(path) is None
    with pytest.raises(CalibrationError, match=said):
        read_object(path, error=CalibrationError)


@pytest.mark.parametrize("name", ["missing.json", "a\0b.json", "folder"])
def test_a_file_that_cannot_be_read_is_an_error_and_a_missing_one_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        read_object(tmp_path / name)
    if name == "missing.json":
        assert find_object(tmp_path / name) is None
    else:
        with pytest.raises(ModelError, match="cannot be read"):
            find_object(tmp_path / name)
    assert loose_object(tmp_path / name) is None


# safetensors


def write_safetensors(path: Path, header: dict[str, Any], values: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def entry(type_name: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": type_name, "shape": shape, "data_offsets": [begin, end]}


def test_arrays_are_read_in_the_order_of_their_names_and_at_their_places(tmp_path: Path) -> None:
    b, a, c = np.arange(6, dtype="<f4").reshape(2, 3), np.array([0.5, -2], "<f2"), np.array([1.5, -3.0], "<f4")
    bfloat16 = (c.view("<u4") >> 16).astype("<u2")
    header = {"__metadata__": {"format": "pt"}, "b": entry("F32", [2, 3], 0, 24), "a": entry("F16", [2], 24, 28)}
    header["c"] = entry("BF16", [2], 28, 32)
    path = write_safetensors(tmp_path / "a.safetensors", header, b.tobytes() + a.tobytes() + bfloat16.tobytes())
    assert [e.name for e in read_entries(path)] == ["b", "a", "c"]
    found = read_floats(path)
    assert list(found) == ["a", "b", "c"]
    for name, expected in (("a", a), ("b", b), ("c", c)):
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected)


def test_arrays_are_those_that_the_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"x": np.eye(3, dtype=np.float32), "y": np.zeros((0, 4), np.float16), "z": np.array(2.5, np.float32)}
    library.save_file(arrays, tmp_path / "a.safetensors")
    for name, found in read_floats(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(found, arrays[name])
        assert found.shape == arrays[name].shape


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry("I64", [1], 0, 8)}, "'a' is 'I64'; F32, F16 or BF16 is needed"),
        ({"a": entry("F32", [3], 0, 8)}, r"'a' of shape \(3,\) has 8 bytes"),
        ({"a": entry("F32", [3], 0, 12)}, "is truncated: 'a' ends at byte 12 of its weights, they have 8"),
        ({"a": entry("F32", [3], 4, 0)}, "is truncated"),
        ({"a": entry("F32", [True], 0, 4)}, "is no tensor's entry"),
        ({"a": entry("F32", [1] * 17, 0, 4)}, "is no tensor's entry"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, "is no tensor's entry"),
        ({"a": None}, "is no tensor's entry"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: dict[str, Any], said: str) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(ModelError, match=said):
        read_floats(path)


# Manifests

TEXTS = st.dictionaries(st.text(st.characters(categories=["L", "N"], include_characters="-_"), min_size=1), st.text())
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.text(), st.dictionaries(st.sampled_from(["model", "lora", "imatrix"]), HASHES), TEXTS, TEXTS)
def test_an_origin_is_read_back_from_the_metadata_and_from_the_manifest(
    tmp_path_factory: pytest.TempPathFactory,
    to: str,
    hashes: dict[str, str],
    options: dict[str, str],
    tools: dict[str, str],
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "model.bin").write_bytes(b"weights")
    origin = Origin(to, tuple(Source(role, digest) for role, digest in hashes.items()), options, tools)
    assert from_metadata({**as_metadata(origin), "general.name": "x"}) == origin
    (folder / "edgeguard.json").write_bytes(as_manifest(origin, [folder / "model.bin"], name="x"))
    found = read_manifest(folder / "edgeguard.json")
    assert found is not None and found[0] == origin
    assert [(output["file"], output["n_bytes"]) for output in found[1]] == [("model.bin", 7)]


def test_metadata_of_others_tell_of_no_conversion() -> None:
    assert from_metadata({"general.name": "x", "edgeguard.model.sha256": "0"}) is None


# Values in messages


@given(st.text(), st.integers(3, 100))
def test_a_shown_value_is_printable_and_short(text: str, longest: int) -> None:
    assert shown(text, longest).isprintable()
    assert len(shown(text, longest)) <= longest
    assert shortened(text, longest) == text or len(shortened(text, longest)) == longest < len(text)
