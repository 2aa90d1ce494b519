"""The labelled files that a guard's figures are of: which of their records count, and what these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.rows.readers import read_fields, read_records
from edgeguard.rows.record import Record

LEFT_OUT = frozenset({"measuring-hate-speech"})  # sources whose licence nobody could confirm
LENGTHS = {"up to 20 words": 20, "21 to 60": 60, "61 to 150": 150, "over 150": np.inf}
_UNLICENSED = ("paper_lm3_a",)


@dataclass(frozen=True, eq=False)
class Records:
    """The records of a file, in their order, those that do not count too.

    words    (n,) of the text that is judged, the last message
    sources  (n,) where each is from, as the file has it; "" where it does not say
    note     why the file is for evaluation only, if it is
    """

    path: Path
    words: np.ndarray
    sources: np.ndarray
    note: str = ""

    @property
    def name(self) -> str:
        """What figures call it."""
        return self.path.stem

    @property
    def counted(self) -> np.ndarray:
        """(n,) all but those of sources that are left out."""
        return ~np.isin(self.sources, sorted(LEFT_OUT))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) a key of LENGTHS for each."""
        names = np.array([*LENGTHS])
        return names[np.searchsorted([*LENGTHS.values()], self.words)]


def files_of(data: Path) -> list[Path]:
    """The files of the data pack that figures are made of: val.jsonl first, by which the baselines' thresholds are."""
    public = data / "eval_public"
    second = [data / "val2.jsonl"] if (data / "val2.jsonl").exists() else []
    return [data / "val.jsonl", *second, *sorted(public.glob("*.jsonl")), *sorted(public.glob("restricted/*.jsonl"))]


def read(path: Path) -> Records:
    """What is known of a file's records besides their labels."""
    texts = [record.messages[-1].content if isinstance(record, Record) else "" for record in read_records(path)]
    sources = [str(fields.get("source", "")) if isinstance(fields, Mapping) else "" for _, fields in read_fields(path)]
    note = "non-commercial licence" if path.parent.name == "restricted" else ""
    note = "no licence stated" if path.stem in _UNLICENSED else note
    return Records(path, np.array([len(text.split()) for text in texts]), np.array(sources), note)


def counted(records: Records, table: ScoreTable) -> ScoreTable:
    """The table of those records that count."""
    return take(table, records.counted[table.places])


def on_the_same(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """The tables of those records that all could score."""
    places = [set(table.places.tolist()) for table in tables]
    common = sorted(set.intersection(*places))
    return [take(table, np.isin(table.places, common)) for table in tables]
