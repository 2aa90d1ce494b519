"""`edgeguard explain --html`: what is decided, from which numbers, and the tree, for people."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_questions import LETTERS, answering, asking

from edgeguard.explanation import explained, verdict
from edgeguard.explanation_page import branches, page
from edgeguard.guard import Guard
from edgeguard.tree import ROOT


@pytest.fixture(scope="module")
def html(run, tiny, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("page") / "why.html"
    result = run("explain", "Hurt the <dog> & sing", *tiny, "--html", file, "--least", 0.001)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "" and str(file) in result.stderr
    return file.read_text(encoding="utf-8")


def test_the_page_says_what_is_decided_from_which_numbers(html, tiny_guard):
    score = tiny_guard.score("Hurt the <dog> & sing")
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", html)
    assert heading is not None
    assert heading[1].startswith("Flagged" if score.flagged else "Not flagged")
    assert f"P(unsafe) is {score.unsafe:.3f}" in heading[1]
    for code, p in score.category_scores.items():
        row = re.search(rf"<tr[^>]*><th [^>]*>{code}[,<].*?</tr>", html)
        assert row is not None and f">{p:.4f}<" in row[0]
    assert "Hurt the &lt;dog&gt; &amp; sing" in html
    assert "<script" not in html and not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)


def test_the_drawing_has_every_branch_of_some_mass_once(tiny_guard):
    it = explained(tiny_guard, {"prompt": "Hurt the dog"})
    tree = it.considered.trees[None]
    for least in (0.5, 0.01, 1e-6):
        found, hidden = branches(tree, least)
        seen, stack, small = [], list(found), hidden[0]
        while stack:
            branch = stack.pop()
            seen += branch.places
            small += branch.hidden[0]
            stack += branch.branches
        large = [i for i in range(len(tree.logp)) if i != ROOT and np.exp(tree.logp[i]) >= least]
        assert sorted(seen) == large  # a place's mass is at least its children's
        assert len(set(seen)) == len(seen)
    assert page(it).count("<kbd>") >= len(branches(tree, 0.01)[0])


def test_a_threshold_changes_what_the_page_says(run, tiny, tmp_path):
    said = []
    for threshold in ("unsafe=0.0001", "1"):
        file = tmp_path / "why.html"
        assert run("explain", "Boil an egg", *tiny, "--html", file, "--threshold", threshold).exit_code == 0
        said.append(file.read_text(encoding="utf-8"))
    assert "at or over its threshold of 0.0001" in said[0]
    assert "under its threshold of 1" in said[1]


def test_verdicts_by_a_category_say_so(tiny_guard):
    it = explained(tiny_guard, {"prompt": "Hurt the dog"})
    it.decided.y_prob[:] = [[0.2, 0.9, 0.1, 0.1]]
    it.decided.y_pred[:] = [[True, True, False, False]]
    assert verdict(it) == "Flagged by a category: P(unsafe) is 0.200, under its threshold of 0.5. Categories: S1."


def test_with_a_question_for_each_category_there_is_a_drawing_for_each():
    guard = Guard(answering((0.2, 0.6, 0.1)), asking("{verdict}(\\n{sure})?", umbrella="a"))
    shown = page(explained(guard, {"prompt": "xx"}))
    for code in LETTERS:
        assert f"<summary>Asked about {code}</summary>" in shown
    assert re.findall(r"<details open><summary>Asked about (\w)<", shown) == ["b"]  # it says unsafe the most surely
    assert "what the answers say besides" in shown and "sure: high" in shown
    assert "As the three estimators" not in shown  # answers that list no codes have the marginal alone


def test_what_cannot_be_is_told(run, tiny, tmp_path, tiny_profile):
    both = run("explain", "x", *tiny, "--html", tmp_path / "a.html", "--json")
    assert both.exit_code == 2 and "excludes" in both.stderr
    nowhere = run("explain", "x", *tiny, "--html", tmp_path / "no" / "a.html")
    assert nowhere.exit_code == 1 and "cannot be written" in nowhere.stderr
    own = run("explain", "x", *tiny, "--html", tiny_profile)
    assert own.exit_code == 2
