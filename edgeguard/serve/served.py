"""The models of a server: each a guard in worker processes, and the one queue before them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from edgeguard.errors import ModelError, ProfileError
from edgeguard.guard import Score
from edgeguard.rows.record import Failure, Record
from edgeguard.selftest import self_test
from edgeguard.serve.categories import CategoryMap
from edgeguard.serve.refusal import Refusal, failure_of_server
from edgeguard.serve.work import Done, RecordWork, score
from edgeguard.workers import Workers

AHEAD = 2  # records of one request at once for each process: so that requests take turns, and a hang-up wastes few


@dataclass(frozen=True)
class Opening:
    """A model to serve: the name that clients call it by, None for the guard's own; `Workers`' arguments."""

    name: str | None
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Settled:
    """What became of a record: a score, or why there is none.

    waited, seconds  in the queue, and in the worker
    """

    result: Score | Failure
    waited: float = 0.0
    seconds: float = 0.0
    explanation: Mapping[str, Any] | None = None


@dataclass
class Served:
    """An open model.

    names      its categories under other names; None: its own
    self_test  "passed", "skipped", or "none" where the profile has no texts for one
    """

    name: str
    workers: Workers
    created: int
    names: CategoryMap | None = None
    self_test: str = "passed"
    in_worker: float = field(default=0.05)  # seconds a record, lately; a guess until there is one

    async def score(
        self, records: Sequence[Record | Failure], work: RecordWork, session: str | None = None
    ) -> AsyncIterator[Settled]:
        """What becomes of each, in order, as they come. Left early, what has not begun is not done.

        work     what is asked about each, by one of them
        session  of a conversation that grows: its requests go to one process, which has what it begins with
        """
        worker = None if session is None else crc32(session.encode()) % self.workers.workers
        waiting: deque[tuple[Record | Failure, asyncio.Future[Done] | None, float]] = deque()
        rest = iter(records)
        try:
            while True:
                while len(waiting) < AHEAD * self.workers.workers and (record := next(rest, None)) is not None:
                    waiting.append((record, self._sent(record, work, worker), time.perf_counter()))
                if not waiting:
                    return
                record, future, began = waiting[0]
                yield await self._outcome(record, future, began)
                waiting.popleft()
        finally:
            for _, future, _ in waiting:
                if future is not None and not future.done():
                    future.cancel()

    def _sent(self, record: Record | Failure, work: RecordWork, worker: int | None) -> asyncio.Future[Done] | None:
        if isinstance(record, Failure):
            return None
        return asyncio.wrap_future(self.workers.submit(score, replace(work, record=record), worker=worker))

    async def _outcome(self, record: Record | Failure, future: asyncio.Future[Done] | None, began: float) -> Settled:
        if isinstance(record, Failure):
            return Settled(record)
        assert future is not None
        try:
            done = await future
        except Exception as error:
            return Settled(failure_of_server(error, record.id, record.line))
        self.in_worker += 0.1 * (done.seconds - self.in_worker)
        waited = max(0.0, time.perf_counter() - began - done.seconds)
        return Settled(done.score, waited, done.seconds, done.explanation)


class Queue:
    """Records that are accepted and not answered, of all requests; no more than `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.records = most, 0

    @contextmanager
    def place(self, n: int, served: Served) -> Iterator[None]:
        """Room for a request's records until it is answered. Raises Refusal where there is none."""
        if self.records + n > self.most:
            raise Refusal(
                429,
                "queue_full",
                f"{self.records} records wait and the queue holds {self.most}; there is no room for {n} more, "
                "ask again later",
                retry_after=self._seconds(served),
            )
        self.records += n
        try:
            yield
        finally:
            self.records -= n

    def _seconds(self, served: Served) -> int:
        """Until half of what waits is done, at the speed of late."""
        return max(1, math.ceil(self.records / 2 * served.in_worker / served.workers.workers))


def open_served(
    openings: Sequence[Opening], *, names: CategoryMap | None, self_tested: bool, tell: Callable[[str], None]
) -> dict[str, Served]:
    """Load the models, and have each judge its profile's two texts. By name, the default first.

    Raises ModelError, ProfileError, CalibrationError; a ModelError of kind "self_test" where a guard does not tell its
    texts apart. What was opened before is closed.
    """
    found: dict[str, Served] = {}
    try:
        for opening in openings:
            workers = Workers(**opening.arguments, tell=tell)
            name = opening.name or workers.name
            served = Served(name, workers, int(time.time()))
            if name in found:
                workers.close()
                raise ModelError(f"two models are called {name!r}; give each a name of its own, NAME=MODEL")
            found[name] = served
            if names is not None:
                names.check(workers.profile)
                served.names = names.of(workers.codes)
            served.self_test = _tested(served, tell) if self_tested else "skipped"
    except BaseException:
        for served in found.values():
            served.workers.close()
        raise
    return found


def _tested(served: Served, tell: Callable[[str], None]) -> str:
    """What is to be said of the self-test. Raises ModelError where it is not passed."""
    try:
        result = served.workers.ask(self_test)
    except ProfileError as error:
        tell(f"{served.name}: no self-test: {error}")
        return "none"
    for note in result.notes:
        tell(f"{served.name}: {note}")
    if result.problems:
        raise ModelError(
            f"{served.name} does not pass its self-test and is not served: {'; '.join(result.problems)}",
            kind="self_test",
        )
    return "passed"
