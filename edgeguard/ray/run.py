"""Files scored by a Ray cluster into a folder of files, so that a run can be gone on with after any crash.

While the folder OUT is not complete, OUT.partial stands beside it. It holds `run.json`, what is scored by what, and
`done/`, Ray's checkpoint: the places of the records whose rows are written. A file of rows and its places are written
in two phases, so that after a kill each place's row is there once; what is half-written, Ray removes. In the end
run.json becomes OUT/_SUCCESS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeguard.errors import InputError, OutputError, printable
from edgeguard.ray.cluster import actors_for, cause_of, cluster
from edgeguard.ray.dataset import BATCH, pool
from edgeguard.ray.package import ray_data
from edgeguard.ray.places import Place, input_files, place_of
from edgeguard.ray.scorer import Facts, GuardJob, RecordScorer
from edgeguard.rows.readers import AS_IT_IS, Reading, peeked
from edgeguard.rows.run import Noted, Settings
from edgeguard.rows.tally import Tally

ROWS_PER_ACTOR, MOST_ROWS = 256, 2**14  # in one file: what some minutes of the whole pool make, and no file too large
_IO = {"num_cpus": 0.25}  # what reads and writes waits for others most of the time
_FILTER = 2**27  # bytes that Ray is to set aside for what passes over finished records, if they do not need more


@dataclass(frozen=True)
class RayRun:
    """What is to be scored, into what, and by how many.

    format   of the output: "jsonl", "csv" or "parquet"
    address  of a Ray that runs; None: one is started on this machine, for as long as it takes
    actors   None: as many as there are CPUs for
    threads  of each one's model
    cores    of this machine, for a Ray that is started
    limit    records at most, of one file
    progress  Ray's own bars, on a terminal
    """

    source: str | Path
    output: str | Path
    job: GuardJob
    format: str = "jsonl"
    reading: Reading = AS_IT_IS
    address: str | None = None
    actors: int | None = None
    threads: int = 1
    cores: int = 1
    batch_size: int = BATCH
    rows_per_file: int | None = None
    limit: int | None = None
    resume: bool = False
    overwrite: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a run: of this one, and of those before that it went on from."""

    now: Tally = field(default_factory=Tally)
    before: Tally = field(default_factory=Tally)


def score_files(plan: RayRun) -> Outcome:
    """Score the records of a file, or of the files of a folder, each by its path or URI. Blocks until all is written.

    Raises EdgeguardError: InputError, OutputError, what `Guard.load` raises, and what keeps Ray from working.
    """
    ray_data()
    files = input_files(plan.source)
    if plan.limit is not None and len(files) > 1:
        raise InputError(f"{printable(str(plan.source))}: a limit is for one file, and there are {len(files)}")
    _check_first(files[0], plan.reading)
    output = _Output(place_of(plan.output))
    found = output.prepared(resume=plan.resume, overwrite=plan.overwrite)
    if found is not None:
        found.check_input(_digest(files, plan.limit), len(files), output.folder.shown)
    with cluster(plan.address, cpus=plan.cores) as ray:
        try:
            return _scored(ray, plan, files, output, found)
        except ray.exceptions.RayError as error:
            raise _as_ours(error) from None


def _check_first(file: Place, reading: Reading) -> None:
    """Raises InputError for what is wrong with the file as a whole."""
    from edgeguard.ray.reading import records_in

    try:
        peeked(records_in(file, reading))
    except OSError as error:
        raise InputError(f"{printable(file.shown)}: cannot be opened ({error}); check its permissions") from None


def _scored(ray: Any, plan: RayRun, files: Sequence[Place], output: _Output, found: _Run | None) -> Outcome:
    facts: Facts = ray.get(
        ray.remote(num_cpus=plan.threads, max_retries=1)(GuardJob.facts).remote(plan.job, plan.reading)
    )
    run = _Run(facts, _digest(files, plan.limit), len(files), plan.format, 1)
    before = Tally()
    if found is not None:
        found.check_rows(plan.format, facts.settings, output.folder.shown)
        run = replace(run, number=found.number + 1)
        before = _tally(ray, output.written(), plan.format)
        if output.is_complete:
            return Outcome(before=before)
    output.begin(run)
    now = _written(ray, plan, files, output, run)
    output.finish(run)
    return Outcome(now, before)


def _written(ray: Any, plan: RayRun, files: Sequence[Place], output: _Output, run: _Run) -> Tally:
    """Everything that Ray Data does."""
    from ray.data.checkpoint import CheckpointConfig

    from edgeguard.ray.reading import Records
    from edgeguard.ray.writing import RowFiles

    actors = plan.actors or actors_for(ray, plan.threads)
    ds = ray.data.read_datasource(Records(files, plan.reading, plan.limit), **_IO)
    context = ds.context
    context.enable_progress_bars = plan.progress
    context.execution_options.preserve_order = True
    context.checkpoint_config = CheckpointConfig(
        id_column="place",
        checkpoint_path=output.done.path,
        override_filesystem=output.done.filesystem,
        delete_checkpoint_on_success=False,  # not before _SUCCESS is there
    )
    context.checkpoint_config.checkpoint_actor_memory_bytes = _FILTER
    scored = ds.repartition(target_num_rows_per_block=plan.batch_size).map_batches(
        RecordScorer,
        fn_constructor_kwargs={"job": plan.job},
        **pool(ray, actors, plan.threads, plan.batch_size),
    )
    sink = RowFiles(
        output.folder,
        format=plan.format,
        labels=run.facts.labels,
        run=run.number,
        rows_per_file=plan.rows_per_file or min(MOST_ROWS, ROWS_PER_ACTOR * actors),
    )
    scored.write_datasink(sink, ray_remote_args=dict(_IO))
    return sink.tally


def _tally(ray: Any, files: Sequence[Place], format: str) -> Tally:
    """What is in files that were written before, looked at by the cluster."""
    from edgeguard.ray.writing import tally_of

    total = Tally()
    task = ray.remote(**_IO)(tally_of)
    waiting = list(files)
    going: list[Any] = []
    while waiting or going:
        while waiting and len(going) < 64:
            going.append(task.remote(waiting.pop(), format))
        ready, going = ray.wait(going)
        for tally in ray.get(ready):
            total.include(tally)
    return total


def _as_ours(error: Exception) -> Exception:
    """The error that was raised in a worker, or Ray's own as one of ours."""
    found = cause_of(error)
    if found is not None:
        return found
    last = "".join([line for line in str(error).splitlines() if line.strip()][-1:])
    return OutputError(
        f"Ray ended the run ({type(error).__name__}: {printable(last)[:300]}); the rows in the output are safe",
        kind="output_broken_off",
    )


def _digest(files: Sequence[Place], limit: int | None) -> str:
    """Of the input: which files, and how large. Two inputs that are the same have the same."""
    lines = [f"{file.path}\t{file.size}" for file in files]
    return hashlib.sha256("\n".join([*lines, str(limit)]).encode("utf-8", "backslashreplace")).hexdigest()


# ---------------------------------------------------------------- what stands beside the rows


@dataclass(frozen=True)
class _Run:
    """What is scored by what, as run.json has it. `number`: of the run, 1 for the first."""

    facts: Facts
    input: str
    n_files: int
    format: str
    number: int

    def to_json(self) -> bytes:
        return json.dumps({**asdict(self), "facts": self.facts._asdict()}, indent=1).encode() + b"\n"

    @classmethod
    def of_json(cls, data: bytes) -> _Run:
        """Raises ValueError, KeyError, TypeError for what is none."""
        found = json.loads(data)
        facts = Facts(tuple(found["facts"]["labels"]), dict(found["facts"]["settings"]))
        return cls(**{**found, "facts": facts})

    def check_input(self, digest: str, n_files: int, where: str) -> None:
        """Raises OutputError where the run that is to go on had another input."""
        if (self.input, self.n_files) != (digest, n_files):
            raise OutputError(
                f"{printable(where)} is not the output of this input: its {self.n_files} files had other names or "
                f"sizes than these {n_files}; give the same, or write to another folder",
                kind="other_run",
            )

    def check_rows(self, format: str, settings: Settings, where: str) -> None:
        """Raises OutputError where the run that is to go on could have written other rows."""
        noted = Noted(self.format, self.facts.settings, token="", end=0, entries=0)
        if changed := noted.changed(format, settings):
            raise OutputError(
                f"{printable(where)}: another run wrote its rows: {', '.join(changed)}; resume with the same, or write "
                "to another folder",
                kind="other_run",
            )


class _Output:
    """The folder of rows, and what stands beside it."""

    def __init__(self, folder: Place) -> None:
        self.folder, beside = folder, folder.beside(".partial")
        self.beside, self.done = beside, beside.within("done")
        self._run, self._success = beside.within("run.json"), folder.within("_SUCCESS")

    @property
    def is_complete(self) -> bool:
        return self._success.kind == "file"

    def prepared(self, *, resume: bool, overwrite: bool) -> _Run | None:
        """The run to go on from; None to begin. Raises OutputError where that is not wanted or not possible."""
        where = printable(self.folder.shown)
        try:
            if self.folder.kind == "file":
                raise OutputError(f"{where}: is a file; rows of many machines are written to a folder, name one")
            there = self.folder.files()
            run = self._success if self.is_complete else self._run
            if not run.kind and not there:
                return None
            if not (resume or overwrite):
                raise OutputError(f"{where}: exists already", kind="output_exists")
            if resume:
                return _Run.of_json(run.read())
            self._remove(there)
            return None
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            raise OutputError(f"{where}: holds no run that could be gone on with; name another folder") from None
        except OSError as error:
            raise OutputError(f"{where}: cannot be used ({error}); check its name and rights") from None

    def begin(self, run: _Run) -> None:
        """Raises OutputError."""
        try:
            for place in (self.folder, self.beside):
                place.filesystem.create_dir(place.path, recursive=True)
            self._run.write(run.to_json())
        except OSError as error:
            raise OutputError(
                f"{printable(self.folder.shown)}: cannot be written ({error}); check its rights"
            ) from None

    def written(self) -> list[Place]:
        """The files whose rows are there for good."""
        if self.is_complete:
            return self.folder.files()
        ends = ".parquet"
        done = {Path(place.path).name for place in self.done.files()}
        names = {name.removesuffix(ends) for name in done if not name.endswith(f".pending{ends}")}
        return [place for place in self.folder.files() if Path(place.path).stem in names]

    def finish(self, run: _Run) -> None:
        """Say that all rows are there, and then remove what is needed to go on. Raises OutputError."""
        try:
            self.folder.filesystem.create_dir(self.folder.path, recursive=True)  # Ray removes one without rows
            whole = {place.path for place in self.written()}
            for place in self.folder.files():
                if _is_part(place) and place.path not in whole:  # a dead driver's task wrote on, and could not commit
                    place.filesystem.delete_file(place.path)
            self._success.write(run.to_json())
            self.beside.filesystem.delete_dir(self.beside.path)
        except OSError as error:
            raise OutputError(
                f"{printable(self.folder.shown)}: all rows are written, and it cannot be completed ({error}); "
                "repair that and go on with the run"
            ) from None

    def _remove(self, there: Sequence[Place]) -> None:
        """Raises OutputError where something else is in the folder: only what such runs write is removed."""
        strange = [place for place in there if not _is_part(place)]
        if strange:
            raise OutputError(
                f"{printable(strange[0].shown)}: was not written by such a run; name another folder, or remove it"
            )
        for place in (self._success, *there):
            if place.kind:
                place.filesystem.delete_file(place.path)
        if self.beside.kind == "folder":
            self.beside.filesystem.delete_dir(self.beside.path)


def _is_part(place: Place) -> bool:
    path = Path(place.path)
    return path.name.startswith("part-") and path.suffix in (".jsonl", ".csv", ".parquet")
