"""What a worker process does for the server: one record, by one decision, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeguard.errors import RecordError
from edgeguard.explanation import considered, explanation
from edgeguard.guard import Guard, Score
from edgeguard.rows.record import Record
from edgeguard.serve.policies import DecisionRule

NOTHING = Record(())


@dataclass(frozen=True)
class RecordWork:
    """A record to score.

    tokens    that its texts may have together
    decision  None: the guard's own
    explain   the tree of answers is wanted too
    grows     it will come again with more at its end
    """

    tokens: int
    decision: DecisionRule | None = None
    explain: bool = False
    grows: bool = False
    record: Record = NOTHING


@dataclass(frozen=True)
class Done:
    """A score, and the seconds that it took in the process; the tree of answers, of a text that was judged whole."""

    score: Score
    seconds: float
    explanation: Mapping[str, Any] | None = None


def score(guard: Guard, work: RecordWork) -> Done:
    """Raises RecordError."""
    began = time.perf_counter()
    _check_length(guard, work)
    if work.decision is not None:
        guard = guard.deciding(work.decision.calibration, work.decision.thresholds)
    found, tree = guard.score(work.record, grows=work.grows), None
    if work.explain and found.window is None:
        tree = _finite(explanation(considered(guard, work.record)))
    return Done(found, time.perf_counter() - began, tree)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_length(guard: Guard, work: RecordWork) -> None:
    texts = [message.content for message in work.record.messages]
    if sum(len(text.encode()) for text in texts) <= work.tokens:  # no text has more tokens than bytes
        return
    with guard.backend.lock:
        n_tokens = sum(len(guard.backend.vocabulary.encode(text)) for text in texts)
    if n_tokens > work.tokens:
        raise RecordError(
            f"the texts have {n_tokens} tokens together, this server takes {work.tokens}; shorten or split them",
            kind="too_many_tokens",
            n_tokens=n_tokens,
            limit=work.tokens,
        )
