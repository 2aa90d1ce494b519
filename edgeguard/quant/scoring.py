"""Scores of one model on a file of records, in a process of its own, kept by chunks: none is made twice.

Records are scored in a shuffled order, the same for all models: the first n of them are n drawn at random,
whatever the file is sorted by.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeguard import process
from edgeguard.backend import Condition, RuntimeOptions
from edgeguard.backends import runtime_of
from edgeguard.errors import ModelError
from edgeguard.evaluation.table import ScoreTable, explored, score_records, table_of, take
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.files import write_whole
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard, Search
from edgeguard.machine import free_memory
from edgeguard.profile import Profile, load_profile, variant_of
from edgeguard.quant.variants import Variant
from edgeguard.rows.readers import AS_IT_IS, Reading
from edgeguard.rows.shapes import Fields
from edgeguard.workers import Workers, open_guard

_FIRST_EDGES, _STEP = (0, 10, 20, 40, 60, 80, 100), 25  # records after which a file of scores ends
FORMAT = 5  # of what is kept; another number scores anew
KEPT = 2  # processes that wait: the reference's, and that of the variant at hand
ROOM = 2 << 30  # bytes that must be free for a process to wait: another model will be opened beside it


def edges(n: int) -> list[int]:
    """After how many of n records a file of scores ends: often where little is asked, else what a crash may lose."""
    return [*(edge for edge in (*_FIRST_EDGES, *range(_FIRST_EDGES[-1] + _STEP, n, _STEP)) if edge < n), n]


def order_of(n: int) -> npt.NDArray[np.int64]:
    """(n,) places in the order in which they are scored: always the same, so that no seed scores anything anew."""
    return np.random.default_rng(0).permutation(n)


@dataclass(frozen=True)
class Setting:
    """What scores depend on besides the model.

    records  the file; its hash is part of what is kept
    profile  a name or a file; policies, strictness: which of its questions are asked, and its meaning of "unsafe"
    runtime  of every model; `kv_cache` of those whose runtime takes one
    search   how far to look, with no mass on the grammar asked for: what a variant loses there is a finding
    limit    the file's first so many records only; None: all
    reading  how the records are read
    workers  processes to score in, each with the runtime's threads: the scores do not depend on it
    """

    records: Path
    profile: str
    runtime: RuntimeOptions
    search: Search = Search(min_grammar_mass=0)
    limit: int | None = None
    reading: Reading = AS_IT_IS
    policies: tuple[str, ...] | None = None
    strictness: str | None = None
    workers: int = 1

    def guard_profile(self) -> Profile:
        """The profile of all models. Raises ProfileError."""
        return variant_of(load_profile(self.profile), self.policies, self.strictness)


@dataclass(frozen=True)
class Scored:
    """A model's scores of the first records in the study's order, rows as in the file; and what it is.

    Two models whose vocabularies differ are not variants of one another.

    n        records that there are in all
    seconds  that a record took, of the clock, loading left out; None where none was scored
    """

    table: ScoreTable
    vocabulary: str
    n_vocab: int
    architecture: str
    n: int
    seconds: float | None


def score(
    variant: Variant,
    setting: Setting,
    folder: Path,
    *,
    upto: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    running: Running | None = None,
) -> Scored:
    """Scores from `folder`, and what is missing from the model. `tell` hears how many of how many records are there.

    upto     score so many records, or some more: whole files of scores; 0: only open the model; None: all
    running  keeps the model's process for a next call; None: it ends

    Raises ModelError with the last words of a process that failed.
    """
    kept = folder / key_of(variant, setting)
    if not is_kept(variant, setting, folder, upto=upto):
        kept.mkdir(parents=True, exist_ok=True)

        def heard(line: str) -> None:
            done, _, total = line.partition(" ")
            tell(int(done), int(total))

        job = _job(variant, setting, kept, upto)
        if running is None:
            with process.Jobs(_START) as one:
                code, last = one.do(job, tell=heard)
        else:
            code, last = running.do(kept.name, job, heard)
        if code is not None:
            raise ModelError(
                f"{variant.path} could not be scored: {'; '.join(last) or f'its process ended with {code}'}"
            )
    said = _said(kept)
    assert said is not None
    begins = _begins(said["n"], upto)
    table = joined([load_table(_file(kept, begin)) for begin in begins], begins, order_of(said["n"]))
    seconds = said["seconds"] / said["scored"] if said["scored"] else None
    return Scored(table, said["vocabulary"], said["n_vocab"], said["architecture"], said["n"], seconds)


class Running:
    """Models' processes that wait for more records: opening a model costs as much as scoring several. For one thread.

    Use as a context manager. At most KEPT wait, those that were asked last, and none where memory is short.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, process.Jobs] = {}  # the last asked at the end

    def do(self, key: str, job: Mapping[str, Any], tell: Callable[[str], None]) -> tuple[int | None, list[str]]:
        """As `Jobs.do`, in the process of that key."""
        one = self._waiting.pop(key, None)
        if one is None:
            while len(self._waiting) >= KEPT:
                self.end(next(iter(self._waiting)))
            one = process.Jobs(_START)
        done = False
        try:
            found = one.do(job, tell=tell)
            done = found[0] is None
        finally:
            memory = free_memory() if done else 0
            if not done or (memory is not None and memory < ROOM):
                one.close()
            else:
                self._waiting[key] = one
        return found

    def end(self, key: str) -> None:
        """End the process of that key, if one waits."""
        one = self._waiting.pop(key, None)
        if one is not None:
            one.close()

    def end_all(self) -> None:
        """End all that wait."""
        for key in list(self._waiting):
            self.end(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()


def is_kept(variant: Variant, setting: Setting, folder: Path, *, upto: int | None = None) -> bool:
    """Whether `score` has nothing left to do, and needs no model."""
    kept = folder / key_of(variant, setting)
    said = _said(kept)
    return said is not None and all(_file(kept, begin).exists() for begin in _begins(said["n"], upto))


def kept_records(variant: Variant, setting: Setting, folder: Path) -> int:
    """How many records are scored already."""
    kept = folder / key_of(variant, setting)
    said = _said(kept)
    if said is None:
        return 0
    return sum(end - begin for begin, end in pairwise(edges(said["n"])) if _file(kept, begin).exists())


def _said(kept: Path) -> dict[str, Any] | None:
    """What the model's process left beside its scores; None where it has not come so far."""
    try:
        found: dict[str, Any] = json.loads((kept / "said.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _begins(n: int, upto: int | None) -> list[int]:
    """Where the files of scores begin that hold the first `upto` of n records."""
    return [edge for edge in edges(n)[:-1] if upto is None or edge < upto]


def _file(kept: Path, begin: int) -> Path:
    return kept / f"chunk-{begin:06d}.npz"


def key_of(variant: Variant, setting: Setting) -> str:
    """A folder's name for what these scores follow from."""
    said = {
        "runtime": {name: value for name, value in asdict(setting.runtime).items() if name != "runtime"},
        "search": asdict(setting.search),
        "limit": setting.limit,
        "reading": asdict(setting.reading),
        "format": FORMAT,
        "model": variant.sha256,
        "records": sha256(setting.records),
        "profile": repr(replace(setting.guard_profile(), source="")),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return f"{variant.name}-{digest[:16]}"


def joined(tables: Sequence[ScoreTable], begins: Sequence[int], order: npt.NDArray[np.int64]) -> ScoreTable:
    """One table, rows as in the file, of several that `score_records` made, each of the records of `order` from
    `begins` on. Of no tables: one of no records, and of no labels either.
    """
    if not tables:
        nothing = np.empty(0)
        return ScoreTable((), (), np.empty(0, dtype=np.int64), nothing, {"marginal": np.empty((0, 1))}, None, nothing)
    one = tables[0]
    stacked: dict[str, Any] = {}
    for name in ("margin", "off", "first"):
        arrays = [getattr(t, name) for t in tables]
        stacked[name] = None if any(array is None for array in arrays) else np.concatenate(arrays)
    shuffled = ScoreTable(
        labels=one.labels,
        ids=tuple(i for t in tables for i in t.ids),
        places=np.concatenate([order[t.places + begin] for begin, t in zip(begins, tables, strict=True)]),
        scores={name: np.concatenate([t.scores[name] for t in tables]) for name in one.scores},
        fields={label: np.concatenate([t.fields[label] for t in tables]) for label in one.fields},
        failed=tuple(one for t in tables for one in t.failed),
        **stacked,
    )
    return take(shuffled, np.argsort(shuffled.places))


@dataclass(frozen=True)
class Cost:
    """What a model costs to load and to run: one measurement in a fresh process.

    load    seconds to open it
    peak    MiB that the process grew to, its own start left out; nan where the system does not say
    rate    records a second, loading left out
    """

    load: float
    peak: float
    rate: float


def measure(variant: Variant, setting: Setting, n: int) -> Cost:
    """Score the first n records of the study's order once more, for the clock."""
    heard: list[str] = []
    job = _job(variant, setting, None, n)
    with process.Jobs(_START) as one:
        code, last = one.do(job, tell=heard.append)
    if code is not None or not heard:
        raise ModelError(f"{variant.path} could not be measured: {'; '.join(last)}")
    return Cost(**json.loads(heard[-1]))


def _job(variant: Variant, setting: Setting, kept: Path | None, upto: int | None) -> dict[str, Any]:
    return {
        "upto": upto,
        "model": str(variant.path),
        "out": None if kept is None else str(kept),
        "setting": {**asdict(setting), "records": str(setting.records)},
    }


# The process that a model runs in

_START = process.start("edgeguard.quant.scoring")


def _child() -> None:
    opened: list[_Opened] = []  # the model of the first job, and of all that come after it

    def work(job: Mapping[str, Any]) -> int:
        before, began = _peak(), time.perf_counter()
        if not opened:
            opened.append(_open(job))
        model, loaded = opened[0], time.perf_counter() - began
        if job["out"] is None:
            records = model.records[: job["upto"]]
            began = time.perf_counter()
            score_records(model.guard, records)
            rate = len(records) / (time.perf_counter() - began)
            process.say(json.dumps({"load": loaded, "peak": _peak() - before, "rate": rate}))
        else:
            _score_chunks(model.guard, model.records, Path(job["out"]), job["upto"])
        return 0

    def end() -> None:
        for model in opened:
            model.guard.close()

    process.serve_jobs(work, end)


@dataclass(frozen=True)
class _Opened:
    guard: Guard | Workers
    records: Sequence[Any]  # in the study's order


def _open(job: Mapping[str, Any]) -> _Opened:
    setting = _setting(job["setting"])
    guard = open_guard(
        job["model"],
        workers=setting.workers,
        profile=setting.profile,
        policies=setting.policies,
        strictness=setting.strictness,
        runtime=_taken(setting.runtime, job["model"]),
        search=setting.search,
        calibration=False,
    )
    records = list(setting.reading.records(setting.records, limit=setting.limit))
    return _Opened(guard, [records[place] for place in order_of(len(records))])


def _setting(given: Mapping[str, Any]) -> Setting:
    """A setting that went through JSON."""
    condition = given["runtime"]["condition"]
    runtime = {**given["runtime"], "condition": None if condition is None else Condition(**condition)}
    return Setting(
        records=Path(given["records"]),
        profile=given["profile"],
        runtime=RuntimeOptions(**runtime),
        search=Search(**given["search"]),
        limit=given["limit"],
        policies=None if given["policies"] is None else tuple(given["policies"]),
        strictness=given["strictness"],
        workers=given["workers"],
        reading=Reading(**{**given["reading"], "fields": Fields(**given["reading"]["fields"])}),
    )


def _taken(options: RuntimeOptions, model: str) -> RuntimeOptions:
    """The options, without a precision of the KV memory where the model's file says it."""
    return options if "kv_cache" in runtime_of(model).takes else replace(options, kv_cache=None)


def _score_chunks(guard: Guard | Workers, records: Sequence[Any], out: Path, upto: int | None) -> None:
    ends = dict(pairwise(edges(len(records))))
    wanted = {_file(out, begin): records[begin : ends[begin]] for begin in _begins(len(records), upto)}
    missing = {path: chunk for path, chunk in wanted.items() if not path.exists()}
    total = sum(map(len, wanted.values()))
    done = total - sum(map(len, missing.values()))
    process.say(f"{done} {total}")

    def advance() -> None:
        nonlocal done
        done += 1
        if done % 10 == 0 or done == total:
            process.say(f"{done} {total}")

    began = time.perf_counter()
    # One stream for all of them: at the end of a chunk no worker waits for the others.
    results = explored(guard, chain.from_iterable(missing.values()))
    for path, chunk in missing.items():
        save_table(table_of(guard, islice(results, len(chunk)), advance=advance), path)
    seconds, scored = time.perf_counter() - began, sum(map(len, missing.values()))
    said, before = guard.ask(_about) if isinstance(guard, Workers) else _about(guard), _said(out)
    if before is not None:
        seconds, scored = seconds + before["seconds"], scored + before["scored"]
    said |= {"n": len(records), "seconds": seconds, "scored": scored}
    write_whole(out / "said.json", json.dumps(said).encode())


def _about(guard: Guard, _: None = None) -> dict[str, Any]:
    """What tells a variant from another model."""
    vocabulary = guard.backend.vocabulary
    pieces = hashlib.sha256(b"\0".join(vocabulary.pieces)).hexdigest()
    return {"vocabulary": pieces, "n_vocab": len(vocabulary), "architecture": guard.backend.info.architecture}


def _peak() -> float:
    """MiB that this process has grown to. Linux says it of a process alone; elsewhere nan."""
    try:
        said = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8")
        return int(said.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return float("nan")
