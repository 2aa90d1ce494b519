"""What a request may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeLimits:
    """Limits of the server.

    body_bytes    of one request
    inputs        records of one request
    tokens        of the texts of one record, the policy's not counted; the context is a limit of its own
    queue         records that are accepted and not answered, of all requests; more are refused with 429
    seconds       until a request that is not answered is given up; a growing answer's rows that came before stay
    body_seconds  until a body must have come, and a request's head too
    idle_seconds  until an idle connection is closed
    connections   open at once
    drain_seconds  that requests at hand get when the server is to end
    """

    body_bytes: int = 4 << 20
    inputs: int = 256
    tokens: int = 32_768
    queue: int = 1024
    seconds: float = 60.0
    body_seconds: float = 20.0
    idle_seconds: float = 75.0
    connections: int = 1024
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.inputs > self.queue:
            raise ValueError(
                f"a request may have {self.inputs} records and the queue holds {self.queue}; a queue must hold one"
            )
