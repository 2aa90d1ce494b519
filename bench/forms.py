"""The forms of the built-in guard: what each changes in the figures of the card, beside the noise, and its speed.

    python bench/forms.py DATA/val.jsonl --scores FOLDER > bench/results/forms.md

The reference is the guard as it comes, the adapter beside the base model. Each form stands with its own calibration and
thresholds, fitted on the same file by the same rule; differences are paired, over the same draws of records.

Noise is what the reference's figures move by when the same weights are computed in another way (the condition that its
runtime declares: a fused attention kernel) and calibrated by the same rule: no choice of a user's, and no figure is
better known than that. A form keeps to the reference in a figure where it is not worse by more than that noise, taken
at the far end of its 95 % interval.

FOLDER keeps the scores. Speed: the same texts by all forms in turn, one text at a time, the reference first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import spread, texts_of
from guard import ask, fit, ours, scores_of
from guard_measures import Drawn, at, draw, interval
from guard_page import CODES, VERDICT

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import opener
from edgeguard.builtin import ADAPTER, BuiltIn
from edgeguard.evaluation.drift import flips
from edgeguard.evaluation.table import ScoreTable
from edgeguard.guard import Guard

LOSSES = ("false positives", "Brier", "Brier raw", "ECE", "ECE raw", "Hamming loss")  # the lower the better
FIGURES = {"marginal": (*VERDICT, *CODES), "joint": CODES, "conditional": CODES}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("val", type=Path)
    parser.add_argument("--guard", default="edgeguard-135m", help="[default: %(default)s]")
    parser.add_argument("--scores", type=Path, required=True, help="folder to keep scores in")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--speed", type=int, default=60, metavar="N", help="texts to time [default: 60; 0: none]")
    args = parser.parse_args()
    runtime = RuntimeOptions(threads=args.threads)
    guard = ask(args.guard, ADAPTER).guard
    reference = guard.form(ADAPTER)
    tables = {form.name: scores_of(guard, form.name, args.val, args.scores, runtime) for form in guard.forms}
    # The other conditions move nothing: docs/quantization-study.md.
    condition = opener(reference.kind).conditions["attention"]
    other = scores_of(guard, ADAPTER, args.val, args.scores, replace(runtime, condition=condition))
    truth = tables[ADAPTER].truth
    assert truth is not None
    print_scores(guard, tables, other)
    identity = {"guard": guard.name, "profile": guard.profile, "model_sha256": reference.model_sha256}
    # Both fitted in the same way, on this file alone, so that kernel and new fit are all that is between them.
    same = {name: fit(table, identity, args.val) for name, table in (("other", other), (ADAPTER, tables[ADAPTER]))}
    for estimator, keys in FIGURES.items():
        drawn = {form.name: draw(ours(guard, form, tables[form.name], estimator), truth) for form in guard.forms}
        noisy = draw(at(same["other"][estimator], other, estimator), truth)
        quiet = draw(at(same[ADAPTER][estimator], tables[ADAPTER], estimator), truth)
        print_figures(estimator, keys, drawn, {key: interval(noisy[key] - quiet[key]) for key in keys})
    if args.speed:
        print_speed(guard, args.val, args.speed, args.threads)


def print_scores(guard: BuiltIn, tables: Mapping[str, ScoreTable], noisy: ScoreTable) -> None:
    """How far the scores themselves move from the reference's."""
    base = tables[ADAPTER]
    verdicts = unsafe_at(guard, base, ADAPTER)
    print(f"{len(base.margin)} records. Reference: {ADAPTER}.\n")
    print("| scores against the reference's | RMS of the margin, nats | verdicts flipped (at most) |\n|---|---:|---:|")
    others = {name: (table, name) for name, table in tables.items() if name != ADAPTER}
    others[f"{ADAPTER}, other attention kernel"] = (noisy, ADAPTER)
    for name, (table, form) in others.items():
        found = flips(verdicts, unsafe_at(guard, table, form))
        rms = float(np.sqrt(np.mean((table.margin - base.margin) ** 2)))
        print(f"| {name} | {rms:.3g} | {100 * found.rate:.2f} % ({100 * found.high:.2f} %) |")


def unsafe_at(guard: BuiltIn, table: ScoreTable, form: str) -> np.ndarray:
    """(n,) verdicts at a form's own calibration and threshold."""
    return ours(guard, guard.form(form), table, "marginal").y_pred[:, 0]


def print_figures(
    estimator: str, keys: Sequence[str], drawn: Mapping[str, Drawn], noisy: Mapping[str, Sequence[float]]
) -> None:
    """A row a figure: the reference's, its noise, what each form changes; bold where it is worse by more than that."""
    base, others = drawn[ADAPTER], [name for name in drawn if name != ADAPTER]
    print(f"\n| {estimator} | {ADAPTER} | noise | {' | '.join(others)} |\n|---{'|---:' * (2 + len(others))}|")
    outside: dict[str, list[str]] = {name: [] for name in others}
    for key in keys:
        noise = max(map(abs, noisy[key]))
        cells = []
        for name in others:
            value, low, high = interval(drawn[name][key] - base[key])
            cell = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
            if (value if key in LOSSES else -value) > noise:
                outside[name].append(key)
                cell = f"**{cell}**"
            cells.append(cell)
        print(f"| {key} | {base[key][0]:.4f} | {noise:.4f} | {' | '.join(cells)} |")
    print()
    for name, figures in outside.items():
        print(f"- {name}: {'within the noise in every figure' if not figures else 'worse in ' + ', '.join(figures)}")


def print_speed(guard: BuiltIn, val: Path, n: int, threads: int | None) -> None:
    """Records a second of each form over the reference's on the same text, in turn."""
    with ExitStack() as opened:
        runtime = RuntimeOptions(threads=threads)
        loaded = {
            form.name: opened.enter_context(Guard.load(f"{guard.called}:{form.name}", runtime=runtime))
            for form in guard.forms
        }
        texts = texts_of([val], n, loaded[ADAPTER].backend.vocabulary)
        took: dict[str, list[float]] = {name: [] for name in loaded}
        for one in loaded.values():
            one.score(texts[0])  # the first record of a model pays for its pages
        for text in texts:
            for name, one in loaded.items():
                began = time.perf_counter()
                one.score(text)
                took[name].append(time.perf_counter() - began)
    print(f"\n| form | records/s, {len(texts)} texts in turn | over {ADAPTER} on the same text |\n|---|---:|---:|")
    for name, seconds in took.items():
        rates, ratio = 1 / np.array(seconds), np.array(took[ADAPTER]) / np.array(seconds)
        print(f"| {name} | {spread(rates)} | {spread(ratio, '×')} |")


if __name__ == "__main__":
    main()
