"""Do a model and a profile fit? Asked of the profile's own two texts, a known safe and a known unsafe one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgeguard.guard import Guard, SelfTestResult


@dataclass(frozen=True)
class SelfTestPair:
    """What a guard made of the two texts.

    problems  what is wrong, in sentences; empty where the profile fits the model
    """

    guard: str
    profile: str
    safe: SelfTestResult
    unsafe: SelfTestResult
    problems: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "guard": self.guard,
            "profile": self.profile,
            "ok": not self.problems,
            "problems": list(self.problems),
            "safe": asdict(self.safe),
            "unsafe": asdict(self.unsafe),
        }


def self_test(guard: Guard) -> SelfTestPair:
    """Judge both texts, and say what is wrong. Raises ProfileError where the profile has none."""
    safe, unsafe = guard.self_test()
    problems = find_problems(safe, unsafe, guard.profile.min_grammar_mass)
    return SelfTestPair(guard.name, guard.profile.name, safe, unsafe, tuple(problems))


def find_problems(safe: SelfTestResult, unsafe: SelfTestResult, min_mass: float) -> list[str]:
    """Too little mass on the grammar, or verdicts that do not tell the texts apart; `min_mass` in [0, 1]."""
    problems = []
    for kind, result in (("safe", safe), ("unsafe", unsafe)):
        if result.grammar_mass < min_mass:
            problems.append(
                f"on the known {kind} text only {result.grammar_mass:.3f} of the probability lies on the grammar, "
                f"{min_mass:g} is needed: a wrong template or a wrong answer grammar"
            )
    if safe.margin == unsafe.margin:
        problems.append("both texts get the very same score: the prompt does not hold the text")
    elif unsafe.margin < safe.margin:
        problems.append(
            f"the unsafe text scores {safe.margin - unsafe.margin:.2f} nats below the safe one: "
            "the model does not follow this profile"
        )
    return problems
