"""What an actor of Ray does: batches of records in, batches of result rows out, one row a record.

The guard is in a process of the actor's own, by `Workers`: a record at which the runtime dies is tried once more and
then is an error row. In the actor's process it would take the actor along, and Ray would hand the same batch to the
next one, again and again.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeguard.backend import RuntimeOptions
from edgeguard.calibration.files import read_calibration
from edgeguard.fingerprint import fingerprint
from edgeguard.guard import Guard
from edgeguard.profile import load_profile
from edgeguard.rows.record import Failure, Record
from edgeguard.rows.resuming import json_bytes
from edgeguard.rows.run import Settings
from edgeguard.rows.schema import flatten, types_of
from edgeguard.rows.tables import records_of
from edgeguard.workers import Workers, isolated

if TYPE_CHECKING:
    import pyarrow as pa

    from edgeguard.rows.readers import Reading
    from edgeguard.rows.shapes import Fields

Given = Record | Failure


class Facts(NamedTuple):
    """What a run needs to know of a guard that it does not have: what its rows score, and all that can change them."""

    labels: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class GuardJob:
    """The arguments of `Guard.load`, to be sent to the actors. `model` is a path on their machines, or a name."""

    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, arguments: Mapping[str, Any], threads: int) -> GuardJob:
        """What is read here need not be there on other machines: profile and calibration. Raises as `Guard.load`."""
        profile, calibration = arguments.get("profile"), arguments.get("calibration", True)
        runtime: RuntimeOptions = arguments.get("runtime", RuntimeOptions())
        sent = {
            "model": _whole(arguments.get("model")),
            "profile": load_profile(profile) if isinstance(profile, str | Path) else profile,
            "calibration": read_calibration(calibration) if isinstance(calibration, str | Path) else calibration,
            "runtime": replace(runtime, threads=threads, lora=_whole(runtime.lora)),
        }
        return cls({**arguments, **sent})

    def opened(self) -> Scoring:
        """The guard, in a process of its own. Raises what `Guard.load` raises."""
        return Scoring(isolated(**self.arguments))

    def facts(self, reading: Reading) -> Facts:
        """What the guard says of itself, once it is loaded. Raises what `Guard.load` raises."""
        with self.opened() as scoring:
            return Facts(scoring.labels, fingerprint(scoring.workers, reading))


def _whole(path: str | Path | None) -> Any:
    """A path whatever folder an actor is in; as it is where it may be a name, or a path on other machines alone."""
    return Path(path).absolute() if path is not None and Path(path).exists() else path


class Scoring:
    """A guard at work in a process of its own; a context manager."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.labels = (*workers.codes, *workers.field_labels)

    def rows(self, records: Sequence[Given], where: str = "") -> Iterator[dict[str, Any]]:
        """One row a record, in order. `where` is their file, for messages."""
        return (result.row() for _, result in self.workers.judged(records, Guard.score, where=where))

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()


class TableScorer:
    """An actor for datasets: tables whose columns are those of records become tables of flat rows."""

    def __init__(self, job: GuardJob, fields: Fields, strict: bool, keep: Sequence[str]) -> None:
        self._fields, self._strict, self._keep = fields, strict, keep
        self._scoring = job.opened()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row a record, in order."""
        labels = self._scoring.labels
        records = records_of(batch, fields=self._fields, strict=self._strict)
        scored = table_of([flatten(row, labels) for row in self._scoring.rows(list(records))], labels)
        for name in self._keep:
            scored = scored.append_column(batch.schema.field(name), batch.column(name))
        return scored


class RecordScorer:
    """An actor for files: what `reading.Records` gives becomes what `writing.RowFiles` takes."""

    def __init__(self, job: GuardJob) -> None:
        self._scoring = job.opened()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row a record, in order."""
        import pyarrow as pa

        pickled: list[Any] = batch.column("record").to_pylist()
        given = zip(batch.column("where").to_pylist(), pickled, strict=True)
        rows: list[bytes] = []
        for where, some in groupby(given, key=lambda each: str(each[0])):
            records = [pickle.loads(record) for _, record in some]
            rows += map(json_bytes, self._scoring.rows(records, where))
        return pa.table({"place": batch.column("place"), "row": pa.array(rows, pa.large_binary())})


def table_of(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pa.Table:
    """Flat rows as an Arrow table, with the columns and types of our Parquet files."""
    import pyarrow as pa

    of_name: Any = pa.type_for_alias
    schema = pa.schema([(name, of_name(kind)) for name, kind in types_of(labels).items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
