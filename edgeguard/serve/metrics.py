"""What the server counts, for Prometheus. Labels have few values each: nothing that a client writes becomes one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeguard.guard import Score
from edgeguard.rows.record import Failure
from edgeguard.serve.served import Served, Settled

RECENT = 1000  # records whose share flagged is held against that of all before
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class FlaggedShare:
    """How many of the last records are flagged, and of all before them."""

    def __init__(self, recent: int = RECENT) -> None:
        self._recent: deque[bool] = deque()
        self._size, self._flagged_recent = recent, 0
        self._before, self._flagged_before = 0, 0

    def add(self, flagged: bool) -> None:
        """Count one record."""
        self._recent.append(flagged)
        self._flagged_recent += flagged
        if len(self._recent) > self._size:
            oldest = self._recent.popleft()
            self._flagged_recent -= oldest
            self._before += 1
            self._flagged_before += oldest

    @property
    def recent(self) -> float:
        """In [0, 1]; 0 without a record."""
        return self._flagged_recent / max(1, len(self._recent))

    @property
    def before(self) -> float:
        """The same of all records before the recent ones."""
        return self._flagged_before / max(1, self._before)

    @property
    def drift(self) -> float:
        """How far the two lie apart, in standard errors of their difference; 0 until both have records."""
        n, m = len(self._recent), self._before
        if not n or not m:
            return 0.0
        pooled = (self._flagged_recent + self._flagged_before) / (n + m)
        error = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
        return float((self.recent - self.before) / error) if error else 0.0


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shares: dict[str, FlaggedShare] = {}
        self._requests = Counter(
            "edgeguard_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self._records = Counter(
            "edgeguard_records", "Records by model and outcome", ["model", "outcome"], registry=self.registry
        )
        self._errors = Counter(
            "edgeguard_errors", "Refused requests and failed records", ["kind"], registry=self.registry
        )
        self._tokens = Counter(
            "edgeguard_tokens",
            "Tokens: of prompts, of these reused, of answers",
            ["model", "part"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "edgeguard_seconds",
            "Seconds by part: read a body, wait in the queue, score a record, the request in all",
            ["part"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_hand = Gauge("edgeguard_requests_in_hand", "Requests that are not answered", registry=self.registry)
        self._reloads = Counter("edgeguard_reloads", "Files read again at SIGHUP", ["result"], registry=self.registry)

    def watch(self, models: Mapping[str, Served], waiting: Callable[[], int]) -> None:
        """Also show what the models and the queue say when they are asked."""
        self.registry.register(_Watched(models, self._shares, waiting))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels("request").observe(seconds)

    def refused(self, code: str) -> None:
        """Count a request that was refused."""
        self._errors.labels(code).inc()

    def in_hand(self, n: int) -> None:
        """Requests that are not answered."""
        self._in_hand.set(n)

    def part(self, part: str, seconds: float) -> None:
        """Observe a part of a request's time."""
        self._seconds.labels(part).observe(seconds)

    def reloaded(self, result: str) -> None:
        """Count a file read again: "taken" or "kept_old"."""
        self._reloads.labels(result).inc()

    def record(self, model: str, scored: Settled, review: bool = False) -> None:
        """Count a record."""
        result = scored.result
        if isinstance(result, Failure):
            self._records.labels(model, "error").inc()
            self._errors.labels(result.kind).inc()
            return
        self._records.labels(model, "flagged" if result.flagged else "review" if review else "passed").inc()
        self._shares.setdefault(model, FlaggedShare()).add(result.flagged)
        self._count_tokens(model, result)
        self._seconds.labels("queue").observe(scored.waited)
        self._seconds.labels("score").observe(scored.seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)

    def _count_tokens(self, model: str, score: Score) -> None:
        for part, n in score.tokens.items():
            self._tokens.labels(model, part).inc(n)


class _Watched(Collector):
    def __init__(
        self, models: Mapping[str, Served], shares: Mapping[str, FlaggedShare], waiting: Callable[[], int]
    ) -> None:
        self._models, self._shares, self._waiting = models, shares, waiting

    def collect(self) -> Iterator[Metric]:
        queue = GaugeMetricFamily("edgeguard_queue_records", "Records accepted and not answered")
        queue.add_metric([], self._waiting())
        yield queue
        deaths = CounterMetricFamily("edgeguard_worker_deaths", "Worker processes that died", labels=["model"])
        workers = GaugeMetricFamily("edgeguard_workers", "Worker processes, as chosen", labels=["model"])
        for name, served in self._models.items():
            deaths.add_metric([name], served.workers.deaths)
            workers.add_metric([name], served.workers.workers)
        yield deaths
        yield workers
        share = GaugeMetricFamily(
            "edgeguard_flagged_share",
            f"Share of records flagged: of the last {RECENT}, of all before",
            labels=["model", "of"],
        )
        drift = GaugeMetricFamily(
            "edgeguard_flagged_share_drift", "Recent share minus that before, in standard errors", labels=["model"]
        )
        for name, found in self._shares.items():
            share.add_metric([name, "recent"], found.recent)
            share.add_metric([name, "before"], found.before)
            drift.add_metric([name], found.drift)
        yield share
        yield drift
