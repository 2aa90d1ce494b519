"""How often the intervals of `bench quant` hold the truth, and how often its decisions err, over simulated studies.

    python bench/coverage.py > bench/results/coverage.md                       # 2,000 studies, some minutes
    python bench/coverage.py --studies 10000 > bench/results/coverage.md       # of the bootstrap too: an hour

No model is asked: decisions change by a known rate, scores move by a known law. One-sided 95 % bounds of a count cannot
hold the truth in just 95 % of all studies, since counts are whole; they hold it in at least so many.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from edgeguard.evaluation.drift import label_changes, wilson_high
from edgeguard.evaluation.rates import exact_high, exact_low, watched_high
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import Look, decide, goes_on, looks_of

RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
SIZES = (60, 200, 700, 2000)
FIGURES = ("auroc", "auprc", "ece", "brier", "f1")
DRAWS = 500


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--bootstraps", type=int, help="studies of the bootstrap [default: a tenth, 10000: as many]")
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
        ("records", "limit", "rate", "keeps", "breaks", "too few", "errs", "bound holds", "records scored"),
        (
            decision_row(n, limit, share * limit, args.studies, rng)
            for n, limit in ((60, 0.05), (400, 0.05), (700, 0.02), (2000, 0.02))
            for share in (0.1, 0.5, 1.0, 1.0001, 2.0, 5.0)
        ),
    )
    studies = args.bootstraps or (args.studies if args.studies >= 10000 else args.studies // 10)
    print(
        f"\n## Paired bootstrap of changes against the truth, {studies:,} studies of {DRAWS} draws: 95 %, two-sided\n"
    )
    table(("records", *FIGURES), (bootstrap_row(n, studies, rng) for n in SIZES[:3]))


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
    """Studies as `bench quant` runs them: looks, and an end as soon as it is certain."""
    choices, looks = Choices(max_flip_rate=limit), looks_of(n)
    steps = np.diff([0, *looks])
    verdicts, held, scored = {"keeps": 0, "breaks": 0, "too_few": 0}, 0, 0
    for counts in np.cumsum(rng.binomial(steps, rate, (studies, len(steps))), axis=1).tolist():
        seen: list[Look] = []
        for k, m in zip(counts, looks, strict=True):
            seen.append(Look(m, k, 0, m == n))
            decision = decide(seen, n, choices, how_many=False)
            if not goes_on(decision, n, choices):
                break
        assert decision.verdict is not None
        verdicts[decision.verdict] += 1
        held += decision.rate.high >= rate
        scored += decision.look.n
    errs = verdicts["keeps"] if rate > limit else verdicts["breaks"]
    shares = [share(x / studies) for x in (*verdicts.values(), errs, held)]
    return [f"{n:,}", f"{100 * limit:g} %", f"{100 * rate:.3g} %", *shares, f"{scored / studies:,.0f}"]


def made_scores(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and the scores of a reference and of a variant that is noisier and leans to safe."""
    y_true = rng.random(n) < 0.4
    margin = np.where(y_true, 1.5, -1.5) + rng.normal(0, 1.5, n)
    other = margin - 0.2 + rng.normal(0, 0.6, n)
    p, q = (1 / (1 + np.exp(-x)) for x in (margin, other))
    return y_true, p, q


def bootstrap_row(n: int, studies: int, rng: np.random.Generator) -> list[str]:
    """Against the change in very many records."""
    y_true, p, q = made_scores(1_000_000, rng)
    truth = {k: v.value for k, v in label_changes(y_true, (p, p >= 0.5), (q, q >= 0.5), draws=0).items()}
    held = dict.fromkeys(FIGURES, 0)
    for study in range(studies):
        y_true, p, q = made_scores(n, rng)
        found = label_changes(y_true, (p, p >= 0.5), (q, q >= 0.5), draws=DRAWS, seed=study)
        for name in FIGURES:
            held[name] += bool(found[name].low <= truth[name] <= found[name].high)
        if study % 100 == 99:
            print(f"{n} records: {study + 1} of {studies}", file=sys.stderr)
    return [f"{n:,}", *(share(held[name] / studies) for name in FIGURES)]


if __name__ == "__main__":
    main()
