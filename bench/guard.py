"""The built-in guard's figures on labelled files, beside two baselines, with bootstrap 95 % intervals.

    python bench/guard.py DATA --scores FOLDER > bench/results/guard.txt

DATA is the data pack: val.jsonl, eval_public/, and for the baseline train.jsonl and train_pairs.jsonl. All scores come
from edgeguard itself. FOLDER keeps them, by model and file, so that a second run need not score again.

edgeguard-135m  the built-in guard, at its own calibration and thresholds
smollm2         its base model, asked zero-shot with the policy in the prompt, at thresholds of 0.5
tf-idf          logistic regression on word and character n-grams, trained on the same collected rows
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, roc_auc_score
from sklearn.pipeline import make_union

from edgeguard.calibration import logit, read_calibration, sigmoid
from edgeguard.files import sha256
from edgeguard.guard import Guard
from edgeguard.inputs import read_records
from edgeguard.models import built_in
from edgeguard.records import Record
from edgeguard.scores import ScoreTable, load_table, save_table, score_records

RESAMPLINGS = 300
N_BINS = 15


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
    parser.add_argument("--zero-shot", action="store_true", help="the base model too: three times as long")
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
        zero = {path: table_of("smollm2", path, args.scores) for path in files}
        systems["smollm2 marginal"] = lambda path: plain(zero[path], "marginal")
    systems["tf-idf"] = lambda path: baseline(path, tables[path])
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    print("figure [bootstrap 95 % interval over records]; -: needs safe and unsafe rows")
    for path in files:
        truth = tables[path].truth
        restricted = " (non-commercial licence)" if path.parent.name == "restricted" else ""
        print(f"\n{path.name}{restricted}: {len(truth)} records, {int(truth.any(axis=1).sum())} unsafe")
        for name, predict in systems.items():
            figures = intervals(predict(path), truth)
            found.setdefault(path.stem, {})[name] = figures
            print_figures(name, figures)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_figures(name: str, figures: Mapping[str, list[float]]) -> None:
    """Two lines a system: the verdict, and the codes."""
    shown = {key: "-" if np.isnan(v[0]) else f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for key, v in figures.items()}
    heads = ["AUROC", "AUPRC", "F1", "false positives", "Brier", "ECE", "Brier raw", "ECE raw"]
    if "marginal" in name or name == "tf-idf":  # the verdict is the same for all estimators
        print(f"  {name}: " + ", ".join(f"{key} {shown[key]}" for key in heads))
    codes = ["micro F1", "macro F1", "micro AUPRC", "macro AUPRC", "Hamming loss"]
    print(f"  {name}, codes: " + ", ".join(f"{key} {shown[key]}" for key in codes))


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


def plain(table: ScoreTable, estimator: str) -> Predictions:
    """A guard without calibration at thresholds of 0.5."""
    labels, raw = table.scores[estimator], sigmoid(table.margin)
    named = labels >= 0.5
    return Predictions(raw, raw, labels, (raw >= 0.5) | named.any(axis=1), named)


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

    def __call__(self, path: Path, table: ScoreTable) -> Predictions:
        """Its predictions, at thresholds of 0.5."""
        x = self.features.transform([text_of(r) for r in read_records(path)])
        unsafe = self.verdict.predict_proba(x)[:, 1]
        labels = np.zeros(table.truth.shape)
        for code, model in zip(self.codes, self.by_code, strict=True):
            labels[:, table.labels.index(code)] = model.predict_proba(x)[:, 1]
        return Predictions(unsafe, unsafe, labels, unsafe >= 0.5, labels >= 0.5)


def text_of(record: object) -> str:
    """What a bag of words sees."""
    assert isinstance(record, Record)
    return "\n".join(message.content for message in record.messages)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def intervals(said: Predictions, truth: np.ndarray) -> dict[str, list[float]]:
    """Figure → value, lower and upper end of its 95 % interval."""
    rng, whole = np.random.default_rng(0), figures_of(said, truth, np.arange(len(truth)))
    draws = [figures_of(said, truth, rng.integers(0, len(truth), len(truth))) for _ in range(RESAMPLINGS)]
    found = {}
    for key, value in whole.items():
        sample = [d[key] for d in draws if not np.isnan(d[key])]
        low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) > RESAMPLINGS // 2 else (np.nan, np.nan)
        found[key] = [value, float(low), float(high)]
    return found


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
