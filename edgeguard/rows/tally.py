"""What came of many records, in numbers: for a summary and for an exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgeguard.rows.schema import ResultRow


@dataclass
class Tally:
    """Counts over rows.

    errors     kind → how many rows
    windowed   records that were scored in `windows`
    skipped    turns, and parts of turns, that were left out, of `shortened` records
    reused     tokens that others shared; evaluated: all others
    highest    the largest P(unsafe)
    """

    records: int = 0
    flagged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    windowed: int = 0
    windows: int = 0
    skipped: int = 0
    shortened: int = 0
    reused: int = 0
    evaluated: int = 0
    highest: float = 0.0

    def add(self, row: ResultRow) -> None:
        """Count one row."""
        self.records += 1
        if "error" in row:
            self.errors[row["error"]["type"]] += 1
            return
        if row["window"] is not None:
            self.windowed += 1
            self.windows += row["window"]["of"]
        self.flagged += row["flagged"]
        self.skipped += row["skipped"]
        self.shortened += row["skipped"] > 0
        self.highest = max(self.highest, row["unsafe"])
        tokens = row["tokens"]
        self.reused += tokens["reused"]
        self.evaluated += tokens["prompt"] - tokens["reused"] + tokens["answer"]

    def include(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.records += other.records
        self.flagged += other.flagged
        self.errors += other.errors
        self.windowed += other.windowed
        self.windows += other.windows
        self.skipped += other.skipped
        self.shortened += other.shortened
        self.reused += other.reused
        self.evaluated += other.evaluated
        self.highest = max(self.highest, other.highest)
