"""Which file to ship: the smallest of those that surely keep inside the limits, and why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeguard.evaluation.rates import fewest
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import Decision, Verdict, decide

UNASKED_LIMIT = 0.02  # of decisions that change, where no limit was given: 1 in 50
RULE = "the smallest file of whose decisions at most 2 % change, at 95 % confidence"

Row = tuple[str, int, Decision]  # a variant's name, its bytes, and what is certain of it


def recommend(reference_bytes: int, variants: Sequence[Row], choices: Choices) -> dict[str, Any]:
    """What to ship inside the limits; where none was given nothing, but what the default rule would ship."""
    limited = choices.max_flip_rate is not None or choices.max_auprc_loss is not None
    rows = [
        {
            "name": name,
            "bytes": n_bytes,
            "verdict": decision.verdict,
            "flip_rate": decision.rate.high,
            "auprc_loss": None if decision.loss is None else decision.loss.high,
            "inside": decision.verdict == "keeps",
            "records_needed": decision.needed,
        }
        for name, n_bytes, decision in variants
    ]
    ship, verdict, why = chosen(reference_bytes, variants, choices) if limited else (None, None, "no limits were given")
    return {
        "ship": ship,
        "verdict": verdict,
        "why": why,
        "limits": {"max_flip_rate": choices.max_flip_rate, "max_auprc_loss": choices.max_auprc_loss},
        "max_flip_rate": choices.max_flip_rate,
        "max_auprc_loss": choices.max_auprc_loss,
        "variants": rows,
        "without_limits": None if limited else _without_limits(reference_bytes, variants, choices),
    }


def _without_limits(reference_bytes: int, variants: Sequence[Row], choices: Choices) -> dict[str, Any]:
    """What the default rule says, of all records in one look."""
    ruled = replace(choices, max_flip_rate=UNASKED_LIMIT)
    judged = [(name, n_bytes, decide([decision.look], decision.look.n, ruled)) for name, n_bytes, decision in variants]
    ship, verdict, why = chosen(reference_bytes, judged, ruled)
    return {
        "rule": RULE,
        "limit": UNASKED_LIMIT,
        "ship": ship,
        "verdict": verdict,
        "why": why,
        "verdicts": {name: decision.verdict for name, _, decision in judged},
        "records_needed": {name: decision.needed for name, _, decision in judged},
        "fewest_records": fewest(UNASKED_LIMIT),
    }


def chosen(reference_bytes: int, variants: Sequence[Row], choices: Choices) -> tuple[str | None, Verdict | None, str]:
    """(name, verdict, why): "keeps" with a name; "too_few" where more records might name one; else "breaks"."""
    by_size = sorted(variants, key=lambda row: row[1])
    keeps = [row for row in by_size if row[2].verdict == "keeps"]
    unsure = [row for row in by_size if row[2].verdict == "too_few"]
    if keeps:
        name, n_bytes, _ = keeps[0]
        smaller = [row for row in unsure if row[1] < n_bytes]
        why = f"{name} is the smallest file that keeps inside the limits"
        if n_bytes >= reference_bytes:
            why += ", and not smaller than the reference"
        return name, "keeps", why + (f"; {_too_few(smaller, choices)}" if smaller else "")
    if unsure:
        return None, "too_few", _too_few(unsure, choices)
    if not variants:
        return None, None, "there is no variant"
    return None, "breaks", "no variant keeps inside the limits"


def _too_few(rows: Sequence[Row], choices: Choices) -> str:
    """In the words of terminal and page: how many would do for the one that would then be inside the soonest."""
    wanted = []
    for name, _, decision in rows:
        inside = decision.look.changed <= (choices.max_flip_rate or 1.0) * decision.look.n
        wanted += [(not inside, decision.needed, name)] if decision.needed is not None else []
    names = ", ".join(name for name, _, _ in rows)
    if not wanted:
        return f"too few records to say of {names}: so near to the limit no number would do"
    _, n, name = min(wanted)
    return f"too few records to say of {names}: about {n:,} would do" + (f" for {name}" if len(rows) > 1 else "")
