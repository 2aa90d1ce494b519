"""How far a calibration holds for sources it was not fitted on, and whether a shift without labels helps there.

    python bench/carry_over.py DATA --scores FOLDER --guard edgeguard-135m > bench/results/carry_over.md

DATA is the data pack, with val.jsonl and val2.jsonl; FOLDER keeps the scores. Each source of the two files is left out
once, the map fitted on all the others with the same weight each; each of the files is held against the map of the
other, and --others against that of both.

raw         the model's own probabilities
platt       fitted on the other sources
em          moved to the share of unsafe texts that the source's own texts show: `calibrate --unlabelled em`
contextual  moved by what the guard says of texts that say nothing: `calibrate --unlabelled contextual`

ECE of P(unsafe) in bins of equal mass, ten records at least, with bootstrap 95 % intervals: the share that EM finds is
found anew in each draw. Where EM runs to 0 or 1 the command refuses, and the map stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import BuiltIn, built_in
from edgeguard.calibration.fitting import fit_map
from edgeguard.calibration.maps import Map, logit, shifted, sigmoid
from edgeguard.calibration.shift import fit_prior
from edgeguard.evaluation.calibrate import content_free_log_odds
from edgeguard.evaluation.metrics import N_BINS, ece_loss
from edgeguard.evaluation.sources import FEWEST, even_weights, pooled
from edgeguard.evaluation.unlabelled import FEWEST_TEXTS
from edgeguard.guard import Guard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "recipe"))
from calibrate import scores_of
from rule import labelled_sources

FIT = ("val.jsonl", "val2.jsonl")
DRAWS = 300
PER_BIN = 10
WAYS = ("raw", "platt", "em", "contextual")


@dataclass(frozen=True)
class Texts:
    """Margins and truth of some records, all (n,), and the sources they are from."""

    margin: np.ndarray
    unsafe: np.ndarray
    sources: tuple[str, ...]

    def of(self, rows: np.ndarray) -> Texts:
        """Some of them."""
        return Texts(self.margin[rows], self.unsafe[rows], tuple(self.sources[i] for i in np.arange(len(self))[rows]))

    def __len__(self) -> int:
        return len(self.margin)


@dataclass(frozen=True)
class Fit:
    """A map, the prior of its probabilities, and the nats by which contextual calibration moves it."""

    map: Map
    prior: float
    by_content: float


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, required=True, help="folder to keep scores in")
    parser.add_argument("--guard", default="edgeguard-135m", help="[default: %(default)s]")
    parser.add_argument("--form", help="of the guard [default: its first]")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="files of other makers")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    guard, runtime = built_in(args.guard), RuntimeOptions(threads=args.threads)
    form = args.form or guard.default[0]
    args.scores.mkdir(parents=True, exist_ok=True)
    free = content_free(guard, form, args.scores, runtime)
    parts = {name: texts_of(guard, form, args.data / name, args.scores, runtime) for name in FIT}
    whole = together(list(parts.values()))
    rows = {**left_out(whole, free)}
    for name, texts in parts.items():
        (other,) = (other for kind, other in parts.items() if kind != name)
        rows[f"{name}, by the other"] = draw(texts, fit(other, free))
    for path in args.others:
        table = scores_of(guard, form, path, args.scores, runtime)
        assert table.truth is not None
        texts = Texts(table.margin, table.truth[:, 0], (path.stem,) * len(table))
        rows[f"{path.name}, by both"] = draw(texts, fit(whole, free))
    print_page(guard, form, rows)


def content_free(guard: BuiltIn, form: str, folder: Path, runtime: RuntimeOptions) -> float:
    """Log-odds of unsafe that the guard gives texts which say nothing; kept in the folder."""
    kept = folder / f"content-free-{guard.form(form).model_sha256[:16]}.json"
    if not kept.exists():
        with Guard.load(f"{guard.name}:{form}", profile=guard.profile, calibration=False, runtime=runtime) as loaded:
            kept.write_text(json.dumps(content_free_log_odds(loaded)), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))["unsafe"])


def texts_of(guard: BuiltIn, form: str, path: Path, folder: Path, runtime: RuntimeOptions) -> Texts:
    """The records of a file that a calibration may be fitted on."""
    table, sources = labelled_sources(scores_of(guard, form, path, folder, runtime), path)
    assert table.truth is not None
    return Texts(table.margin, table.truth[:, 0], sources)


def together(parts: Sequence[Texts]) -> Texts:
    """One behind the other."""
    return Texts(
        np.concatenate([one.margin for one in parts]),
        np.concatenate([one.unsafe for one in parts]),
        tuple(name for one in parts for name in one.sources),
    )


def fit(texts: Texts, free: float) -> Fit:
    """Platt's map with even weights."""
    weight = even_weights(pooled(texts.sources))
    map_ = fit_map("platt", texts.margin, texts.unsafe, weight=weight)
    prior = float(weight @ map_(texts.margin) / weight.sum())
    return Fit(map_, prior, float(logit(prior) - logit(map_(free))))


def left_out(texts: Texts, free: float) -> dict[str, dict[str, np.ndarray]]:
    """Source → what `draw` says of it, by the fit on the others."""
    names = np.array(pooled(texts.sources))
    return {str(name): draw(texts.of(names == name), fit(texts.of(names != name), free)) for name in np.unique(names)}


def draw(texts: Texts, fitted: Fit) -> dict[str, np.ndarray]:
    """Way → its ECE and those of DRAWS draws of the records, and "share", "told", "n" of the records themselves."""
    rng, n = np.random.default_rng(0), len(texts)
    drawn = [texts, *(texts.of(rng.integers(0, n, n)) for _ in range(DRAWS))]
    errors = [figures(one, fitted) for one in drawn]
    found = {way: np.array([error[way] for error in errors]) for way in (*WAYS, "told")}
    return found | {"share": np.array([texts.unsafe.mean()]), "n": np.array([n])}


def figures(texts: Texts, fitted: Fit) -> dict[str, float]:
    """ECE by each way, and the share of unsafe texts that EM finds: nan where it runs to 0 or 1."""
    platt = fitted.map(texts.margin)
    told = fit_prior(platt, fitted.prior).value
    settled = 0 < told < 1
    by_em = shifted(fitted.map, float(logit(told) - logit(fitted.prior))) if settled else fitted.map
    ways = {
        "raw": sigmoid(texts.margin),
        "platt": platt,
        "em": by_em(texts.margin),
        "contextual": shifted(fitted.map, fitted.by_content)(texts.margin),
    }
    n_bins = max(1, min(N_BINS, len(texts) // PER_BIN))
    errors = {way: float(ece_loss(texts.unsafe, y_prob, n_bins=n_bins)) for way, y_prob in ways.items()}
    return {**errors, "told": told if settled else np.nan}


# ---------------------------------------------------------------------------------------------------------------------
# The page


def print_page(guard: BuiltIn, form: str, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Markdown: what came out, then each source."""
    print(
        f"{guard.name}, {form}. ECE of P(unsafe), 95 % intervals in brackets: a draw's ECE is a little higher than "
        f"that of the records, for the noise in its bins. Sources of fewer than {FEWEST} records are `the rest`.\n"
    )
    print_together(rows)
    heads = ["left out", "records", "unsafe", "EM's share", *WAYS]
    print(f"\n| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|")
    for name, found in sorted(rows.items(), key=lambda row: -row[1]["platt"][0]):
        told = found["told"][0]
        cells = [f"{found['share'][0]:.2f}", "runs to an end" if np.isnan(told) else f"{told:.2f}"]
        print(f"| {name} | {found['n'][0]} | {' | '.join(cells)} | {' | '.join(show(found[w]) for w in WAYS)} |")


KINDS: dict[str, Callable[[Mapping[str, np.ndarray]], bool]] = {
    "all": lambda found: True,
    "safe and unsafe records": lambda found: 0 < found["share"][0] < 1,
    f"both, and {FEWEST_TEXTS} texts": lambda found: 0 < found["share"][0] < 1 and found["n"][0] >= FEWEST_TEXTS,
    "records of one class": lambda found: found["share"][0] in (0, 1),
}


def print_together(rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Over what was left out: the mean error, what a shift without labels changes of it, and the worst."""
    print(f"| left out | how many | ECE | {' | '.join(WAYS)} |\n|---|---:|---|{'---:|' * len(WAYS)}")
    for kind, belongs in KINDS.items():
        taken = [found for found in rows.values() if belongs(found)]
        if not taken:
            continue
        mean = {way: np.mean([found[way] for found in taken], axis=0) for way in WAYS}
        over = {way: mean[way] - mean["platt"] for way in WAYS}
        lines = {
            "mean": [show(mean[way]) for way in WAYS],
            "mean, less platt's": ["" if way == "platt" else show(over[way], sign="+") for way in WAYS],
            "worst": [show(np.max([found[way] for found in taken], axis=0)) for way in WAYS],
            "lower than platt's": ["" if way == "platt" else str(better(taken, way)) for way in WAYS],
        }
        for name, cells in lines.items():
            print(f"| {kind} | {len(taken)} | {name} | {' | '.join(cells)} |")


def better(taken: Sequence[Mapping[str, np.ndarray]], way: str) -> int:
    """In how many of them a way's error is lower than that of the plain fit."""
    return sum(bool(found[way][0] < found["platt"][0]) for found in taken)


def show(drawn: np.ndarray, *, sign: str = "") -> str:
    """`0.031 [0.020, 0.052]`."""
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return f"{drawn[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
