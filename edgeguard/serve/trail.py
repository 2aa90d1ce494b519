"""What is known of a request when it is over: one line of the log, without the text unless asked."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edgeguard.rows.record import Failure, Record
from edgeguard.serve.served import Settled

_LONGEST = 200  # characters of a path
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")


@dataclass
class Trail:
    """Filled in on the way."""

    id: str
    method: str
    path: str
    client: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    key: str | None = None
    code: str | None = None
    model: str | None = None
    policy: str | None = None
    records: int = 0
    flagged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    reused: int = 0
    waited: float = 0.0
    scored: float = 0.0
    texts: list[str] | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.began

    def add(self, record: Record | Failure, scored: Settled) -> None:
        """Note what became of a record."""
        self.records += 1
        self.waited, self.scored = self.waited + scored.waited, self.scored + scored.seconds
        if self.texts is not None and isinstance(record, Record):
            self.texts.append(record.messages[-1].content)
        if isinstance(scored.result, Failure):
            self.errors[scored.result.kind] += 1
            return
        self.flagged += scored.result.flagged
        self.tokens += scored.result.tokens["prompt"]
        self.reused += scored.result.tokens["reused"]

    def line(self) -> Mapping[str, Any]:
        """For the log; what does not apply is left out."""
        found: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": self.id,
            "client": self.client,
            "key": self.key,
            "method": self.method,
            "path": self.path[:_LONGEST],
            "status": self.status,
            "ms": round(1000 * self.seconds, 2),
            "code": self.code,
            "model": self.model,
            "policy": self.policy,
        }
        if self.records:
            found |= {
                "records": self.records,
                "flagged": self.flagged,
                "errors": dict(self.errors) or None,
                "tokens": self.tokens,
                "reused": self.reused,
                "queue_ms": round(1000 * self.waited, 2),
                "score_ms": round(1000 * self.scored, 2),
                "texts": self.texts,
            }
        return {name: value for name, value in found.items() if value is not None}


def request_id(given: str | None) -> str:
    """The client's own where it is fit for a log, else a new one."""
    return given if given is not None and _ID.match(given) else f"req_{secrets.token_hex(12)}"
