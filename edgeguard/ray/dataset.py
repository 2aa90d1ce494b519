"""A Ray Dataset of records in, a Ray Dataset of result rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeguard.backend import RuntimeOptions
from edgeguard.errors import InputError, RecordError
from edgeguard.ray.cluster import actors_for
from edgeguard.ray.package import ray_data
from edgeguard.rows.schema import types_of
from edgeguard.rows.shapes import USUAL, Fields, check_names, check_usual_names

if TYPE_CHECKING:
    from ray.data import Dataset

BATCH = 64  # records: at a tenth of a second each, an actor is busy for some seconds with one


def score_dataset(
    ds: Dataset,
    model: str | Path | None = None,
    *,
    num_actors: int | None = None,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    batch_size: int = BATCH,
    fields: Fields = USUAL,
    strict: bool = False,
    keep: Sequence[str] = (),
    runtime: RuntimeOptions = RuntimeOptions(),
    **arguments: Any,
) -> Dataset:
    """The flat result rows of a dataset of records, one for each, in order: the columns of our Parquet files.

    A record is a row with the columns `text`, or `prompt` and `response`, or `messages`, and `id` perhaps. One that
    cannot be scored is a row with `error_type` and `error_message`; no other record is lost with it.

    model       a path that is there on every machine of the cluster, or a built-in guard's name; None: the default
    num_actors  each loads the model, once; None: as many as the cluster has CPUs for
    num_cpus    of each actor, and threads of its model; None: the threads that `runtime` names, else 1
    num_gpus    of each actor; `runtime` says whether the model is put on it
    batch_size  records that an actor gets at a time
    fields      the names of the columns that hold a record
    strict      what guards do not judge (system turns, images) is an error, not left out
    keep        columns of `ds` to have beside the result's: an id of any type for Ray's checkpointing, say
    arguments   the others of `Guard.load`

    Nothing is loaded before the dataset is consumed: what is wrong with the model is said then, in Ray's own error.
    Raises InputError where the dataset's columns are known and hold no record, ValueError for a column that is to be
    kept and is not there, or that rows have themselves.
    """
    from edgeguard.ray.scorer import GuardJob, TableScorer

    ray = ray_data()
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    threads = num_cpus or runtime.threads or 1
    check_columns(_columns(ds), fields, keep)
    if taken := [name for name in keep if name in types_of(())]:
        raise ValueError(f"{taken[0]!r} is to be kept, and rows have a column of that name; rename it first")
    job = GuardJob.of({"model": model, "runtime": runtime, **arguments}, threads)
    scored = ds.repartition(target_num_rows_per_block=batch_size).map_batches(
        TableScorer,
        fn_constructor_kwargs={"job": job, "fields": fields, "strict": strict, "keep": tuple(keep)},
        **pool(ray, num_actors or actors_for(ray, threads), threads, batch_size),
        **({} if num_gpus is None else {"num_gpus": num_gpus}),
    )
    scored.context.execution_options.preserve_order = True
    return scored


def pool(ray: Any, actors: int, threads: int, batch_size: int) -> dict[str, Any]:
    """What `map_batches` is told of a pool of that many actors, none more or less.

    An actor that dies is started again by Ray, and the batch it had is scored again.
    """
    return {
        "compute": ray.data.ActorPoolStrategy(size=actors),
        "num_cpus": threads,
        "batch_size": batch_size,
        "batch_format": "pyarrow",
        "udf_modifying_row_count": False,
    }


def check_columns(columns: Sequence[str] | None, fields: Fields, keep: Sequence[str]) -> None:
    """Raises InputError and ValueError as `score_dataset`. None: the columns are not known yet."""
    if columns is None:
        return
    if missing := [name for name in keep if name not in columns]:
        raise ValueError(f"{missing[0]!r} is to be kept and is no column; there are {', '.join(columns)}")
    inside = {name for name in fields.named.values() if name.partition(".")[0] in columns}
    try:
        check_names(dict.fromkeys((*columns, *inside), ""), fields)
        if not fields.names_content and "body" not in columns:
            check_usual_names(columns)
    except RecordError as error:
        has = ", ".join(columns) or "none"
        raise InputError(f"the dataset: {error}; the columns are {has}", kind=error.kind, **error.data) from None


def _columns(ds: Dataset) -> Sequence[str] | None:
    """As far as they are known without reading."""
    schema: Mapping[str, Any] | None = ds.schema(fetch_if_missing=False)
    return None if schema is None else [str(name) for name in schema.names]  # type: ignore[attr-defined]
