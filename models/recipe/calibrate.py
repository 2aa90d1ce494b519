"""Fits the calibrations that go with the guard: three files for each form, from one scoring of the validation sets.

    python models/recipe/calibrate.py DATA/val.jsonl DATA/val2.jsonl                              # all forms
    python models/recipe/calibrate.py DATA/val.jsonl DATA/val2.jsonl --form q8_0 --scores FOLDER

FOLDER keeps the scores, for a second run and for the benches. `rule.py` says how they are fitted; what came out for
each source is printed, Markdown. --unsafe takes the verdict's threshold elsewhere than where greedy decoding stands.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edgeguard.backend import Condition, RuntimeOptions
from edgeguard.builtin import ADAPTER, BuiltIn, built_in
from edgeguard.calibration.files import write_calibration
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Goal, read_goal
from edgeguard.evaluation.baselines import tells_greedy
from edgeguard.evaluation.table import ScoreTable, score_records
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard
from edgeguard.quant.scoring import joined
from edgeguard.rows.readers import read_records

sys.path.insert(0, str(Path(__file__).parent))
from rule import GOALS, fit_rule

PART = 128  # records whose scores a stopped run may lose


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="labelled records, with the name of their source")
    parser.add_argument("--guard", default="edgeguard-135m")
    parser.add_argument("--unsafe", default="greedy", metavar="GOAL", help="such as fpr=0.02 [default: %(default)s]")
    parser.add_argument("--form", action="append", help="[default: all]")
    parser.add_argument("--scores", type=Path, help="folder to keep scores in")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="[default: the guard's folder]")
    args = parser.parse_args()
    guard, goals = built_in(args.guard), {**GOALS, "unsafe": read_goal(args.unsafe)}
    folder = args.out or guard.folder
    for form in [guard.form(name) for name in args.form] if args.form else guard.forms:
        runtime = RuntimeOptions(threads=args.threads)
        tables = {path: scores_of(guard, form.name, path, args.scores, runtime) for path in args.files}
        identity = {"guard": guard.name, "profile": guard.profile, "model_sha256": form.model_sha256}
        out = folder if form.name == ADAPTER else folder / form.name
        out.mkdir(parents=True, exist_ok=True)
        print(f"\n## {guard.name}, {form.name}")
        for estimator, calibration in fit_rule(tables, identity, goals=goals, report=True).items():
            write_calibration(calibration, out / f"calibration-{estimator}.json")


def fit(
    table: ScoreTable, identity: Mapping[str, str], val: Path, *, method: Literal["none"] | None = None
) -> dict[str, Calibration]:
    """Estimator → calibration, by the guard's own rule, of scores on one file; "none": thresholds alone.

    A baseline that answers nothing has no greedy answer to stand where: its thresholds are for the best F1.
    """
    return fit_rule({val: table}, identity, method=method, goals=GOALS if tells_greedy(table) else {"": Goal("f1")})


def scores_of(
    guard: BuiltIn, form: str, path: Path, folder: Path | None, runtime: RuntimeOptions = RuntimeOptions()
) -> ScoreTable:
    """A form's scores of a file, with the file's labels; from the folder where they are there, else kept in it.

    They do not depend on the number of threads, as the study of quantization found; on a `condition` they do, and on
    all else that `runtime` says, such as the device: a table's name says it too. So a table that was made on another
    machine is found by the same options. A run that was stopped goes on from the last PART records.
    """
    model, kept = guard.form(form).model_sha256, None if folder is None else kept_at(guard, form, path, folder, runtime)
    if kept is not None and kept.exists():
        return with_own_truth(load_table(kept), path)
    with Guard.load(f"{guard.called}:{form}", profile=guard.profile, calibration=False, runtime=runtime) as loaded:
        if loaded.model_sha256 != model:
            raise SystemExit(f"{guard.called}:{form} opened a model of sha256 {loaded.model_sha256}; expected {model}")
        table = with_progress(loaded, path, kept)
    return with_own_truth(table, path)


def kept_at(guard: BuiltIn, form: str, path: Path, folder: Path, runtime: RuntimeOptions = RuntimeOptions()) -> Path:
    """Where in the folder a form's scores of a file are kept, whether or not they are there."""
    model, special = guard.form(form).model_sha256, _special(runtime)
    said = " ".join([f"{model} {guard.profile} {sha256(path)} {runtime.condition or Condition()}", *special])
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    return folder / f"{'-'.join([form, *(one.partition('=')[2] for one in special), path.stem, key])}.npz"


def how_made(runtime: RuntimeOptions) -> str:
    """How scores are made, in words: `on the CPU`, or the options that are not the default."""
    special = _special(runtime)
    return "on the CPU" if not special else f"with {', '.join(special)}"


def _special(runtime: RuntimeOptions) -> list[str]:
    """`name=value` of each option that may move a score and is not at its default, but for the condition."""
    return [f"{name}={value}" for name, value in runtime.given().items() if name not in ("threads", "condition")]


def with_progress(guard: Guard, path: Path, kept: Path | None) -> ScoreTable:
    """Score a file, say on stderr how far it is, and keep the table as `kept`; until then its parts in a folder."""
    records, parts = list(read_records(path)), None if kept is None else kept.with_suffix("")
    begins, tables = range(0, len(records), PART), []
    for begin in begins:
        file = None if parts is None else parts / f"{begin:06d}.npz"
        if file is not None and file.exists():
            tables.append(load_table(file))
            continue
        tables.append(score_records(guard, records[begin : begin + PART]))
        print(f"{guard.name} {path.name} {min(begin + PART, len(records))} of {len(records)}", file=sys.stderr)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_table(tables[-1], file)
    table = joined(tables, begins, np.arange(len(records)))
    if kept is not None and parts is not None:
        save_table(table, kept)
        shutil.rmtree(parts)
    return table


def with_own_truth(table: ScoreTable, path: Path) -> ScoreTable:
    """The table with the labels of the file that it was scored from."""
    truth = find_truth(path, table.labels)
    assert truth is not None
    return with_truth(table, truth, same_file=True)


if __name__ == "__main__":
    main()
