"""`edgeguard check` says what it says: two verdicts, by how much, on how much grammar mass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from rich.console import Console

from edgeguard import Guard
from edgeguard.cli.screen import check as screen
from edgeguard.profile import parse_profile
from edgeguard.selftest import SelfTestPair, self_test
from edgeguard.testing import FakeBackend, vocabulary

BYTES = [bytes([i]) for i in range(256)]
END = 256
Says = Callable[[str], Mapping[str, float]]  # the prompt → answer → its probability; the rest is "x", off the grammar

ONE = """
name = "garden"
taxonomy = "garden"
[answer]
pattern = '{verdict=safe}|{verdict=unsafe}(\\n{category}(,{category})*)?'
[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]
[prompt]
template = "own"
text = "{{ messages[-1].content }} ANSWER:"
[self_test]
safe = "tulips"
unsafe = "poison"
[[category]]
code = "R1"
name = "Advertising"
[[category]]
code = "R2"
name = "Poison"
"""
QUESTIONS = """
name = "policies"
taxonomy = "policies"
[questions]
[answer]
pattern = 'verdict: {verdict}(\\nsure: {confidence})?'
[field.verdict]
unsafe = ["Yes"]
safe = ["No"]
[field.confidence]
high = ["High"]
low = ["Low"]
[prompt]
template = "own"
text = "{{ messages[-1].content }}: {{ category.name }}? ANSWER:"
[self_test]
safe = "tulips"
unsafe = "poison"
[[category]]
code = "ads"
name = "Advertising"
[[category]]
code = "harm"
name = "Poison"
"""


def backend(says: Says) -> FakeBackend:
    """A model that writes byte by byte what `says` tells of its prompt."""

    def logits(path: tuple[int, ...]) -> np.ndarray:
        prompt, _, written = bytes(path).decode().partition(" ANSWER:")
        p = np.zeros(257)
        left = {a.encode()[len(written) :]: q for a, q in says(prompt).items() if a.startswith(written)}
        for answer, q in left.items():
            p[answer[0] if answer else END] += q
        p[ord("x")] += 1 - sum(says(prompt).values()) if not written else 0 if left else 1
        p[ord("x")] += p.sum() == 0  # behind an answer that has no probability
        with np.errstate(divide="ignore"):
            return np.log(p)

    return FakeBackend(vocabulary(BYTES), logits)


def checked(says: Says, toml: str = ONE, **options) -> SelfTestPair:
    return self_test(Guard(backend(says), parse_profile(toml.encode(), "garden.toml"), **options))


def verdicts(safe: float, unsafe: float, code: float = 1.0) -> Says:
    """P(unsafe) of each text on answers that name R2, but for a share that names nothing."""

    def says(prompt: str) -> dict[str, float]:
        p = unsafe if "poison" in prompt else safe
        return {"safe": 1 - p, "unsafe\nR2": p * code, "unsafe": p * (1 - code)}

    return says


def shown(test: SelfTestPair, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> str:
    console = Console(width=width, record=True, force_terminal=False, markup=False, emoji=False)
    monkeypatch.setattr(screen, "plain_console", lambda: console)
    with console.capture() as captured:
        screen.print_self_test(test, {"R1": "Advertising", "R2": "Poison", "ads": "Advertising", "harm": "Poison"})
    return captured.get()


def test_two_texts_that_get_different_verdicts_pass() -> None:
    found = checked(verdicts(0.1, 0.9))
    assert (found.problems, found.notes) == ((), ())
    assert (found.safe.flagged, found.unsafe.flagged, found.unsafe.categories) == (False, True, ("R2",))
    assert found.apart == pytest.approx(2 * np.log(9), abs=1e-4)
    assert found.unsafe.no_code == pytest.approx((0, 0), abs=1e-6)


def test_two_texts_under_the_threshold_fail_and_another_threshold_tells_them_apart() -> None:
    """Both were judged safe, and the check passed."""
    (problem,) = checked(verdicts(0.33, 0.43)).problems
    assert problem.startswith("the unsafe text is not flagged: P(unsafe) 0.43 is under the threshold 0.5")
    assert "0.43 nats apart the right way round" in problem
    assert checked(verdicts(0.33, 0.43), thresholds={"default": 0.4}).problems == ()
    (problem,) = checked(verdicts(0.63, 0.83)).problems
    assert problem.startswith("the safe text is flagged: P(unsafe) 0.63 (threshold 0.5), R2 0.63 (threshold 0.5)")


def test_a_category_over_its_own_threshold_flags_as_a_score_does() -> None:
    (problem,) = checked(verdicts(0.1, 0.9), thresholds={"R2": 0.05}).problems
    assert problem.startswith("the safe text is flagged: R2 0.10 (threshold 0.05); the texts lie 4.39 nats apart")
    assert checked(verdicts(0.1, 0.4), thresholds={"R2": 0.3}).problems == ()


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (verdicts(0.9, 0.1), "4.39 nats below the safe one"),
        (verdicts(0.7, 0.7), "the very same score"),
        (verdicts(0.0, 0.9), "no probability at all"),
    ],
)
def test_texts_the_wrong_way_round_or_with_one_score_fail(says: Says, problem: str) -> None:
    found = checked(says)
    assert any(problem in text for text in found.problems)
    assert json.dumps(found.row(), allow_nan=False)


def test_answers_off_the_grammar_fail() -> None:
    def says(prompt: str) -> dict[str, float]:
        return {"safe": 0.1, "unsafe": 0.3} if "poison" in prompt else {"safe": 0.9, "unsafe": 0.1}

    (problem, _) = checked(says).problems
    assert problem.startswith(
        "on the known unsafe text only 0.400 of the probability lies on the grammar, 0.5 is needed"
    )


def test_unsafe_without_a_category_is_noted_with_what_names_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """It said "unsafe 0.80" and every category under 0.14, without a word why."""
    found = checked(verdicts(0.1, 0.8, code=0.25))
    assert found.problems == ()
    (note,) = found.notes
    assert "judged unsafe (0.80) without a category: the likeliest is R2 with 0.20" in note
    assert "P(unsafe) 0.80, 0.60 is on answers that name no code" in note
    assert found.unsafe.no_code == pytest.approx((0.6, 0.6), abs=1e-5)
    text = shown(found, monkeypatch)
    assert "unsafe, no code named" in text and "0.6000" in text and "· the unsafe text is judged" in text


def test_answers_that_can_name_no_code_are_not_blamed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = ONE[: ONE.index("[[category]]")].replace("(\\n{category}(,{category})*)?", "")
    found = checked(verdicts(0.1, 0.8, code=0.0), verdict)
    assert (found.problems, found.notes, found.unsafe.no_code) == ((), (), None)
    assert "no code" not in shown(found, monkeypatch)


def policies(ads: float, harm: float) -> Says:
    def says(prompt: str) -> dict[str, float]:
        p = (harm if "Poison" in prompt else ads) if "poison" in prompt else 0.1
        sure = 0.4 if "Poison" in prompt else 1.0  # the rest leaves the grammar
        return {"verdict: No\nsure: Low": sure * (1 - p), "verdict: Yes\nsure: High": sure * p}

    return says


def test_of_several_questions_the_decisive_and_the_worst_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(policies(0.2, 0.95), QUESTIONS)
    assert found.unsafe.decided_by == "harm" and found.unsafe.worst.question == "harm"
    assert [q.question for q in found.unsafe.questions] == ["ads", "harm"]
    assert found.unsafe.questions[1].unsafe == pytest.approx(0.38, abs=1e-5)
    assert any("text, asked about harm, only 0.400 of the probability" in problem for problem in found.problems)
    row = json.loads(json.dumps(found.row(), allow_nan=False))
    assert row["unsafe"]["decided_by"] == "harm" and row["unsafe"]["worst"] == "harm"
    assert row["unsafe"]["questions"][0]["grammar_mass"] == pytest.approx(1, abs=1e-5)
    assert row["unsafe"]["fields"]["harm.confidence"]["high"] == pytest.approx(0.38, abs=1e-5)
    assert row["unsafe"]["no_code"] is None and row["notes"] == []
    text = shown(found, monkeypatch)
    assert "harm Poison" in text and "0.380*" in text and max(map(len, text.splitlines())) <= 80


def test_an_umbrella_question_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(policies(0.2, 0.95), QUESTIONS.replace("[questions]", '[questions]\numbrella = "ads"'))
    assert found.unsafe.decided_by == "ads" and found.unsafe.unsafe == pytest.approx(0.2, abs=1e-5)


def test_fields_of_both_texts_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    toml = ONE.replace("(,{category})*)?'", "(,{category})*)?( refused: {refusal})?'").replace(
        "[prompt]", '[field.refusal]\nyes = ["yes"]\nno = ["no"]\n[prompt]'
    )

    def says(prompt: str) -> dict[str, float]:
        return (
            {"unsafe\nR2 refused: yes": 0.7, "safe": 0.3}
            if "poison" in prompt
            else {"safe refused: no": 0.9, "unsafe": 0.1}
        )

    found = checked(says, toml.replace("pattern = '{verdict=safe}", "pattern = '{verdict=safe}( refused: {refusal})?"))
    assert found.unsafe.fields["refusal"]["yes"] == pytest.approx(0.7, abs=1e-4)
    text = shown(found, monkeypatch)
    assert "yes 0.70  no 0.00" in text and "yes 0.00  no 0.90" in text


def test_a_verdict_is_the_one_that_a_score_gives() -> None:
    guard = Guard(backend(verdicts(0.33, 0.43)), parse_profile(ONE.encode(), "garden.toml"), thresholds={"R2": 0.4})
    tested = self_test(guard)
    for result in (tested.safe, tested.unsafe):
        score = guard.score(result.text)
        for name in ("flagged", "unsafe", "margin", "categories", "category_scores", "fields"):
            assert getattr(score, name) == getattr(result, name), name
