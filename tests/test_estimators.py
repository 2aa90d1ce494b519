"""The laws of the answer automaton, the tree and the estimators, against brute-force enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import CODES, GRAMMARS, TOKENISATIONS, Language, grammar, language, languages, random_languages, shapes
from published import any_place

from edgeguard.answers import UNSAFE, Answers
from edgeguard.backend import Prefix
from edgeguard.errors import ProfileError
from edgeguard.estimators import ESTIMATORS, bounds, conditional, first_label, joint, log_odds, marginal, names_no_code
from edgeguard.testing import Recompute, vocabulary
from edgeguard.tree import STOP, Tree, explore

FLOAT32 = 1e-5  # rows are float32: sums of a few thousand paths agree to this

budgets = st.sampled_from([(0.0, 10**6), (0.001, 200), (0.02, 50), (0.1, 5), (None, 64)])
law = settings(deadline=None, max_examples=60)


def tree_of(
    spoken: Language, tolerance: float | None = 0.0, max_rows: int = 10**6, width: int = 16, backend=None
) -> Tree:
    backend = backend or spoken.backend()
    return explore(
        backend.logprobs, spoken.answers(), Prefix((0,)), tolerance=tolerance, max_rows=max_rows, width=width
    )


every_language = st.one_of(languages, random_languages())


@law
@given(every_language, budgets, st.integers(1, 8))
def test_bounds_contain_the_truth_at_every_budget(spoken, budget, width):
    tree = tree_of(spoken, *budget, width=width)
    p, off = spoken.truth()
    lower, upper = bounds(tree).T
    assert (lower <= p + FLOAT32).all()
    assert (p <= upper + FLOAT32).all()
    assert tree.off_grammar <= off + FLOAT32


@law
@given(every_language)
def test_marginal_is_the_truth_when_nothing_is_left_unexplored(spoken):
    tree = tree_of(spoken)
    p, _ = spoken.truth()
    np.testing.assert_allclose(marginal(tree), p, atol=FLOAT32)
    assert tree.slack.max() == 0


@law
@given(every_language, budgets)
def test_joint_is_at_most_conditional_and_at_most_marginal(spoken, budget):
    tree = tree_of(spoken, *budget)
    assert (joint(tree) <= conditional(tree) + 1e-12).all()
    assert (joint(tree) <= marginal(tree) + 1e-12).all()
    for estimate in ESTIMATORS.values():
        assert ((estimate(tree) >= 0) & (estimate(tree) <= 1)).all()


@settings(deadline=None, max_examples=30)
@given(shapes, budgets)
def test_bounds_contain_the_truth_for_json_for_lines_and_for_free_text_behind_the_verdict(spoken, budget):
    """`Sexual` begins `Sexual (minor)` inside a JSON text, and a token may end the label, the text and the object."""
    tree = tree_of(spoken, *budget)
    p, _ = spoken.truth()
    lower, upper = bounds(tree).T
    assert (lower <= p + FLOAT32).all()
    assert (p <= upper + FLOAT32).all()
    assert marginal(tree) == pytest.approx(lower, abs=0)


@law
@given(every_language, st.sampled_from([0.001, 0.01, 0.1]))
def test_the_search_stops_under_the_tolerance_or_at_its_budget(spoken, tolerance):
    tree = tree_of(spoken, tolerance, 40)
    assert tree.slack.max() <= tolerance or tree.n_rows >= 40
    assert bounds(tree)[:, 1] - bounds(tree)[:, 0] == pytest.approx(
        tree.slack, abs=FLOAT32
    )  # float32 sums may pass 1, bounds do not


@law
@given(every_language)
def test_a_repeated_label_counts_once(spoken):
    """Adding a path's mass at every mention gave p above 1."""
    tree = tree_of(spoken)
    p = np.exp(tree.logp) @ (tree.named & ~np.vstack([np.zeros_like(tree.named[:1]), tree.named[tree.parent[1:]]]))
    assert (p <= 1 + FLOAT32).all()
    assert p[UNSAFE] + p[tree.safe] <= 1 + FLOAT32


@law
@given(languages, budgets)
def test_a_tree_from_recomputed_rows_is_the_same_tree(spoken, budget):
    fast = tree_of(spoken, *budget)
    slow = tree_of(spoken, *budget, backend=Recompute(spoken.backend()))
    np.testing.assert_array_equal(fast.logp, slow.logp)
    np.testing.assert_array_equal(fast.token, slow.token)


@law
@given(languages, st.integers(1, 5))
def test_how_many_branches_share_a_call_does_not_change_a_finished_search(spoken, width):
    np.testing.assert_allclose(
        marginal(tree_of(spoken, width=width)), marginal(tree_of(spoken, width=64)), atol=FLOAT32
    )


@law
@given(languages, st.floats(0.001, 0.3))
def test_the_paths_of_conditional_and_joint_do_not_depend_on_the_search(spoken, tolerance):
    walked, searched = tree_of(spoken, None), tree_of(spoken, tolerance, 30)
    for estimate in (conditional, joint):
        np.testing.assert_allclose(estimate(walked), estimate(searched), atol=1e-9)


@law
@given(languages)
def test_log_odds_agree_with_the_probabilities(spoken):
    tree = tree_of(spoken)
    p = marginal(tree)
    unsafe, safe = p[UNSAFE], p[-1]
    if min(unsafe, safe) > 1e-6:
        assert log_odds(tree) == pytest.approx(np.log(unsafe) - np.log(safe), abs=1e-6)


def scripted(pieces: list[bytes], steps: dict[bytes, dict[bytes, float]], grammar: str = "list"):
    """A model given by hand: text so far → {next piece: probability}; "" as a piece is the stop."""
    vocab = vocabulary(pieces)
    stop = len(pieces)

    def row(path: tuple[int, ...]) -> np.ndarray:
        text = b"".join(pieces[t] for t in path)
        p = np.zeros(len(pieces) + 1)
        for piece, q in steps.get(text, {b"": 1.0}).items():
            p[stop if piece == b"" else pieces.index(piece)] = q
        with np.errstate(divide="ignore"):
            return np.log(p)

    return Language(GRAMMARS[grammar], pieces, row, 12, [], vocab)


SPLIT = TOKENISATIONS["split digits"]
LIST = {
    b"": {b"u": 0.8, b"s": 0.2},
    b"u": {b"\n": 1.0},
    b"u\n": {b"S": 1.0},
    b"u\nS": {b"1": 0.6, b"2": 0.4},
    b"u\nS1": {b"0": 0.7, b"": 0.3},
    b"u\nS2": {b"": 0.6, b",S": 0.4},
    b"u\nS2,S": {b"1": 1.0},
    b"u\nS2,S1": {b"": 1.0},
}


def by_label(tree: Tree, p: np.ndarray) -> dict[str, float]:
    return {label: round(float(x), 6) for label, x in zip(tree.labels, p, strict=True)}


def test_s1_is_not_credited_on_the_way_to_s10():
    tree = tree_of(scripted(SPLIT, LIST))
    p = by_label(tree, marginal(tree))
    assert p == {
        "S1": round(0.8 * 0.6 * 0.3 + 0.8 * 0.4 * 0.4, 6),
        "S10": round(0.8 * 0.6 * 0.7, 6),
        "S2": round(0.8 * 0.4, 6),
        "unsafe": 0.8,
        "safe": 0.2,
    }


def test_conditional_and_joint_follow_the_argmax_answer():
    tree = tree_of(scripted(SPLIT, LIST))  # u, \n, S, 1, 0
    assert by_label(tree, joint(tree))["S10"] == round(0.8 * 0.6 * 0.7, 6)
    assert by_label(tree, conditional(tree))["S10"] == round(0.6 * 0.7, 6)
    assert by_label(tree, conditional(tree))["S2"] == 0
    assert by_label(tree, conditional(tree))["unsafe"] == 0.8


def test_conditional_is_the_token_probability_where_a_label_is_one_token():
    """The Llama 3 case: `,S` and `10` are tokens of their own."""
    pieces = [b"s", b"u", b"\n", b"S", b"1", b"10", b"2", b",S", b"x"]
    model = scripted(
        pieces,
        {
            b"": {b"u": 0.9, b"s": 0.1},
            b"u": {b"\n": 1.0},
            b"u\n": {b"S": 1.0},
            b"u\nS": {b"2": 0.7, b"10": 0.3},
            b"u\nS2": {b",S": 0.6, b"": 0.4},
            b"u\nS2,S": {b"10": 0.8, b"1": 0.2},
        },
    )
    tree = tree_of(model)
    assert by_label(tree, conditional(tree)) == {"S1": 0, "S10": 0.8, "S2": 0.7, "unsafe": 0.9, "safe": 0}
    assert by_label(tree, joint(tree))["S10"] == round(0.9 * 0.7 * 0.6 * 0.8, 6)


def test_surface_variants_of_one_label_are_merged():
    pieces = [b"s", b" s", b"u", b" u", b"\n", b"S", b"1", b"2", b"0", b","]
    steps = {b"": {b"u": 0.3, b" u": 0.4, b"s": 0.2, b" s": 0.1}}
    tree = tree_of(scripted(pieces, steps, "variants"))
    assert by_label(tree, marginal(tree))["unsafe"] == 0.7
    assert by_label(tree, conditional(tree))["unsafe"] == 0.7


def test_mass_off_the_grammar_is_reported_not_renormalised():
    steps = {b"": {b"u": 0.3, b"s": 0.2, b"x": 0.5}, b"u": {b"": 0.5, b"x": 0.5}}
    tree = tree_of(scripted(SPLIT, steps))
    assert tree.off_grammar == pytest.approx(0.5 + 0.3 * 0.5)
    assert by_label(tree, marginal(tree))["unsafe"] == 0.3


def test_a_model_that_repeats_itself_for_ever_is_left_at_the_budget():
    steps = {b"": {b"u": 1.0}, b"u": {b"\n": 1.0}}

    def endless(path: tuple[int, ...]) -> np.ndarray:
        text = b"".join(SPLIT[t] for t in path)
        nxt = steps.get(text) or (
            {b"S": 1.0} if text.endswith(b"\n") else {b"2" if text.endswith(b"S") else b",S": 1.0}
        )
        row = np.full(len(SPLIT) + 1, -np.inf)
        for piece, q in nxt.items():
            row[SPLIT.index(piece)] = np.log(q)
        return row

    spoken = Language(GRAMMARS["list"], SPLIT, endless, 12, [], vocabulary(SPLIT))
    tree = tree_of(spoken, 0.01, 20)
    assert tree.n_rows <= 50
    assert by_label(tree, marginal(tree))["S2"] == 1
    assert by_label(tree, bounds(tree)[:, 1])["S10"] == 1  # what was not looked into is in the bound


def test_both_sides_of_the_log_odds_are_looked_at_however_small():
    """With `safe` in two tokens and little mass, the search never needed it and the margin was infinite."""
    pieces = [b"un", b"u", b"sa", b"fe", b"\n", b"S", b"1", b"0", b"2", b","]
    spoken = scripted(pieces, {b"": {b"un": 0.999, b"sa": 0.001}, b"sa": {b"fe": 1.0}})
    spec = grammar(r"{verdict=safe}|{verdict=unsafe}(\n{category})?", verdict={"safe": ("safe",), "unsafe": ("un",)})
    tree = tree_of(Language(spec, pieces, spoken.model, 12, [], spoken.vocabulary), 0.5)
    assert log_odds(tree) == pytest.approx(np.log(0.999 / 0.001), rel=1e-5)


def test_a_vocabulary_that_cannot_write_the_verdict_is_refused():
    with pytest.raises(ProfileError, match="cannot write 's'"):
        tree_of(scripted([b"u", b"\n", b"S", b"1", b"0", b"2", b","], {}))


def test_a_control_token_can_be_an_answer_where_the_grammar_spells_it():
    """Some guards answer in one control token, `<UNSAFE-S3>`; plain text must not spell it otherwise."""
    vocab = vocabulary([b"x"], control=("<end>", "<SAFE>", "<UNSAFE-S3>"), eog=("<end>",))
    spec = grammar("<SAFE>{verdict:=safe}|{verdict:=unsafe}<UNSAFE-{category}>", category={"S3": ("S3",)})
    answers = Answers(spec, vocab, frozenset({1}))
    assert answers.moves(0).tokens.tolist() == [2, 3]


def test_the_tree_tells_the_answer_of_each_place():
    tree = tree_of(scripted(SPLIT, LIST))
    end = tree.path()[-1]
    assert [SPLIT[t] for t in tree.answer(end)] == [b"u", b"\n", b"S", b"1", b"0"]
    assert tree.token[tree.children(0)].tolist() == [0, 1]
    assert STOP in tree.token


# The published marginal rules, where they are right and where they err (docs/estimators.md).


def published_marginal(spoken: Language, **rules: float) -> np.ndarray:
    backend = spoken.backend()

    def step(path: tuple[int, ...]) -> np.ndarray:
        return backend.logprobs([Prefix((0, *path))])[0]

    return any_place(step, [*spoken.pieces, b""], [c.encode() for c in CODES], spoken.stops, **rules)


def test_the_published_marginal_credits_s1_on_every_way_to_s10():
    spoken = scripted(SPLIT, LIST)
    truth = marginal(tree_of(spoken))[1:-1]
    published = published_marginal(spoken)
    assert published[0] - truth[0] == pytest.approx(0.8 * 0.6 * 0.7)
    np.testing.assert_allclose(published[1:], truth[1:], atol=FLOAT32)


def test_the_published_marginal_counts_a_repeated_label_again():
    steps = {**LIST, b"u\nS": {b"2": 1.0}, b"u\nS2": {b",S": 0.9, b"": 0.1}, b"u\nS2,S": {b"2": 1.0}}
    spoken = scripted(SPLIT, steps)
    assert published_marginal(spoken)[2] == pytest.approx(0.8 * (1 + 0.9))
    assert by_label(tree_of(spoken), marginal(tree_of(spoken)))["S2"] == 0.8


def test_the_published_marginal_takes_text_outside_the_grammar_for_a_label():
    steps = {**LIST, b"": {b"x": 1.0}, b"x": {b"S": 1.0}, b"xS": {b"2": 1.0}}
    spoken = scripted(SPLIT, steps)
    assert published_marginal(spoken)[2] == 1
    assert by_label(tree_of(spoken), marginal(tree_of(spoken)))["S2"] == 0


def test_the_published_marginal_drops_what_follows_a_likely_stop():
    steps = {**LIST, b"u\nS": {b"2": 1.0}, b"u\nS2": {b"": 0.75, b",S": 0.25}}
    spoken = scripted(SPLIT, steps)
    assert published_marginal(spoken)[0] == 0
    assert by_label(tree_of(spoken), marginal(tree_of(spoken)))["S1"] == 0.2


@law
@given(st.integers(0, 10**6), st.integers(3, 4))
def test_with_whole_codes_and_no_repeats_the_published_marginal_only_errs_downward(seed, depth):
    spoken = language("one", "whole codes", seed=seed, depth=depth, leak=0.0)
    ours = marginal(tree_of(spoken))[1:-1]
    assert (published_marginal(spoken) <= ours + 1e-4).all()


@law
@given(languages)
def test_the_first_label_is_one_of_those_named(spoken):
    """Two categories cannot both be the first: their masses and that of `safe` fit into one."""
    tree = tree_of(spoken)
    first, p = first_label(tree), marginal(tree)
    assert (first <= p + 1e-12).all()
    assert first[UNSAFE] == first[-1] == 0
    assert first.sum() + p[-1] <= 1 + FLOAT32
    if spoken.grammar in (GRAMMARS["one"], GRAMMARS["verdict"]):  # no answer names a second one
        np.testing.assert_allclose(first[1:-1], p[1:-1], atol=FLOAT32)
    assert first.sum() >= p[1:-1].max(initial=0) - FLOAT32  # what names a label names a first one


@law
@given(every_language, budgets)
def test_what_is_unsafe_and_names_no_code_lies_in_its_bounds_and_is_the_lower_where_nothing_is_left(spoken, budget):
    codes = set(spoken.answers().labels[1 : spoken.answers().safe])
    truth = spoken.probability(lambda named: "unsafe" in named and not named & codes)
    lower, upper = names_no_code(tree_of(spoken, *budget))
    assert lower <= truth + FLOAT32 and truth <= upper + FLOAT32
    np.testing.assert_allclose(names_no_code(tree_of(spoken)), truth, atol=FLOAT32)


def test_an_answer_that_leaves_the_grammar_behind_unsafe_names_no_code():
    steps = {**LIST, b"u": {b"": 0.2, b"x": 0.3, b"\n": 0.5}, b"u\nS": {b"2": 0.6, b"x": 0.4}}
    tree = tree_of(scripted(SPLIT, steps))
    unsafe = by_label(tree, marginal(tree))["unsafe"]
    np.testing.assert_allclose(names_no_code(tree), unsafe * (0.2 + 0.3 + 0.5 * 0.4), atol=FLOAT32)
