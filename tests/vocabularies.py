"""The real vocabularies that llama.cpp's source carries, for tests of prompts and answers: `real("llama-bpe")`.

python tests/vocabularies.py SDIST FOLDER   takes them out of the source distribution of llama-cpp-python, as `make
test` does.
"""

from __future__ import annotations

import ctypes
import sys
import tarfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".venv" / "vocabularies"
NAMES = (
    "llama-bpe",
    "llama-spm",
    "qwen2",
    "starcoder",
    "gemma-4",
)  # starcoder: Granite 3's; gemma-4: no other Gemma is there


@lru_cache
def real(name: str):
    """A Vocabulary of llama.cpp's own. The test is skipped where `make test` has not put it there."""
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not there; `make test` fetches it")
    lc = pytest.importorskip("llama_cpp")
    from edgeguard.backends.llama_cpp.model import _quiet, _read_vocabulary, model_params

    _quiet()
    lc.llama_backend_init()
    params = model_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(str(path).encode(), params)
    assert model, path
    vocab = lc.llama_model_get_vocab(model)  # never freed: the vocabulary is used to the end

    def encode(text: str) -> list[int]:
        data = text.encode()
        ids = (lc.llama_token * (len(data) + 8))()
        n = lc.llama_tokenize(
            vocab, data, len(data), ctypes.cast(ids, ctypes.POINTER(lc.llama_token)), len(ids), False, False
        )
        return ids[: max(n, 0)]

    return _read_vocabulary(vocab, encode)


def with_control(vocabulary, names, *, eog, bos=None):
    """The vocabulary with a model's own control tokens behind its tokens: test files carry those of another model."""
    first = len(vocabulary.pieces)
    control = {**vocabulary.control, **{name: first + i for i, name in enumerate(names)}}
    pieces = [*vocabulary.pieces, *(b"" for _ in names)]
    begin = None if bos is None else control[bos]
    return replace(vocabulary, pieces=pieces, control=control, eog=frozenset({control[eog]}), bos=begin)


def spelled(ids, vocabulary) -> str:
    """Ids as text, control tokens by their names."""
    names = {i: name.encode() for name, i in vocabulary.control.items()}
    return b"".join(names.get(i) or vocabulary.pieces[i] for i in ids).decode(errors="replace")


def extract(sdist: Path, folder: Path) -> None:
    """Write the vocabularies that the tests use into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"ggml-vocab-{name}.gguf" for name in NAMES}
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in wanted and (file := archive.extractfile(member)):
                (folder / name).write_bytes(file.read())
                wanted.discard(name)
    assert not wanted, wanted


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
