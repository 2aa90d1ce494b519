"""Rows as tokens: what `encode.py` writes and `train.py` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """Rows as tokens.

    ids      (n_tokens,) int32: prompt and answer of each row, one row after the other
    ends     (n,) int64: where each row ends in `ids`
    answers  (n,) int32: how many tokens at its end are the answer
    verdict  (n,) int32: how many of those are the verdict
    unsafe   (n,) bool
    open     (n,) bool: one label, from a source that gives only one: "no further label" is not said by it
    noise    (n,) float32: how often such a row's verdict is wrong
    sources  (n,) of their names
    safe_id, unsafe_id  first tokens of the verdicts
    """

    ids: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    verdict: np.ndarray
    unsafe: np.ndarray
    open: np.ndarray
    noise: np.ndarray
    sources: np.ndarray
    safe_id: int
    unsafe_id: int

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, i: int) -> np.ndarray:
        """The tokens of row i."""
        return self.ids[self.ends[i - 1] if i else 0 : self.ends[i]]


def write(found: Encoded, path: Path) -> None:
    """One compressed file."""
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: np.asarray(getattr(found, name)) for name in Encoded.__dataclass_fields__})


def read(path: Path) -> Encoded:
    """What `write` wrote."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in Encoded.__dataclass_fields__}
    return Encoded(**found | {name: int(found[name]) for name in ("safe_id", "unsafe_id")})
