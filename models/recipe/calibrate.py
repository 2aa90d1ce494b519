"""Fits the calibrations that go with the guard: three files for each form, from one scoring of the validation sets.

    python models/recipe/calibrate.py DATA/val.jsonl DATA/val2.jsonl                              # all forms
    python models/recipe/calibrate.py DATA/val.jsonl DATA/val2.jsonl --form q8_0 --scores FOLDER

FOLDER keeps the scores, for a second run and for the benches. `rule.py` says how they are fitted; what came out for
each source is printed, Markdown. --unsafe takes the verdict's threshold elsewhere than where greedy decoding stands.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeguard.backend import Condition, RuntimeOptions
from edgeguard.builtin import ADAPTER, BuiltIn, built_in
from edgeguard.calibration.files import write_calibration
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import read_goal
from edgeguard.evaluation.table import ScoreTable, score_records
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_records

sys.path.insert(0, str(Path(__file__).parent))
from rule import GOALS, fit_rule


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
    """Estimator → calibration, by the guard's own rule, of a guard's scores on one file; "none": thresholds alone."""
    return fit_rule({val: table}, identity, method=method)


def scores_of(
    guard: BuiltIn, form: str, path: Path, folder: Path | None, runtime: RuntimeOptions = RuntimeOptions()
) -> ScoreTable:
    """A form's scores of a file, with the file's labels; from the folder where they are there, else kept in it.

    They do not depend on the number of threads, as the study of quantization found; on a `condition` they do.
    """
    said = f"{guard.form(form).model_sha256} {guard.profile} {sha256(path)} {runtime.condition or Condition()}"
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    kept = None if folder is None else folder / f"{form}-{path.stem}-{key}.npz"
    if kept is not None and kept.exists():
        return with_own_truth(load_table(kept), path)
    with Guard.load(f"{guard.called}:{form}", profile=guard.profile, calibration=False, runtime=runtime) as loaded:
        table = with_progress(loaded, path, form)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_table(table, kept)
    return with_own_truth(table, path)


def with_progress(guard: Guard, path: Path, name: str) -> ScoreTable:
    """Score a file, and say on stderr how far it is."""
    records, done = list(read_records(path)), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % 100 == 0:
            print(f"{name} {path.name} {done} of {len(records)}", file=sys.stderr)

    return score_records(guard, records, advance=advance)


def with_own_truth(table: ScoreTable, path: Path) -> ScoreTable:
    """The table with the labels of the file that it was scored from."""
    truth = find_truth(path, table.labels)
    assert truth is not None
    return with_truth(table, truth, same_file=True)


if __name__ == "__main__":
    main()
