"""Short runs of the benches that kill runs and damage inputs, `bench/crash.py` and `bench/fuzz.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc, and forks")


@pytest.fixture(autouse=True)
def benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.mark.parametrize(("format", "workers"), [("jsonl", 2), ("csv", 1), ("parquet", 2)])
def test_a_run_that_is_killed_at_random_moments_is_in_the_end_as_if_it_were_not(
    tmp_path: Path, format: str, workers: int
) -> None:
    import crash

    found = crash.crash(crash.Setting.made(tmp_path, 40), format, workers, n=2, seed=1)
    assert (found.same, found.failures) == (2, [])
    assert found.kills.total() >= 2


@pytest.mark.parametrize("kind", ["JSON_LINES", "JSON_ARRAY", "CSV", "PARQUET"])
def test_of_damaged_inputs_no_record_is_lost_or_doubled(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import fuzz_inputs
    import fuzzing

    monkeypatch.setattr(fuzzing, "SECONDS", 60.0)  # the machine may be busy; the bench holds them to 10
    count = fuzzing.run(kind, getattr(fuzz_inputs, kind), n=15, seed=2)
    assert count.failures == [] and count.outcomes.total() == 15
