"""The built-in guard's figures on labelled files, beside two baselines, with bootstrap 95 % intervals.

    python bench/guard.py DATA --scores FOLDER > bench/results/guard.md

DATA is the data pack: val.jsonl, eval_public/, and for the baseline train.jsonl and train_pairs.jsonl. All scores come
from edgeguard itself. FOLDER keeps them, by model and file, so that a second run need not score again.

edgeguard-135m  the built-in guard in its default form, at its own calibration and thresholds
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

from edgeguard.builtin import Form, base_model, built_in
from edgeguard.calibration.decide import label_log_odds, predict
from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.fitting import fit_labels
from edgeguard.calibration.maps import Calibration, logit, sigmoid
from edgeguard.calibration.thresholds import Goal
from edgeguard.evaluation.table import ScoreTable, decisions
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_fields, read_records
from edgeguard.rows.record import Record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "recipe"))
from calibrate import fit as fit
from calibrate import scores_of, with_own_truth, with_progress

GUARD = built_in("edgeguard-135m")
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
    """What a system says of the records of one file; "unsafe" stands first, the codes behind it.

    y_prob  (n, n_labels) probabilities, to rank by too
    y_pred  (n, n_labels) at the system's thresholds
    raw     (n,) P(unsafe) before calibration
    """

    y_prob: np.ndarray
    y_pred: np.ndarray
    raw: np.ndarray


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, required=True, help="folder to keep scores in")
    parser.add_argument("--form", default=GUARD.default[0], help="of the guard [default: %(default)s]")
    parser.add_argument("--zero-shot", type=int, metavar="N", help="the base model too, on N records of each file")
    parser.add_argument("--json", type=Path, help="all figures, as JSON")
    args = parser.parse_args()
    args.scores.mkdir(parents=True, exist_ok=True)
    files = [args.data / "val.jsonl", *sorted((args.data / "eval_public").glob("*.jsonl"))]
    files += sorted((args.data / "eval_public" / "restricted").glob("*.jsonl"))
    form = GUARD.form(args.form)
    tables = {path: scores_of(GUARD, form.name, path, args.scores) for path in files}
    baseline = TfIdf(args.data)
    systems: dict[str, Callable[[Path], Predictions]] = {
        f"edgeguard-135m {name}": lambda path, name=name: ours(tables[path], form, name)
        for name in ("marginal", "joint", "conditional")
    }
    if args.zero_shot:
        asked = {path: zero_shot_table(sampled(path, args.zero_shot, args.scores), args.scores) for path in files}
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
        print(f"\n### {path.name}{restricted}: {len(truth)} records, {int(truth[:, 0].sum())} unsafe")
        predicted = {name: system(path) for name, system in systems.items()}
        figures, over = {}, {}
        for name, predictions in predicted.items():
            taken = rows[path] if name.startswith("smollm2") else np.arange(len(truth))
            drawn = draw(predictions, truth[taken])
            shown = f"{name}, {len(taken)} records" if len(taken) < len(truth) else name
            figures[shown] = {key: interval(values) for key, values in drawn.items()}
            if not name.startswith("edgeguard"):
                same = draw(of_rows(predicted[OURS], taken), truth[taken])
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


def zero_shot_table(path: Path, folder: Path) -> ScoreTable:
    """The base model's scores of a file, from the folder where they are there."""
    said = f"{sha256(base_model())} instruct {sha256(path)}"
    kept = folder / f"smollm2-{path.stem}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.npz"
    if not kept.exists():
        with Guard.load(profile="instruct", calibration=False) as guard:
            save_table(with_progress(guard, path, "smollm2"), kept)
    return with_own_truth(load_table(kept), path)


def ours(table: ScoreTable, form: Form, estimator: str) -> Predictions:
    """A form of the built-in guard as `edgeguard score` shows it."""
    fitted = GUARD.calibration(form, estimator)
    assert fitted is not None, f"models/recipe/calibrate.py has not fitted {form.name} yet"
    return at(read_calibration(fitted), table, estimator)


def at(calibration: Calibration, table: ScoreTable, estimator: str) -> Predictions:
    """Scores with a calibration and its thresholds."""
    decided = decisions(table, estimator, calibration=calibration)
    return Predictions(decided.y_prob, decided.y_pred, sigmoid(table.margin))


def zero_shot(table: ScoreTable) -> np.ndarray:
    """(n, n_labels) probabilities as the model gives them; P(unsafe) of what is in the grammar."""
    return np.column_stack([sigmoid(table.margin), table.scores["marginal"][:, 1:]])


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


def of_rows(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of some records."""
    return Predictions(predictions.y_prob[rows], predictions.y_pred[rows], predictions.raw[rows])


def at_thresholds(score: Callable[[Path], np.ndarray], val: Path, y_true: np.ndarray) -> Callable[[Path], Predictions]:
    """A baseline with thresholds by the rule of the guard's own: best F1 of each code on val, at most 1 % of the safe
    records over it; 2 % of them over the verdict's."""
    y_prob = score(val)
    labels = ["unsafe", *(f"code {i}" for i in range(1, y_prob.shape[1]))]
    odds = label_log_odds(logit(y_prob[:, 0]), y_prob)
    goals = {"": Goal("f1"), "unsafe": Goal("fpr", 0.02)}
    fits = fit_labels(labels, odds, y_prob, y_true, method="none", goals=goals, safe_rate=0.01)
    thresholds = np.array([fit.threshold.value if fit.threshold else 0.5 for fit in fits])

    def system(path: Path) -> Predictions:
        y_prob = score(path)
        return Predictions(y_prob, predict(y_prob, thresholds), y_prob[:, 0])

    return system


class TfIdf:
    """The baseline: one model for the verdict, one for each code."""

    def __init__(self, data: Path) -> None:
        files = [data / file for file in ("train.jsonl", "train_pairs.jsonl")]
        texts = [text_of(record) for file in files for record in read_records(file)]
        labels = [fields["labels"] for file in files for _, fields in read_fields(file)]
        codes = sorted({label for found in labels for label in found}, key=lambda code: int(code[1:]))
        self.codes = codes
        features = make_union(
            TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2),
            TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=3, max_features=200_000),
        )
        self.features = features
        x = features.fit_transform(texts)
        self.verdict = LogisticRegression(C=10, max_iter=300, solver="liblinear").fit(
            x, [bool(found) for found in labels]
        )
        self.by_code = [
            LogisticRegression(C=10, max_iter=300, solver="liblinear").fit(x, [code in found for found in labels])
            for code in codes
        ]

    def __call__(self, path: Path, table: ScoreTable) -> np.ndarray:
        """(n, n_labels) probabilities."""
        x = self.features.transform([text_of(r) for r in read_records(path)])
        y_prob = np.zeros(table.truth.shape)
        for label, model in zip(["unsafe", *self.codes], [self.verdict, *self.by_code], strict=True):
            y_prob[:, table.labels.index(label)] = model.predict_proba(x)[:, 1]
        return y_prob


def text_of(record: object) -> str:
    """What a bag of words sees."""
    assert isinstance(record, Record)
    return "\n".join(message.content for message in record.messages)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def draw(predictions: Predictions, y_true: np.ndarray) -> dict[str, np.ndarray]:
    """Figure → its value and those of the same draws of records for every system."""
    rng, n = np.random.default_rng(0), len(y_true)
    rows = [np.arange(n), *(rng.integers(0, n, n) for _ in range(RESAMPLINGS))]
    drawn = [figures_of(of_rows(predictions, r), y_true[r]) for r in rows]
    return {key: np.array([figures[key] for figures in drawn]) for key in drawn[0]}


def interval(values: np.ndarray) -> list[float]:
    """Value, lower and upper end of its 95 % interval."""
    sample = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) > RESAMPLINGS // 2 else (np.nan, np.nan)
    return [float(values[0]), float(low), float(high)]


def figures_of(predictions: Predictions, y_true: np.ndarray) -> dict[str, float]:
    """All figures of some records; nan where they are of one class only."""
    verdict, unsafe, flagged = y_true[:, 0], predictions.y_prob[:, 0], predictions.y_pred[:, 0]
    codes, y_prob, y_pred = y_true[:, 1:], predictions.y_prob[:, 1:], predictions.y_pred[:, 1:]
    both = verdict.any() and not verdict.all()
    some = codes.any(axis=0)
    return {
        "AUROC": roc_auc_score(verdict, unsafe) if both else np.nan,
        "AUPRC": average_precision_score(verdict, unsafe) if both else np.nan,
        "F1": f1_score(verdict, flagged),
        "false positives": float(flagged[~verdict].mean()) if not verdict.all() else np.nan,
        "Brier": float(((unsafe - verdict) ** 2).mean()),
        "ECE": ece(unsafe, verdict),
        "Brier raw": float(((predictions.raw - verdict) ** 2).mean()),
        "ECE raw": ece(predictions.raw, verdict),
        "micro F1": f1_score(codes, y_pred, average="micro", zero_division=0),
        "macro F1": f1_score(codes[:, some], y_pred[:, some], average="macro", zero_division=0),
        "micro AUPRC": average_precision_score(codes.ravel(), y_prob.ravel()),
        "macro AUPRC": macro_auprc(codes[:, some], y_prob[:, some]),
        "Hamming loss": hamming_loss(codes, y_pred),
    }


def macro_auprc(y_true: np.ndarray, y_prob: np.ndarray) -> float:
    """Mean over the labels that some row has."""
    return float(np.mean([average_precision_score(y_true[:, i], y_prob[:, i]) for i in range(y_true.shape[1])]))


def ece(y_prob: np.ndarray, y_true: np.ndarray) -> float:
    """Expected calibration error over bins of equal mass."""
    order = np.array_split(np.argsort(y_prob, kind="stable"), N_BINS)
    gaps: Sequence[float] = [abs(y_prob[rows].mean() - y_true[rows].mean()) * len(rows) for rows in order if len(rows)]
    return float(np.sum(gaps) / len(y_prob))


if __name__ == "__main__":
    main()
