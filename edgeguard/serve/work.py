"""What a worker process does for the server: one record, by one decision, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from edgeguard.errors import RecordError
from edgeguard.guard import Guard, Score
from edgeguard.rows.record import Record
from edgeguard.serve.policies import Decision


@dataclass(frozen=True)
class Work:
    """A record to score.

    decision  None: the guard's own
    tokens    that its texts may have together
    """

    record: Record
    tokens: int
    decision: Decision | None = None


@dataclass(frozen=True)
class Done:
    """A score, and the seconds that it took in the process."""

    score: Score
    seconds: float


def score(guard: Guard, work: Work) -> Done:
    """Raises RecordError."""
    began = time.perf_counter()
    _check_length(guard, work)
    if work.decision is not None:
        guard = guard.deciding(work.decision.calibration, work.decision.thresholds)
    return Done(guard.score(work.record), time.perf_counter() - began)


def _check_length(guard: Guard, work: Work) -> None:
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
