"""What a guard must beat: its own base model, asked zero-shot, and a bag of words. Each gives a table of scores, so
that thresholds are chosen for them as for the guard's. Tables are kept, by what they are made of."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from guard_records import LEFT_OUT
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import BuiltIn
from edgeguard.calibration.maps import logit, sigmoid
from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_fields, read_records
from edgeguard.rows.record import Record


def key(*said: str) -> str:
    """Short, and another for anything else said."""
    return hashlib.sha256(" ".join(said).encode()).hexdigest()[:16]


def zero_shot(guard: BuiltIn, path: Path, folder: Path, runtime: RuntimeOptions) -> ScoreTable:
    """The base model's scores of a file, the policy in its prompt; P(unsafe) of what is on the grammar, as it often
    answers beside it."""
    from calibrate import with_own_truth, with_progress

    kept = folder / f"zero-shot-{path.stem}-{key(sha256(guard.base_path), 'instruct', sha256(path))}.npz"
    if not kept.exists():
        with Guard.load(guard.base_path, profile="instruct", calibration=False, runtime=runtime) as loaded:
            with_progress(loaded, path, kept)
    table = with_own_truth(load_table(kept), path)
    scores = np.column_stack([sigmoid(table.margin), table.scores["marginal"][:, 1:]])
    return replace(table, scores={"marginal": scores})


def sampled(path: Path, n: int, folder: Path) -> Path:
    """A file of at most n of those records that count, in their order."""
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if json.loads(line).get("source") not in LEFT_OUT
    ]
    kept = sorted(random.Random(0).sample(range(len(lines)), min(n, len(lines))))
    out = folder / f"{path.stem}-{n}.jsonl"
    out.write_text("".join(lines[i] for i in kept), encoding="utf-8")
    return out


def rows_of(table: ScoreTable, sample: ScoreTable) -> np.ndarray:
    """Where a sample's records are in the table of all."""
    place = {id_: i for i, id_ in enumerate(table.ids)}
    return np.array([place[id_] for id_ in sample.ids])


class TfIdf:
    """Logistic regression on word and character n-grams: one model for the verdict, one for each code."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        self.files = files
        self.folder = folder
        self.made_of = key(*map(sha256, files), *sorted(LEFT_OUT))

    def scores(self, path: Path, like: ScoreTable) -> ScoreTable:
        """Its table of those records of a file that the guard's own table, `like`, has."""
        kept = self.folder / f"tf-idf-{path.stem}-{key(self.made_of, sha256(path), *like.labels)}.npz"
        if not kept.exists():
            save_table(self._table(path, like.labels), kept)
        return replace(take(load_table(kept), like.places), truth=like.truth)

    def _table(self, path: Path, labels: Sequence[str]) -> ScoreTable:
        records = [record for record in read_records(path) if isinstance(record, Record)]
        x = self._features.transform([text_of(record) for record in records])
        y_prob = np.zeros((len(records), len(labels)))
        for label, model in self._models.items():
            y_prob[:, labels.index(label)] = model.predict_proba(x)[:, 1]
        ids, places = tuple(record.id for record in records), np.arange(len(records))
        return ScoreTable(
            tuple(labels), ids, places, logit(y_prob[:, 0]), {"marginal": y_prob}, None, np.zeros(len(records))
        )

    @cached_property
    def _rows(self) -> list[tuple[str, Sequence[str]]]:
        """Text and labels of each row to train on."""
        rows = []
        for file in self.files:
            for record, (_, fields) in zip(read_records(file), read_fields(file), strict=True):
                assert isinstance(record, Record) and isinstance(fields, Mapping), f"{file} has a record amiss"
                if fields.get("source") not in LEFT_OUT and not fields.get("insult"):
                    rows.append((text_of(record), fields["labels"]))
        return rows

    @cached_property
    def _features(self) -> object:
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
        letters = TfidfVectorizer(
            sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=3, max_features=200_000
        )
        return make_union(words, letters).fit([text for text, _ in self._rows])

    @cached_property
    def _models(self) -> dict[str, LogisticRegression]:
        x = self._features.transform([text for text, _ in self._rows])
        labels = [found for _, found in self._rows]
        codes = sorted({label for found in labels for label in found}, key=lambda code: int(code[1:]))
        wanted = {"unsafe": [bool(found) for found in labels]} | {c: [c in found for found in labels] for c in codes}
        return {
            label: LogisticRegression(C=10, max_iter=300, solver="liblinear").fit(x, y) for label, y in wanted.items()
        }


def text_of(record: Record) -> str:
    """What a bag of words sees."""
    return "\n".join(message.content for message in record.messages)
