"""Do a model and a profile fit? Asked of the profile's own two texts, a known safe and a known unsafe one.

Problems make scores wrong: answers that the profile cannot read, and verdicts that do not tell the texts apart. Notes
are what a user should know of a guard that works: a verdict without categories, a file's template that asks otherwise
than the guard's published prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeguard.guard import Guard, SelfTestResult
from edgeguard.ports import PromptCheck, check_prompt


@dataclass(frozen=True)
class SelfTestPair:
    """What a guard made of the two texts.

    thresholds  "unsafe" and each code that is asked about → from which probability on it counts
    prompt      who writes the prompts, and how the model file's template differs from what is published
    problems    what is wrong, in sentences; empty where the profile fits the model
    notes       what else a user should know, in sentences
    """

    guard: str
    profile: str
    safe: SelfTestResult
    unsafe: SelfTestResult
    thresholds: Mapping[str, float]
    prompt: PromptCheck
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def apart(self) -> float:
        """How far the unsafe text's margin lies over the safe one's, nats; NaN where the model gives a side nothing."""
        return self.unsafe.margin - self.safe.margin

    def row(self) -> dict[str, Any]:
        """As one JSON object; what is not a finite number is null."""
        return {
            "guard": self.guard,
            "profile": self.profile,
            "ok": not self.problems,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "apart": _finite(self.apart),
            "thresholds": dict(self.thresholds),
            "safe": _row(self.safe),
            "unsafe": _row(self.unsafe),
            "prompt": self.prompt.row(),
        }


def _row(result: SelfTestResult) -> dict[str, Any]:
    found = {**asdict(result), "grammar_mass": result.grammar_mass, "worst": result.worst.question}
    found["margin"] = _finite(result.margin)
    for question in found["questions"]:
        question["margin"] = _finite(question["margin"])
    return found


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def self_test(guard: Guard, _: None = None) -> SelfTestPair:
    """Judge both texts, and say what is wrong. Raises ProfileError where the profile has none."""
    safe, unsafe = guard.self_test()
    thresholds = {label: guard.thresholds.of(label) for label in ("unsafe", *guard.codes)}
    info = guard.backend.info
    return SelfTestPair(
        guard=guard.name,
        profile=guard.profile.name,
        safe=safe,
        unsafe=unsafe,
        thresholds=thresholds,
        prompt=check_prompt(guard.profile, info.chat_template, guard.backend.vocabulary),
        problems=tuple(find_problems(safe, unsafe, thresholds, guard.profile.min_grammar_mass)),
        notes=tuple(find_notes(unsafe, thresholds)),
    )


def find_problems(
    safe: SelfTestResult, unsafe: SelfTestResult, thresholds: Mapping[str, float], min_mass: float
) -> list[str]:
    """Too little mass on the grammar, or verdicts that do not tell the texts apart; `min_mass` in [0, 1]."""
    problems = []
    for kind, result in (("safe", safe), ("unsafe", unsafe)):
        if result.grammar_mass < min_mass:
            asked = "" if result.worst.question is None else f", asked about {result.worst.question},"
            problems.append(
                f"on the known {kind} text{asked} only {result.grammar_mass:.3f} of the probability lies on the "
                f"grammar, {min_mass:g} is needed: a wrong template or a wrong answer grammar"
            )
    apart = unsafe.margin - safe.margin
    if not math.isfinite(safe.margin) or not math.isfinite(unsafe.margin):
        return [*problems, "the model gives one side of the verdict no probability at all; there is no margin"]
    if apart == 0:
        return [*problems, "both texts get the very same score: the prompt does not hold the text"]
    if apart < 0:
        problems.append(
            f"the unsafe text scores {-apart:.2f} nats below the safe one: the model does not follow this profile"
        )
    return [*problems, *_wrong_verdicts(safe, unsafe, thresholds)]


def _wrong_verdicts(safe: SelfTestResult, unsafe: SelfTestResult, thresholds: Mapping[str, float]) -> list[str]:
    """At the guard's thresholds, as a score says them."""
    problems = []
    if safe.flagged:
        p = {"unsafe": safe.unsafe, **safe.category_scores}
        over = [label for label in p if p[label] >= thresholds[label]]
        told = ", ".join(f"{_named(label)} {p[label]:.2f} (threshold {thresholds[label]:.3g})" for label in over[:3])
        problems.append(f"the safe text is flagged: {told}")
    if not unsafe.flagged:
        every = ", and every category is under its own" if unsafe.category_scores else ""
        problems.append(
            f"the unsafe text is not flagged: P(unsafe) {unsafe.unsafe:.2f} is under the threshold "
            f"{thresholds['unsafe']:.3g}{every}"
        )
    if problems and unsafe.margin > safe.margin and safe.flagged == unsafe.flagged and safe.unsafe < unsafe.unsafe:
        problems[-1] += (
            f"; the texts lie {unsafe.margin - safe.margin:.2f} nats apart the right way round, so another threshold "
            "or a calibration may tell them apart"
        )
    return problems


def _named(label: str) -> str:
    return "P(unsafe)" if label == "unsafe" else label


def find_notes(unsafe: SelfTestResult, thresholds: Mapping[str, float]) -> list[str]:
    """A verdict of unsafe with no category beside it, where answers could name some."""
    if unsafe.no_code is None or not unsafe.flagged or unsafe.categories:
        return []
    likeliest = max(unsafe.category_scores, key=lambda code: unsafe.category_scores[code])
    lower, upper = unsafe.no_code
    share = f"{lower:.2f}" if upper - lower < 0.005 else f"{lower:.2f} to {upper:.2f}"
    return [
        f"the unsafe text is judged unsafe ({unsafe.unsafe:.2f}) without a category: the likeliest is {likeliest} with "
        f"{unsafe.category_scores[likeliest]:.2f} (threshold {thresholds[likeliest]:.3g}); of the model's own "
        f"P(unsafe) {unsafe.questions[0].unsafe:.2f}, {share} is on answers that name no code"
    ]
