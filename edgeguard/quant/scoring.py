"""Scores of one model on a file of records, in a process of its own, kept by chunks: none is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from edgeguard import process
from edgeguard.backend import Condition, RuntimeOptions
from edgeguard.backends import runtime_of
from edgeguard.errors import ModelError
from edgeguard.evaluation.table import ScoreTable, explored, score_records, table_of
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.files import write_whole
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard, Search
from edgeguard.profile import Profile, load_profile, variant_of
from edgeguard.quant.variants import Variant
from edgeguard.rows.readers import AS_IT_IS, Reading
from edgeguard.rows.shapes import Fields
from edgeguard.workers import Workers, open_guard

CHUNK = 100  # records a file; what an interrupted run loses at most
FORMAT = 3  # of what is kept; another number scores anew


@dataclass(frozen=True)
class Setting:
    """What scores depend on besides the model.

    records  the file; its hash is part of what is kept
    profile  a name or a file; policies, strictness: which of its questions are asked, and its meaning of "unsafe"
    runtime  of every model; `kv_cache` of those whose runtime takes one
    search   how far to look, with no mass on the grammar asked for: what a variant loses there is a finding
    limit    score the first so many records only; None: all
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
    """A model's scores, and what it is: two models whose vocabularies differ are not variants of one another."""

    table: ScoreTable
    vocabulary: str
    n_vocab: int
    architecture: str


def score(
    variant: Variant, setting: Setting, folder: Path, *, tell: Callable[[int, int], None] = lambda done, total: None
) -> Scored:
    """Scores from `folder`, and what is missing from the model. `tell` hears how many of how many records are there.

    Raises ModelError with the last words of a process that failed.
    """
    kept = folder / key_of(variant, setting)
    if not is_kept(variant, setting, folder):
        kept.mkdir(parents=True, exist_ok=True)

        def heard(line: str) -> None:
            done, _, total = line.partition(" ")
            tell(int(done), int(total))

        code, last = process.run(_START, _job(variant, setting, kept), {}, tell=heard)
        if code != 0:
            raise ModelError(
                f"{variant.path} could not be scored: {'; '.join(last) or f'its process ended with {code}'}"
            )
    said = json.loads((kept / "done.json").read_text(encoding="utf-8"))
    tables = [load_table(path) for path in sorted(kept.glob("chunk-*.npz"))]
    return Scored(joined(tables, CHUNK), said["vocabulary"], said["n_vocab"], said["architecture"])


def is_kept(variant: Variant, setting: Setting, folder: Path) -> bool:
    """Whether `score` has nothing left to do, and needs no model."""
    return (folder / key_of(variant, setting) / "done.json").exists()


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


def joined(tables: Sequence[ScoreTable], chunk: int) -> ScoreTable:
    """One table of several that `score_records` made, each of the next `chunk` records."""
    one = tables[0]
    stacked: dict[str, Any] = {}
    for name in ("margin", "off", "first"):
        arrays = [getattr(t, name) for t in tables]
        stacked[name] = None if any(array is None for array in arrays) else np.concatenate(arrays)
    return ScoreTable(
        labels=one.labels,
        ids=tuple(i for t in tables for i in t.ids),
        places=np.concatenate([t.places + n * chunk for n, t in enumerate(tables)]),
        scores={name: np.concatenate([t.scores[name] for t in tables]) for name in one.scores},
        fields={label: np.concatenate([t.fields[label] for t in tables]) for label in one.fields},
        failed=tuple(one for t in tables for one in t.failed),
        **stacked,
    )


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


def measure(variant: Variant, setting: Setting) -> Cost:
    """Score the setting's first records once more, for the clock."""
    heard: list[str] = []
    job = _job(variant, setting, None)
    code, last = process.run(_START, job, {}, tell=heard.append)
    if code != 0 or not heard:
        raise ModelError(f"{variant.path} could not be measured: {'; '.join(last)}")
    return Cost(**json.loads(heard[-1]))


def _job(variant: Variant, setting: Setting, kept: Path | None) -> dict[str, Any]:
    return {
        "model": str(variant.path),
        "out": None if kept is None else str(kept),
        "setting": {**asdict(setting), "records": str(setting.records)},
    }


# The process that a model runs in

_START = process.start("edgeguard.quant.scoring")


def _child() -> None:
    process.serve(_work)


def _work(job: Mapping[str, Any]) -> int:
    setting = _setting(job["setting"])
    before, began = _peak(), time.perf_counter()
    with open_guard(
        job["model"],
        workers=setting.workers,
        profile=setting.profile,
        policies=setting.policies,
        strictness=setting.strictness,
        runtime=_taken(setting.runtime, job["model"]),
        search=setting.search,
        calibration=False,
    ) as guard:
        loaded = time.perf_counter() - began
        records = list(setting.reading.records(setting.records, limit=setting.limit))
        if job["out"] is None:
            began = time.perf_counter()
            score_records(guard, records)
            rate = len(records) / (time.perf_counter() - began)
            process.say(json.dumps({"load": loaded, "peak": _peak() - before, "rate": rate}))
        else:
            _score_chunks(guard, records, Path(job["out"]))
    return 0


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


def _score_chunks(guard: Guard | Workers, records: Sequence[Any], out: Path) -> None:
    chunks = {
        out / f"chunk-{n:05d}.npz": records[begin : begin + CHUNK]
        for n, begin in enumerate(range(0, len(records), CHUNK))
    }
    missing = {path: chunk for path, chunk in chunks.items() if not path.exists()}
    done = len(records) - sum(map(len, missing.values()))
    process.say(f"{done} {len(records)}")

    def advance() -> None:
        nonlocal done
        done += 1
        if done % 10 == 0 or done == len(records):
            process.say(f"{done} {len(records)}")

    # One stream for all of them: at the end of a chunk no worker waits for the others.
    results = explored(guard, chain.from_iterable(missing.values()))
    for path, chunk in missing.items():
        save_table(table_of(guard, islice(results, len(chunk)), advance=advance), path)
    said = guard.ask(_about) if isinstance(guard, Workers) else _about(guard)
    write_whole(out / "done.json", json.dumps(said).encode())


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
