"""Scores as each route answers them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from edgeguard.errors import shortened
from edgeguard.guard import Score
from edgeguard.rows.record import Failure
from edgeguard.serve.categories import CategoryMap
from edgeguard.serve.policies import Policy
from edgeguard.serve.served import Settled

REMOVED = "[removed by a guard: {}]"


def row(scored: Settled, policy: Policy | None) -> dict[str, Any]:
    """The row of `edgeguard score`, an error row too. Behind it stand the policy that was asked for, `review` where
    that has a band, and the tree of answers where it was asked for.
    """
    score, found = scored.result, scored.result.row()
    if isinstance(score, Failure):
        return found
    if policy is not None:
        found["policy"] = policy.name
        if policy.review:
            found["review"] = policy.in_review(score)
    if scored.explanation is not None:
        found["explanation"] = scored.explanation
    return found


def moderation(score: Score, policy: Policy | None, names: CategoryMap | None) -> dict[str, Any]:
    """One of `results` of a moderation. Names without a counterpart in the guard's taxonomy are absent."""
    said = score.row()
    bounds = {code: said["bounds"][code] for code in said["category_scores"]}
    flags = {code: code in said["categories"] for code in said["category_scores"]}
    scores = said["category_scores"]
    if names is not None:
        mapped = names.apply(scores, bounds)
        flags = names.flags(said["categories"], tuple(scores))
        scores, bounds = dict(mapped.scores), {name: list(pair) for name, pair in mapped.bounds.items()}
    result = {
        "flagged": said["flagged"],
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
        "category_bounds": bounds,
        "unsafe": said["unsafe"],
    }
    if policy is not None and policy.review:
        result["review"] = policy.in_review(score)
    return result


def moderations(
    scores: Sequence[Score], model: str, policy: Policy | None, names: CategoryMap | None
) -> dict[str, Any]:
    """OpenAI's reply. `model` is the name that was answered by, with the policy's."""
    return {
        "id": f"modr-{secrets.token_hex(12)}",
        "model": model,
        "results": [moderation(score, policy, names) for score in scores],
    }


def guardrail(
    scores: Sequence[Score | None], texts: Sequence[str], *, replace: bool, names: Mapping[str, str]
) -> dict[str, Any]:
    """LiteLLM's reply. `scores` are of the texts, and of what stands behind them; None for a blank one."""
    flagged = [score for score in scores if score is not None and score.flagged]
    if not flagged:
        return {"action": "NONE", "blocked_reason": None, "texts": None}
    in_texts = [score for score in scores[: len(texts)] if score is not None and score.flagged]
    if replace and len(in_texts) == len(flagged):
        shown = [
            REMOVED.format(", ".join(score.categories) or "unsafe") if score is not None and score.flagged else text
            for text, score in zip(texts, scores, strict=False)
        ]
        return {"action": "GUARDRAIL_INTERVENED", "blocked_reason": None, "texts": shown}
    return {"action": "BLOCKED", "blocked_reason": _reason(flagged, names), "texts": None}


def _reason(flagged: Sequence[Score], names: Mapping[str, str]) -> str:
    worst = max(flagged, key=lambda score: score.margin)
    codes = dict.fromkeys(code for score in flagged for code in score.categories)
    said = ", ".join(f"{code} {names.get(code, '')}".strip() for code in codes) or "unsafe, no category"
    return shortened(f"flagged by {worst.guard}: {said} (P(unsafe) {worst.row()['unsafe']:.3g})", 500)
