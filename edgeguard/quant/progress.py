"""How far a study has come: which stage of how many, what it does, and how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What is done now.

    what           as "scoring q8_0"; done, total: of what is counted, 0 of 0 where nothing is
    stage, stages  the stage's number from 1, and how many there are
    left           seconds until the end, at most about; None where nothing says
    """

    what: str
    done: int = 0
    total: int = 0
    stage: int = 0
    stages: int = 0
    left: float | None = None


Tell = Callable[[Step], None]


def silent(step: Step) -> None:
    """Tell nobody."""


class Progress:
    """Counts what is scored against what there was to score. For one thread.

    stages  names, in order; `expected`: records to score at most, over all of them
    """

    def __init__(self, tell: Tell, stages: Sequence[str]) -> None:
        self._tell, self._stages, self._stage = tell, list(stages), 0
        self._left = 0
        self._each: float | None = None
        self._scored, self._began = 0, time.monotonic()

    def expect(self, left: int, seconds_each: float | None) -> None:
        """From here on there are so many records to score at most, at so many seconds each at first."""
        self._left, self._each = left, seconds_each
        self._scored, self._began = 0, time.monotonic()

    def skip(self, n: int) -> None:
        """So many need not be scored after all."""
        self._left = max(0, self._left - n)

    def begin(self, stage: str) -> None:
        """A stage of those that were named, or one that nobody counts."""
        self._stage = self._stages.index(stage) + 1 if stage in self._stages else self._stage

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        """Something that is done, or found."""
        self._tell(Step(what, done, total, self._stage, len(self._stages), self._seconds()))

    def counting(self, what: str) -> Callable[[int, int], None]:
        """Hears how many of how many records of one model are there, and tells it."""
        before: list[int] = []

        def heard(done: int, total: int) -> None:
            if before:
                self._scored += done - before[0]
                self._left = max(0, self._left - (done - before[0]))
                before.clear()
            before.append(done)
            self.say(what, done, total)

        return heard

    def _seconds(self) -> float | None:
        """By this run's own pace, once it has one: what was slow before will be slow again."""
        if self._scored >= 20:
            return self._left * (time.monotonic() - self._began) / self._scored
        return None if self._each is None else self._left * self._each
