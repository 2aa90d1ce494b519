"""How often the intervals of `bench quant` hold the truth, and how often its decisions err, over simulated studies.

    python bench/coverage.py --studies 1000 > bench/results/coverage.md        # two minutes of one core
    python bench/coverage.py --studies 10000 > bench/results/coverage.md       # twenty

No model is asked: decisions change by a known rate, scores move by a known law. One-sided 95 % bounds of a count cannot
hold the truth in just 95 % of all studies, since counts are whole; they hold it in at least so many. Bounds that may be
looked at on the way hold it in more, for all that was not looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edgeguard.evaluation import metrics
from edgeguard.evaluation.drift import wilson_high
from edgeguard.evaluation.metrics import Figure, bootstrap
from edgeguard.evaluation.rates import Bounds, bounds, exact_high, exact_low, watched_high
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import Decision, Look, decide, design_of, goes_on, looks_of, next_look

RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
SIZES = (60, 200, 700, 2000)
FIGURES = ("auroc", "auprc", "ece", "brier", "f1")
VERDICTS = ("keeps", "breaks", "too few")
DRAWS = 500


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"{args.studies:,} simulated studies a row, seed {args.seed}. Shares of studies, in %.\n")
    print("## Bounds of the rate of changed decisions: how often they hold it\n")
    table(
        ("records", "rate", "exact high", "exact low", "Wilson's high (97.5 %)", "watched high, at every look"),
        (bounds_row(n, rate, args.studies, rng) for n in SIZES for rate in RATES),
    )
    print("\n## Decisions on a limit of changed decisions, of at most so many records\n")
    table(
        ("records", "limit", "rate", *VERDICTS, "errs", "bound holds", "records scored"),
        (
            decision_row(n, limit, share * limit, args.studies, rng)
            for n, limit in ((60, 0.05), (400, 0.05), (700, 0.02), (2000, 0.02))
            for share in (0.1, 0.5, 1.0, 1.0001, 2.0, 5.0)
        ),
    )
    print("\n## Decisions on a limit of the AUPRC lost, looked at on the way\n")
    lost = -float(np.mean([changes(*made_scores(1_000_000, rng), None)["auprc"] for _ in range(4)]))
    table(
        ("records", "lost", "limit", "studies", *VERDICTS, "high holds", "low holds", "records scored"),
        (
            loss_row(n, lost, times, studies, rng)
            for n, studies in ((200, args.studies), (400, max(1, args.studies // 20)))
            for times in (1.0, 2.0)
        ),
    )
    print(f"\n## Paired bootstrap of changes against the truth, {DRAWS} draws: 95 %, two-sided\n")
    sizes = ((60, args.studies), (200, args.studies), (700, max(1, args.studies // 5)))
    table(("records", "studies", *FIGURES), (bootstrap_row(n, studies, rng) for n, studies in sizes))


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """A Markdown table, printed as it comes."""
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def share(x: float) -> str:
    """0.9532 → 95.3."""
    return f"{100 * x:.1f}"


def bounds_row(n: int, rate: float, studies: int, rng: np.random.Generator) -> list[str]:
    """Of a number of records that was fixed before; and, watched, of all looks of a study together."""
    looks = looks_of(n)
    steps = np.diff([0, *looks])
    counts = np.cumsum(rng.binomial(steps, rate, (studies, len(steps))), axis=1)
    last = counts[:, -1].tolist()
    held = {
        "exact": np.mean([exact_high(k, n) >= rate for k in last]),
        "low": np.mean([exact_low(k, n) <= rate for k in last]),
        "wilson": np.mean([wilson_high(k, n) >= rate for k in last]),
        "watched": np.mean(
            [all(watched_high(k, m) >= rate for k, m in zip(row, looks, strict=True)) for row in counts.tolist()]
        ),
    }
    return [f"{n:,}", f"{100 * rate:g} %", *(share(float(x)) for x in held.values())]


def decision_row(n: int, limit: float, rate: float, studies: int, rng: np.random.Generator) -> list[str]:
    """Studies as `bench quant` runs them: looks, and an end as soon as it is certain.

    Of all looks before, a decision rests on the one with the highest low bound and the one with the lowest high bound:
    of studies that have these in common it is asked once.
    """
    choices, looks = Choices(max_flip_rate=limit), looks_of(n)
    steps, made = np.diff([0, *looks]), design_of(n, choices)
    verdicts, held, scored = {"keeps": 0, "breaks": 0, "too_few": 0}, 0, 0
    alone: dict[Look, Bounds] = {}
    asked: dict[tuple[Look, ...], tuple[Decision, bool]] = {}
    for counts in np.cumsum(rng.binomial(steps, rate, (studies, len(steps))), axis=1).tolist():
        lowest = highest = last = Look(0, 0, 0, False)
        for k, m in zip(counts, looks, strict=True):
            last = Look(m, k, 0, m == n)
            for look in (last, lowest, highest):
                if look not in alone:
                    alone[look] = bounds([(look.changed, look.n)], made)
            lowest = max(lowest, last, key=lambda look: alone[look].low)
            highest = min(highest, last, key=lambda look: alone[look].high)
            seen = (lowest, highest, last)
            if seen not in asked:
                found = decide(seen, n, choices, how_many=False)
                asked[seen] = found, goes_on(found, n, choices)
            decision, more = asked[seen]
            if not more:
                break
        assert decision.verdict is not None
        verdicts[decision.verdict] += 1
        held += decision.rate.high >= rate
        scored += decision.look.n
    errs = verdicts["keeps"] if rate > limit else verdicts["breaks"]
    shares = [share(x / studies) for x in (*verdicts.values(), errs, held)]
    return [f"{n:,}", f"{100 * limit:g} %", f"{100 * rate:.3g} %", *shares, f"{scored / studies:,.0f}"]


def loss_row(n: int, lost: float, times: float, studies: int, rng: np.random.Generator) -> list[str]:
    """The same of a limit that is `times` what very many records lose. To say of 1 that it is kept, or broken, errs.

    Without a limit of changed decisions beside it, so that the loss is asked at every look that may ask it.
    """
    choices, looks = Choices(max_auprc_loss=times * lost, draws=DRAWS), looks_of(n)
    verdicts, high, low, scored = {"keeps": 0, "breaks": 0, "too_few": 0}, 0, 0, 0
    for study in range(studies):
        one = made_scores(n, rng)
        drawn, seen = replace(choices, seed=study), []
        for m in looks:
            left, right = (scores_table(one[0][:m], scores[:m]) for scores in one[1:])
            seen.append(next_look(left, right, seen, drawn, planned=n, upto=m))
            decision = decide(seen, n, drawn, how_many=False)
            if not goes_on(decision, n, drawn):
                break
        assert decision.verdict is not None
        assert decision.loss is not None
        verdicts[decision.verdict] += 1
        high, low = high + (decision.loss.high >= lost), low + (decision.loss.low <= lost)
        scored += decision.look.n
    shares = [share(x / studies) for x in (*verdicts.values(), high, low)]
    return [f"{n:,}", f"{lost:.4f}", f"{times * lost:.4f}", f"{studies:,}", *shares, f"{scored / studies:,.0f}"]


def scores_table(y_true: np.ndarray, p: np.ndarray) -> ScoreTable:
    """Of a guard that says safe or unsafe and nothing else."""
    n = len(p)
    margin, nothing = np.log(p / (1 - p)), np.zeros(n)
    scores = {"marginal": p[:, None]}
    return ScoreTable(("unsafe",), range(n), np.arange(n), margin, scores, None, nothing, truth=y_true[:, None])


def made_scores(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and the scores of a reference and of a variant that is noisier and leans to safe."""
    y_true = rng.random(n) < 0.4
    margin = np.where(y_true, 1.5, -1.5) + rng.normal(0, 1.5, n)
    other = margin - 0.2 + rng.normal(0, 0.6, n)
    p, q = (1 / (1 + np.exp(-x)) for x in (margin, other))
    return y_true, p, q


def bootstrap_row(n: int, studies: int, rng: np.random.Generator) -> list[str]:
    """Against the change in very many records."""
    truth = changes(*made_scores(1_000_000, rng), None)
    held = dict.fromkeys(FIGURES, 0)
    for study in range(studies):
        one = made_scores(n, rng)
        rarer = min(int(one[0].sum()), int((~one[0]).sum()))
        found = bootstrap(partial(changes, *one), n, draws=DRAWS, seed=study, telling=rarer, symmetric=("f1",))
        for name in FIGURES:
            held[name] += bool(found[name].low <= truth[name] <= found[name].high)
        if study % 1000 == 999:
            print(f"{n} records: {study + 1} of {studies}", file=sys.stderr)
    return [f"{n:,}", f"{studies:,}", *(share(held[name] / studies) for name in FIGURES)]


def changes(y_true: np.ndarray, p: np.ndarray, q: np.ndarray, weight: np.ndarray | None) -> dict[str, Figure]:
    """Variant minus reference of FIGURES, as `drift.label_changes` has them beside others."""
    before, after = (figures(y_true, scores, weight) for scores in (p, q))
    return {name: after[name] - before[name] for name in FIGURES}


def figures(y_true: np.ndarray, p: np.ndarray, weight: np.ndarray | None) -> dict[str, Figure]:
    """Of one model."""
    curve = metrics.roc_curve(y_true, p, weight)
    return {
        "auroc": metrics.as_given(metrics.area(curve), weight),
        "auprc": metrics.as_given(metrics.average_precision(curve), weight),
        "ece": metrics.ece_loss(y_true, p, weight),
        "brier": metrics.brier_loss(y_true, p, weight),
        "f1": metrics.f1(y_true, p >= 0.5, weight),
    }


if __name__ == "__main__":
    main()
