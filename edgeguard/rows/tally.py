"""What came of many records, in numbers: for a summary and for an exit code."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgeguard.rows.schema import ResultRow


@dataclass
class Tally:
    """Counts over rows.

    skipped    turns, and parts of turns, that were left out, of `shortened` records
    reused     tokens that others shared; evaluated: all others
    highest    the largest P(unsafe)
    """

    records: int = 0
    flagged: int = 0
    errors: int = 0
    skipped: int = 0
    shortened: int = 0
    reused: int = 0
    evaluated: int = 0
    highest: float = 0.0

    def add(self, row: ResultRow) -> None:
        """Count one row."""
        self.records += 1
        if "error" in row:
            self.errors += 1
            return
        self.flagged += row["flagged"]
        self.skipped += row["skipped"]
        self.shortened += row["skipped"] > 0
        self.highest = max(self.highest, row["unsafe"])
        tokens = row["tokens"]
        self.reused += tokens["reused"]
        self.evaluated += tokens["prompt"] - tokens["reused"] + tokens["answer"]

    def include(self, other: Tally) -> None:
        """Count what another one has counted."""
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(mine, its) if field.name == "highest" else mine + its)
