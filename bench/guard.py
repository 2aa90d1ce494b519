"""A built-in guard's figures on labelled files, beside other guards and two baselines, with 95 % intervals.

    python bench/guard.py DATA --scores FOLDER --out bench/results
    python bench/guard.py DATA --scores FOLDER --guard edgeguard-135m --guard edgeguard-135m@1
    python bench/guard.py DATA --scores FOLDER --option device=cuda --only-score     # on a machine that has a GPU

DATA is the data pack: val.jsonl, val2.jsonl, eval_public/, and for the baseline the training files. All scores come
from edgeguard itself. FOLDER keeps them, by model, file and how they were made: a second run scores nothing again, and
tables made elsewhere are found by a run with the same options.

The first --guard is the one whose figures these are, in its default form, at its own calibration and thresholds; those
of the others are beside it on the same records. Besides:

tf-idf     logistic regression on word and character n-grams, trained on the collected rows
zero-shot  the guard's base model, with the policy in the prompt: several times as slow, so of N records a file

Both have thresholds chosen on val.jsonl by the guard's own rule; neither is calibrated. Differences are paired: the
same draws of records. With --out: guard-NAME.md, which the card shows, guard-NAME-details.md and guard-NAME-length.md;
else all on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import guard_baselines as baselines
import guard_page as page
import guard_records as records
import numpy as np
from guard_measures import DRAWS, FEW, Drawn, Predictions, answer, at, draw, groups, interval, of_rows
from guard_targets import GREEDY, Outcome, outcomes

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import BuiltIn, Form, built_in
from edgeguard.calibration.files import read_calibration
from edgeguard.evaluation.table import ScoreTable, take

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "recipe"))
from calibrate import fit, how_made, kept_at, scores_of

DEFAULT = "edgeguard-135m"
TRAINING = ("train.jsonl", "train_pairs.jsonl")


@dataclass(frozen=True)
class Asked:
    """A guard in a form, by the name that it was asked for by, and what figures call it: its version, and its form
    where another form of that version stands beside it."""

    name: str
    guard: BuiltIn
    form: Form
    title: str = ""

    @property
    def version(self) -> str:
        """`NAME@VERSION`, whether or not that was asked for."""
        return f"{self.guard.name}@{self.guard.version}"


System = Callable[[records.Records, ScoreTable], tuple[Predictions, np.ndarray]]
# A file and the guard's own table of it → what the system says, and which of the table's records (rows) it says it of


def main() -> None:
    """Command line."""
    args = _arguments()
    args.scores.mkdir(parents=True, exist_ok=True)
    runtime = replace(RuntimeOptions(**dict(map(option, args.option))), threads=args.threads)
    files = [records.read(path) for path in records.files_of(args.data)]
    asked = titled([ask(name, args.form) for name in args.guard or [DEFAULT]])

    def is_wanted(one: records.Records, by: Asked) -> bool:
        kept = kept_at(by.guard, by.form.name, one.path, args.scores, runtime)
        return by is asked[0] or not args.as_far_as_scored or kept.exists()

    tables = [
        {
            one.path: scores_of(a.guard, a.form.name, one.path, args.scores, runtime)
            for one in files
            if is_wanted(one, a)
        }
        for a in asked
    ]
    if args.only_score:
        return
    for one in files:
        having = [kept for kept in tables if one.path in kept]
        same = records.on_the_same([records.counted(one, kept[one.path]) for kept in having])
        for kept, table in zip(having, same, strict=True):
            kept[one.path] = table
    first, *others = asked
    beside = list(zip(others, tables[1:], strict=True))
    systems: dict[str, System] = {}
    training = [args.data / name for name in args.tf_idf]
    if training:
        systems["tf-idf"] = tf_idf(baselines.TfIdf(training, args.scores), files[0], tables[0][files[0].path])
    if args.zero_shot:
        systems["zero-shot"] = zero_shot(first.guard, args.zero_shot, args.scores, files[0], runtime)
    found = [
        figures(
            first,
            one,
            tables[0][one.path],
            {other.title: partial(_guard, other, kept) for other, kept in beside if one.path in kept} | systems,
        )
        for one in files
    ]
    reached = targets(first, found)
    write(first, args, runtime, reached, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, required=True, help="folder to keep scores in")
    parser.add_argument(
        "--guard", action="append", metavar="NAME[@VERSION][:FORM]", help=f"again: beside it [default: {DEFAULT}]"
    )
    parser.add_argument("--form", help="of all guards that name none [default: each guard's own]")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of RuntimeOptions, such as device=cuda"
    )
    parser.add_argument("--only-score", action="store_true", help="fill FOLDER, print nothing")
    parser.add_argument(
        "--as-far-as-scored", action="store_true", help="guards beside the first only on files whose scores are kept"
    )
    parser.add_argument("--tf-idf", nargs="*", default=TRAINING, metavar="FILE", help="in DATA [default: %(default)s]")
    parser.add_argument("--zero-shot", type=int, metavar="N", help="the base model too, on N records of each file")
    parser.add_argument("--out", type=Path, help="folder for the pages")
    parser.add_argument("--json", type=Path, help="all figures, as JSON")
    return parser.parse_args()


def option(text: str) -> tuple[str, str | int]:
    """An option of the runtime, from `NAME=VALUE`. SystemExit for one that there is not."""
    name, _, value = text.partition("=")
    names = [field.name for field in fields(RuntimeOptions) if field.name not in ("threads", "condition", "lora")]
    if name not in names or not value:
        raise SystemExit(f"--option {text}: expected NAME=VALUE, of {', '.join(names)}")
    return name, int(value) if value.isdecimal() else value


def ask(text: str, form: str | None) -> Asked:
    """The guard that `NAME[:FORM]` means. Raises ModelError."""
    name, _, own = text.partition(":")
    guard = built_in(name)
    return Asked(name, guard, guard.form(own or form or guard.default[0]))


def titled(asked: Sequence[Asked]) -> list[Asked]:
    """With their titles. SystemExit for one that is there twice."""
    versions = Counter(one.version for one in asked)
    found = [
        replace(one, title=one.version if versions[one.version] == 1 else f"{one.version}:{one.form.name}")
        for one in asked
    ]
    if len({one.title for one in found}) < len(found):
        raise SystemExit(f"a guard was asked for twice: {', '.join(one.title for one in found)}; name each once")
    return found


# Systems


def ours(guard: BuiltIn, form: Form, table: ScoreTable, estimator: str) -> Predictions:
    """A form of a built-in guard as `edgeguard score` shows it. SystemExit where it has no calibration."""
    fitted = guard.calibration(form, estimator)
    if fitted is None:
        called = f"{guard.called}:{form.name}"
        raise SystemExit(f"{called} has no calibration for {estimator}; run models/recipe/calibrate.py")
    return at(read_calibration(fitted), table, estimator)


def _guard(
    asked: Asked, tables: Mapping[Path, ScoreTable], one: records.Records, own: ScoreTable
) -> tuple[Predictions, np.ndarray]:
    return ours(asked.guard, asked.form, tables[one.path], "marginal"), np.arange(len(own))


def at_thresholds(on_val: ScoreTable, val: Path) -> Callable[[ScoreTable], Predictions]:
    """A baseline's tables → its predictions, at thresholds chosen as the guard's are. No maps: of a category that it
    ranks worse than chance it has none."""
    identity = {"guard": "baseline", "profile": "baseline", "model_sha256": "baseline"}
    calibration = fit(on_val, identity, val, method="none")["marginal"]
    return lambda table: at(calibration, table, "marginal")


def tf_idf(baseline: baselines.TfIdf, val: records.Records, like: ScoreTable) -> System:
    """The bag of words on all records."""
    predict = at_thresholds(baseline.scores(val.path, like), val.path)
    return lambda one, own: (predict(baseline.scores(one.path, own)), np.arange(len(own)))


def zero_shot(guard: BuiltIn, n: int, folder: Path, val: records.Records, runtime: RuntimeOptions) -> System:
    """The base model on a sample of n records."""

    def table(one: records.Records) -> ScoreTable:
        return baselines.zero_shot(guard, baselines.sampled(one.path, n, folder), folder, runtime)

    predict = at_thresholds(table(val), val.path)

    def system(one: records.Records, own: ScoreTable) -> tuple[Predictions, np.ndarray]:
        sample = table(one)
        sample = take(sample, np.isin(sample.ids, own.ids))
        return predict(sample), baselines.rows_of(own, sample)

    return system


# Figures


def figures(asked: Asked, one: records.Records, table: ScoreTable, systems: Mapping[str, System]) -> page.FileFigures:
    """Everything about one file."""
    truth = table.truth
    assert truth is not None
    print(one.name, file=sys.stderr)
    said = {name: ours(asked.guard, asked.form, table, name) for name in table.scores}
    own = said["marginal"]
    shown, over = {asked.title: draw(own, truth)}, {}
    for name, system in systems.items():
        predictions, rows = system(one, table)
        title = name if len(rows) == len(truth) else f"{name}, {len(rows)} records"
        shown[title] = draw(predictions, truth[rows])
        same = shown[asked.title] if len(rows) == len(truth) else draw(of_rows(own, rows), truth[rows])
        over[title] = {key: same[key] - shown[title][key] for key in same}
    several = (one.sources == one.sources[0]).mean() < 1
    return page.FileFigures(
        records=one,
        n=len(table),
        n_unsafe=int(truth[:, 0].sum()),
        failed=int(one.counted.sum()) - len(table),
        systems=shown,
        codes={f"{asked.title}, {name}": draw(p, truth) for name, p in said.items()},
        greedy=draw(answer(table), truth),
        over=over,
        lengths=groups(own, truth, one.lengths[table.places], order=[*records.LENGTHS]),
        sources=groups(own, truth, one.sources[table.places], least=FEW) if several else [],
    )


def targets(asked: Asked, found: Sequence[page.FileFigures]) -> list[Outcome]:
    """What came of what was to be reached."""
    own = {one.records.name: one.own for one in found}
    others: dict[str, dict[str, Drawn]] = {GREEDY: {one.records.name: one.greedy for one in found}}
    for one in found:
        for name, drawn in [*one.systems.items()][1:]:
            others.setdefault(name, {})[one.records.name] = drawn
    return outcomes(asked.guard.name, asked.version, own, others)


def write(
    asked: Asked,
    args: argparse.Namespace,
    runtime: RuntimeOptions,
    reached: Sequence[Outcome],
    found: Sequence[page.FileFigures],
) -> None:
    """The pages, as files or on stdout."""
    head = (
        f"{asked.version}, form {asked.form.name}; scores made {how_made(runtime)}. "
        f"In brackets: 95 % intervals, of files by {DRAWS} draws of their records, of groups by Wilson. "
        "–: it takes more safe and unsafe records."
    )
    if failed := {one.records.name: one.failed for one in found if one.failed}:
        head += f" Not scored: {', '.join(f'{n} of {name}' for name, n in failed.items())}."
    pages = {
        "": page.card(head, reached, found),
        "-details": page.details(head, found),
        "-length": page.lengths([one for one in found if one.is_mixed]),
    }
    for kind, text in pages.items():
        if args.out is None:
            print(text, end="\n\n")
        else:
            (args.out / f"guard-{asked.name}{kind}.md").write_text(text + "\n", encoding="utf-8")
    if args.json:
        said = {
            one.records.name: {
                name: {key: interval(values) for key, values in drawn.items()}
                for name, drawn in {**one.systems, GREEDY: one.greedy}.items()
            }
            for one in found
        }
        args.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
