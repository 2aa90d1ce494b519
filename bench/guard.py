"""The built-in guard's figures on labelled files, beside two baselines, with bootstrap 95 % intervals.

    python bench/guard.py DATA --scores FOLDER > bench/results/guard.md

DATA is the data pack: val.jsonl, eval_public/, and for the baseline train.jsonl and train_pairs.jsonl. All scores come
from edgeguard itself. FOLDER keeps them, by model and file, so that a second run need not score again.

edgeguard-135m  the built-in guard, at its own calibration and thresholds
smollm2         its base model, asked zero-shot with the policy in the prompt
tf-idf          logistic regression on word and character n-grams, trained on the same collected rows

All have thresholds chosen on val.jsonl by the guard's own rule. Differences are paired: the same draws of records.
Zero-shot takes several times as long, for the policy in each prompt: --zero-shot N asks of N records a file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, roc_auc_score
from sklearn.pipeline import make_union

from edgeguard.builtin import built_in
from edgeguard.calibration.fitting import Target, fit_label
from edgeguard.calibration.maps import logit, read_calibration, sigmoid
from edgeguard.evaluation.table import ScoreTable, load_table, save_table, score_records
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_records
from edgeguard.rows.record import Record

RESAMPLINGS = 300
N_BINS = 15
VERDICT = ("AUROC", "AUPRC", "F1", "false positives", "Brier", "Brier raw", "ECE", "ECE raw")
CODES = ("micro F1", "macro F1", "micro AUPRC", "macro AUPRC", "Hamming loss")
SAME_VERDICT = (
    "edgeguard-135m joint",
    "edgeguard-135m conditional",
)  # but for flags
COMPARED = ("AUROC", "AUPRC", "F1", "micro F1", "micro AUPRC")
OURS = "edgeguard-135m marginal"


@dataclass(frozen=True)
class Predictions:
    """What a system says of the records of one file.

    unsafe      (n,) P(unsafe), to rank by and as a probability; `raw` the same before calibration
    labels      (n, n_labels) probabilities
    flagged     (n,) at the system's thresholds
    named       (n, n_labels) likewise
    """

    unsafe: np.ndarray
    raw: np.ndarray
    labels: np.ndarray
    flagged: np.ndarray
    named: np.ndarray


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, required=True, help="folder to keep scores in")
    parser.add_argument("--zero-shot", type=int, metavar="N", help="the base model too, on N records of each file")
    parser.add_argument("--json", type=Path, help="all figures, as JSON")
    args = parser.parse_args()
    args.scores.mkdir(parents=True, exist_ok=True)
    files = [args.data / "val.jsonl", *sorted((args.data / "eval_public").glob("*.jsonl"))]
    files += sorted((args.data / "eval_public" / "restricted").glob("*.jsonl"))
    tables = {path: table_of("edgeguard-135m", path, args.scores) for path in files}
    baseline = TfIdf(args.data)
    systems: dict[str, Callable[[Path], Predictions]] = {
        f"edgeguard-135m {name}": lambda path, name=name: ours(tables[path], name)
        for name in ("marginal", "joint", "conditional")
    }
    if args.zero_shot:
        asked = {path: table_of("smollm2", sampled(path, args.zero_shot, args.scores), args.scores) for path in files}
        rows = {path: rows_of(tables[path], asked[path]) for path in files}
        systems["smollm2 marginal"] = at_thresholds(
            lambda path: zero_shot(asked[path]), files[0], asked[files[0]].truth
        )
    systems["tf-idf"] = at_thresholds(lambda path: baseline(path, tables[path]), files[0], tables[files[0]].truth)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    print("Bootstrap 95 % intervals over records in brackets. –: needs safe and unsafe rows.")
    for path in files:
        truth = tables[path].truth
        restricted = " (non-commercial licence)" if path.parent.name == "restricted" else ""
        print(f"\n### {path.name}{restricted}: {len(truth)} records, {int(truth.any(axis=1).sum())} unsafe")
        said = {name: predict(path) for name, predict in systems.items()}
        figures, over = {}, {}
        for name, predictions in said.items():
            taken = rows[path] if name.startswith("smollm2") else np.arange(len(truth))
            drawn = draw(predictions, truth[taken])
            shown = f"{name}, {len(taken)} records" if len(taken) < len(truth) else name
            figures[shown] = {key: interval(values) for key, values in drawn.items()}
            if not name.startswith("edgeguard"):
                same = draw(of_rows(said[OURS], taken), truth[taken])
                over[f"{OURS} over {shown}"] = {key: interval(same[key] - drawn[key]) for key in COMPARED}
        found[path.stem] = figures | over
        verdicts = {n: f for n, f in figures.items() if n not in SAME_VERDICT} | over
        print_table("verdict", verdicts, VERDICT)
        print_table("codes", figures | over, CODES)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_table(name: str, rows: Mapping[str, Mapping[str, Sequence[float]]], keys: Sequence[str]) -> None:
    """Markdown: a row a system, a column a figure; differences with their sign."""
    print(f"\n| {name} | {' | '.join(keys)} |\n|---{'|---:' * len(keys)}|")
    for row, figures in rows.items():
        sign = "+" if " over " in row else ""
        print(f"| {row} | {' | '.join(show(figures[k], sign=sign) if k in figures else '' for k in keys)} |")


def show(found: Sequence[float], *, sign: str = "") -> str:
    """`0.903 [0.873, 0.926]`."""
    value, low, high = found
    return "–" if np.isnan(value) else f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


# ---------------------------------------------------------------------------------------------------------------------
# Systems


def table_of(system: str, path: Path, folder: Path) -> ScoreTable:
    """A file's scores, from the folder where they are there."""
    profile = "edgeguard-135m" if system == "edgeguard-135m" else "instruct"
    model = built_in("edgeguard-135m").model_sha256
    if system != "edgeguard-135m":
        model = sha256(built_in("edgeguard-135m").base_path)
    key = hashlib.sha256(f"{model} {profile} {sha256(path)}".encode()).hexdigest()[:16]
    kept = folder / f"{system}-{path.stem}-{key}.npz"
    if kept.exists():
        return load_table(kept)
    with Guard.load(profile=profile, calibration=False) as guard:
        records, done = list(read_records(path)), 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done % 100 == 0:
                print(f"{system} {path.name} {done} of {len(records)}", file=sys.stderr)

        table = score_records(guard, records, advance=advance)
    save_table(table, kept)
    return table


def ours(table: ScoreTable, estimator: str) -> Predictions:
    """The built-in guard as `edgeguard score` shows it."""
    calibration = read_calibration(built_in("edgeguard-135m").calibration(estimator))
    odds = logit(table.scores[estimator])
    labels = np.stack([calibration.maps[code](odds[:, i]) for i, code in enumerate(table.labels)], axis=1)
    unsafe = calibration.maps["unsafe"](table.margin)
    named = labels >= np.array([calibration.thresholds[code] for code in table.labels])
    flagged = (unsafe >= calibration.thresholds["unsafe"]) | named.any(axis=1)
    return Predictions(unsafe, sigmoid(table.margin), labels, flagged, named)


def zero_shot(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """P(unsafe) and the labels' probabilities, as the model gives them."""
    return sigmoid(table.margin), table.scores["marginal"]


def sampled(path: Path, n: int, folder: Path) -> Path:
    """A file of at most n of the records, in their order."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = sorted(random.Random(0).sample(range(len(lines)), min(n, len(lines))))
    out = folder / f"{path.stem}-{n}.jsonl"
    out.write_text("".join(lines[i] for i in kept), encoding="utf-8")
    return out


def rows_of(table: ScoreTable, sample: ScoreTable) -> np.ndarray:
    """Where a sample's records are in the table of all."""
    place = {id_: i for i, id_ in enumerate(table.ids)}
    return np.array([place[id_] for id_ in sample.ids])


def of_rows(said: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of some records."""
    return Predictions(said.unsafe[rows], said.raw[rows], said.labels[rows], said.flagged[rows], said.named[rows])


def at_thresholds(
    predict: Callable[[Path], tuple[np.ndarray, np.ndarray]], val: Path, truth: np.ndarray
) -> Callable[[Path], Predictions]:
    """A baseline with thresholds by the rule of the guard's own: best F1 of each code on val, at most 1 % of the safe
    records over it; 2 % of them over the verdict's."""
    unsafe, labels = predict(val)
    safe = ~truth.any(axis=1)
    rule = {"method": "none", "safe": safe}
    verdict = fit_label("unsafe", logit(unsafe), unsafe, ~safe, target=Target("fpr", 0.02), **rule)
    codes = [
        fit_label("code", logit(p), p, t, target=Target("f1"), safe_rate=0.01, **rule)
        for p, t in zip(labels.T, truth.T, strict=True)
    ]
    at = np.array([fit.threshold.value if fit.threshold else 0.5 for fit in codes])

    def said(path: Path) -> Predictions:
        unsafe, labels = predict(path)
        named = labels >= at
        return Predictions(unsafe, unsafe, labels, (unsafe >= verdict.threshold.value) | named.any(axis=1), named)

    return said


class TfIdf:
    """The baseline: one model for the verdict, one for each code."""

    def __init__(self, data: Path) -> None:
        rows = [r for file in ("train.jsonl", "train_pairs.jsonl") for r in read_records(data / file)]
        texts = [text_of(r) for r in rows]
        codes = sorted({label for r in rows for label in r.labels or ()}, key=lambda code: int(code[1:]))
        self.codes = codes
        features = make_union(
            TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2),
            TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=3, max_features=200_000),
        )
        self.features = features
        x = features.fit_transform(texts)
        self.verdict = LogisticRegression(C=10, max_iter=300, solver="liblinear").fit(x, [bool(r.labels) for r in rows])
        self.by_code = [
            LogisticRegression(C=10, max_iter=300, solver="liblinear").fit(x, [code in (r.labels or ()) for r in rows])
            for code in codes
        ]

    def __call__(self, path: Path, table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
        """P(unsafe) and the labels' probabilities."""
        x = self.features.transform([text_of(r) for r in read_records(path)])
        unsafe = self.verdict.predict_proba(x)[:, 1]
        labels = np.zeros(table.truth.shape)
        for code, model in zip(self.codes, self.by_code, strict=True):
            labels[:, table.labels.index(code)] = model.predict_proba(x)[:, 1]
        return unsafe, labels


def text_of(record: object) -> str:
    """What a bag of words sees."""
    assert isinstance(record, Record)
    return "\n".join(message.content for message in record.messages)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def draw(said: Predictions, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Figure → its value and those of the same draws of records for every system."""
    rng, n = np.random.default_rng(0), len(truth)
    rows = [np.arange(n), *(rng.integers(0, n, n) for _ in range(RESAMPLINGS))]
    found = [figures_of(said, truth, r) for r in rows]
    return {key: np.array([f[key] for f in found]) for key in found[0]}


def interval(values: np.ndarray) -> list[float]:
    """Value, lower and upper end of its 95 % interval."""
    sample = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) > RESAMPLINGS // 2 else (np.nan, np.nan)
    return [float(values[0]), float(low), float(high)]


def figures_of(said: Predictions, truth: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """All figures of some rows; nan where the rows have one class only."""
    t, verdict = truth[rows], truth[rows].any(axis=1)
    unsafe, flagged, labels, named = said.unsafe[rows], said.flagged[rows], said.labels[rows], said.named[rows]
    both = verdict.any() and not verdict.all()
    there = t.any(axis=0)
    return {
        "AUROC": roc_auc_score(verdict, unsafe) if both else np.nan,
        "AUPRC": average_precision_score(verdict, unsafe) if both else np.nan,
        "F1": f1_score(verdict, flagged),
        "false positives": float(flagged[~verdict].mean()) if not verdict.all() else np.nan,
        "Brier": float(((unsafe - verdict) ** 2).mean()),
        "ECE": ece(unsafe, verdict),
        "Brier raw": float(((said.raw[rows] - verdict) ** 2).mean()),
        "ECE raw": ece(said.raw[rows], verdict),
        "micro F1": f1_score(t, named, average="micro", zero_division=0),
        "macro F1": f1_score(t[:, there], named[:, there], average="macro", zero_division=0),
        "micro AUPRC": average_precision_score(t.ravel(), labels.ravel()),
        "macro AUPRC": macro_auprc(t[:, there], labels[:, there]),
        "Hamming loss": hamming_loss(t, named),
    }


def macro_auprc(truth: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the labels that some row has."""
    return float(np.mean([average_precision_score(truth[:, i], labels[:, i]) for i in range(truth.shape[1])]))


def ece(p: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error over bins of equal mass."""
    order = np.array_split(np.argsort(p, kind="stable"), N_BINS)
    gaps: Sequence[float] = [abs(p[rows].mean() - truth[rows].mean()) * len(rows) for rows in order if len(rows)]
    return float(np.sum(gaps) / len(p))


if __name__ == "__main__":
    main()
