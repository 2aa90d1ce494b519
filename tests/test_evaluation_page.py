"""The page of an evaluation: its curves are scikit-learn's; it is read at every width, in print and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import WIDTHS, printed, problems, show
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve as sklearn_s

from edgeguard.calibration.thresholds import Goal
from edgeguard.evaluation.curves import calibration_curve, threshold_curve
from edgeguard.evaluation.figures import PER_BIN
from edgeguard.evaluation.labelled import Labelled
from edgeguard.evaluation.page import evaluation_page
from edgeguard.evaluation.summary import summarize
from edgeguard.evaluation.table import ScoreTable

IDENTITY = {"guard": "a-guard", "profile": "a-profile", "model_sha256": "0" * 64}


def made(n: int, codes: list[str], seed: int = 0, *, truth: str = "some") -> Labelled:
    """Scores that know the truth about as well as guards do; truth: "some" labels, "none" or "all"."""
    rng, k = np.random.default_rng(seed), len(codes)
    held = rng.random((n, k)) < 0.5 / (1.5 + np.arange(k))
    held = {"some": held, "none": held & False, "all": held | True}[truth]
    margin = rng.normal(np.where(held.any(axis=1), 2, -1.5), 1.8)
    scores = 1 / (1 + np.exp(-rng.normal(np.where(held, 1.5, -3), 1.3)))
    unsafe = 1 / (1 + np.exp(-margin))
    both = np.column_stack([unsafe, scores])
    table = ScoreTable(
        labels=("unsafe", *codes),
        ids=tuple(range(n)),
        places=np.arange(n),
        margin=margin,
        scores={"conditional": np.where(both > 0.4, both, 0), "marginal": both},
        first=None,
        off=np.zeros(n),
        truth=np.column_stack([held.any(axis=1), held]),
    )
    return Labelled(table, IDENTITY)


def page_of(labelled: Labelled, **more: Any) -> str:
    return evaluation_page(summarize(labelled, {}, {}, Goal("f1"), draws=10), source="records.jsonl", **more)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=2, max_size=60))
def test_curves_of_thresholds_are_scikit_learn_s(pairs):
    y_true, p = np.array([t for t, _ in pairs]), np.array([s / 30 for _, s in pairs])
    if not 0 < y_true.sum() < len(y_true):
        return
    found = threshold_curve(y_true, p)
    precision, recall, thresholds = sklearn.precision_recall_curve(y_true, p)
    np.testing.assert_allclose(found.thresholds[::-1], thresholds)
    np.testing.assert_allclose(found.precision[::-1], precision[:-1])
    np.testing.assert_allclose(found.recall[::-1], recall[:-1])
    for t, fpr in zip(found.thresholds, found.fpr, strict=True):
        assert fpr == pytest.approx(np.mean(p[~y_true] >= t))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200)), min_size=2, max_size=400))
def test_bins_hold_all_records_once_enough_of_them_and_no_ties_apart(pairs):
    y_true, p = np.array([t for t, _ in pairs]), np.array([s / 200 for _, s in pairs])
    found = calibration_curve(y_true, p)
    if found is None:
        return
    assert found.count.sum() == len(p) and (found.count >= PER_BIN).all() and 2 <= len(found.count) <= 15
    assert found.prob_pred @ found.count == pytest.approx(p.sum())
    assert found.prob_true @ found.count == pytest.approx(y_true.sum())
    assert (np.diff(found.prob_pred) > 0).all()
    assert ((found.low <= found.prob_true) & (found.prob_true <= found.high)).all()
    ends = np.cumsum(found.count)[:-1]
    p = np.sort(p)
    assert (p[ends] > p[ends - 1]).all()


def test_bins_of_many_different_scores_are_scikit_learn_s_quantiles():
    rng = np.random.default_rng(0)
    p = rng.random(1500)
    y_true = rng.random(1500) < p
    found = calibration_curve(y_true, p)
    prob_true, prob_pred = sklearn_s(y_true, p, n_bins=15, strategy="quantile")
    assert found is not None
    np.testing.assert_allclose(found.prob_pred, prob_pred, atol=0.01)
    np.testing.assert_allclose(found.prob_true, prob_true, atol=0.02)


CASES = {
    "12 records": (12, ["S1", "S2"], "some"),
    "700 records": (700, ["S1", "S2", "a-category-of-a-long-name"], "some"),
    "all safe": (60, ["S1"], "none"),
    "all unsafe": (60, ["S1", "S2"], "all"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_read_at_every_width_in_both_schemes_and_in_print(browser: Any, tmp_path: Path, case: str):
    n, codes, truth = CASES[case]
    path = tmp_path / "page.html"
    path.write_text(page_of(made(n, codes, truth=truth)), encoding="utf-8")
    for width in WIDTHS:
        show(browser, path, width, dark=width == 768)
        assert problems(browser) == []
    show(browser, path, 794, media="print")
    assert problems(browser) == []
    assert printed(browser).startswith(b"%PDF")


def test_a_page_is_walked_through_by_keyboard(browser: Any, tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text(page_of(made(300, ["S1", "S2"])), encoding="utf-8")
    show(browser, path, 1280)
    reached = browser.execute_script(
        "return [...document.querySelectorAll('a, summary')]"
        ".filter(e => { e.focus(); return document.activeElement === e; }).length"
    )
    assert reached == 3 + 3  # a link to each label, and the numbers of each reliability curve
    targets = (
        "return [...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert browser.execute_script(targets)


def test_a_page_of_40_labels_is_under_2_mb():
    codes = [f"S{i}" for i in range(1, 41)]
    assert len(page_of(made(3000, codes)).encode()) < 2e6


def test_labels_of_strangers_are_text():
    html = page_of(made(60, ["<script>alert(1)</script>", 'a"b', "é\x07"]), labels=["<script>alert(1)</script>", 'a"b'])
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_the_greedy_answer_stands_on_the_curve_s_picture():
    labelled = made(300, ["S1"])
    summary = summarize(labelled, {}, {}, Goal("f1"), draws=10)
    assert summary.greedy is not None
    value = summary.greedy.figures["precision"].value
    page = evaluation_page(summary, source="x")
    assert f"greedy: precision {value:.3f}" in page and "Its greedy answer finds " in page
    assert "\\x" not in page  # a character that a page writes itself and then shows as its escape
    at = summary.greedy.at_recall
    assert at.recall >= summary.greedy.figures["recall"].value
    assert summary.greedy.at_precision.precision >= value or not summary.greedy.at_precision.met
