"""What a study costs in CPU: all records for all variants, as it was, and as far as its statements need, as it is.

    python bench/study_cost.py > bench/results/study_cost.md                       # some minutes
    python bench/study_cost.py RECORDS --variants q8_0,q5_1,q5_0,q4_1,q4_0,iq4_nl,onnx-fp32,onnx-int8,onnx-int4 \\
        --limit 0.02 --floor 100 > bench/results/study_cost.md                     # of a file of records: hours

One process of one thread. With --workers N on N cores: "before" one process of N threads, since it knew no other way to
use them, "after" N processes of one thread. Models are made before, and are in neither figure. CPU seconds hold on
a busy machine too, seconds of the clock on a quiet one alone. "Before" scores every record with every model, FLOOR
records under each condition and with float activations, and measures speed on 32 records three times; a variant was
inside if the upper end of Wilson's 95 % interval was. Both write the report's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from common import machine, texts_between

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import conditions
from edgeguard.evaluation import drift
from edgeguard.evaluation.drift import wilson_high
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.quant.choices import HEADLINE, Choices, decided
from edgeguard.quant.report import Measured, build_report
from edgeguard.quant.scoring import Setting, measure, score
from edgeguard.quant.study import StudyOptions, open_reference, setting_of, study
from edgeguard.quant.variants import Variant, as_float, made_float, make_variants

T = TypeVar("T")
MEASUREMENTS, FOR_THE_CLOCK = 3, 32  # as they were


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", help="[default: 240 texts that are made up]")
    parser.add_argument("--reference", help="an F32 or F16 model [default: edgeguard-135m]")
    parser.add_argument("--profile", help="[default: told by the reference]")
    parser.add_argument("--variants", default="q8_0,q4_0")
    parser.add_argument("--limit", type=float, default=0.05, help="of changed decisions")
    parser.add_argument("--loss", type=float, help="of AUPRC lost, where RECORDS has labels [default: no such limit]")
    parser.add_argument("--workers", type=int, default=1, help="cores to use: see above")
    parser.add_argument("--floor", type=int, default=40)
    parser.add_argument("--first", type=int, help="so many records of the file only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = StudyOptions(
            records=args.records or made_up(folder / "records.jsonl"),
            folder=folder / "after",
            reference=args.reference,
            profile=args.profile,
            variants=args.variants.split(","),
            runtime=RuntimeOptions(threads=1, kv_cache="f32"),
            workers=args.workers,
            choices=Choices(max_flip_rate=args.limit, max_auprc_loss=args.loss),
            floor=args.floor,
            limit=args.first,
        )
        options.models.mkdir(parents=True)
        reference = open_reference(options)
        models = make_variants(reference, options.variants, options.models)
        setting = setting_of(reference, options)
        alone = replace(setting, workers=1, runtime=replace(setting.runtime, threads=args.workers))
        before, rates = spent(lambda: as_it_was(reference, models, alone, options, folder / "before"))
        after, report = spent(lambda: study(options).data)
        print_costs(before, after, rates, report, args)


def made_up(path: Path) -> Path:
    """A file of 240 different texts of 30 to 200 characters."""
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts_between(240, 30, 200)), encoding="utf-8"
    )
    return path


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU, of this process and of those that it started and saw end; and of the clock."""

    cpu: float
    wall: float


def spent(work: Callable[[], T]) -> tuple[Spent, T]:
    """What the work took, and what it gives."""
    began, clock = os.times(), time.perf_counter()
    found = work()
    now = os.times()
    return Spent(sum(now[:4]) - sum(began[:4]), time.perf_counter() - clock), found


def as_it_was(
    reference: Variant, models: Sequence[Variant], setting: Setting, options: StudyOptions, scores: Path
) -> Mapping[str, tuple[int, int]]:
    """Variant → decisions that changed, of how many."""
    every = [reference, *models]
    tables = {one.name: score(one, setting, scores).table for one in every}
    for one in every:
        runtime = setting.runtime
        others = [replace(setting, runtime=replace(runtime, threads=1 if runtime.threads == 2 else 2))]
        others += [replace(setting, runtime=replace(runtime, condition=c)) for c in conditions(one.path).values()]
        for other in others:
            score(one, other, scores, upto=options.floor)
    for one in models:
        if as_float(one) is not None:
            with made_float(one, scores) as made:
                score(made, setting, scores, upto=options.floor)
    costs = [[measure(one, setting, FOR_THE_CLOCK) for one in every] for _ in range(MEASUREMENTS)]
    truth = find_truth(options.records, tables[reference.name].labels)
    if truth is not None:
        tables = {name: with_truth(table, truth, same_file=True) for name, table in tables.items()}
    measured = [Measured(one, tables[one.name], None, [row[i] for row in costs]) for i, one in enumerate(every)]
    build_report(measured[0], measured[1:], options.choices, {"profile": setting.profile})
    found = {}
    for one in models:
        left, right = drift.shared(tables[reference.name], tables[one.name])
        p, q = (decided(table, HEADLINE, options.choices).y_pred[:, 0] for table in (left, right))
        found[one.name] = int((p != q).sum()), len(p)
    return found


def print_costs(
    before: Spent,
    after: Spent,
    rates: Mapping[str, tuple[int, int]],
    report: Mapping[str, object],
    args: argparse.Namespace,
) -> None:
    """Seconds, and what either way says of each variant."""
    variants, limit = report["variants"], args.limit
    assert isinstance(variants, list)
    loss = "" if args.loss is None else f" and {args.loss:g} of AUPRC lost"
    print(f"{machine()}; {report['planned']} records, limits of {100 * limit:g} % changed decisions{loss}.\n")
    if args.workers == 1:
        print("1 process.\n")
    else:
        print(f"Before in one process of {args.workers} threads, after in {args.workers} processes of one thread.\n")
    for what, one, other in (("CPU", before.cpu, after.cpu), ("Clock", before.wall, after.wall)):
        print(f"{what} seconds: {one:.0f} before, {other:.0f} after: {one / other:.2f} times as many.\n")
    print("| variant | all records: changed | inside | as it is: changed | inside |\n|---|---:|---:|---:|---:|")
    for one in variants:
        k, n = rates[one["name"]]
        inside, found = wilson_high(k, n) <= limit, one["decision"]
        its = f"{found['changed']} of {found['of']}"
        print(f"| {one['name']} | {k} of {n} | {'yes' if inside else 'not surely'} | {its} | {found['verdict']} |")


if __name__ == "__main__":
    main()
