"""Fits the calibrations that go with the guard: three files from one scoring of the validation set.

    python models/edgeguard-135m/calibrate.py DATA/val.jsonl

`edgeguard calibrate` gives the same for one estimator: --method platt --threshold-for f1
--threshold-for unsafe:fpr=0.02 --safe-rate 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from edgeguard.calibration import Calibration, write_calibration
from edgeguard.files import sha256
from edgeguard.fitting import Target, fit_table, maps_of, thresholds_of
from edgeguard.guard import Guard
from edgeguard.inputs import read_records
from edgeguard.scores import ScoreTable, score_records

HERE = Path(__file__).parent
TARGETS = {"": Target("f1"), "unsafe": Target("fpr", 0.02)}
SAFE_RATE = 0.01  # of the safe records, over a category's threshold


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("val", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    with Guard.load(calibration=False) as guard:
        table = score_records(guard, read_records(args.val))
        said = {"guard": guard.name, "profile": guard.profile.name, "model_sha256": guard.backend.info.sha256}
    for estimator, calibration in fit(table, said, args.val).items():
        write_calibration(calibration, args.out / f"calibration-{estimator}.json")


def fit(table: ScoreTable, guard: Mapping[str, str], val: Path) -> dict[str, Calibration]:
    """Estimator → calibration, by the guard's own rule, of a guard's scores on the validation set."""
    found = {}
    for estimator in table.scores:
        fits = fit_table(table, estimator, method="platt", targets=TARGETS, safe_rate=SAFE_RATE)
        found[estimator] = Calibration(
            **guard,
            estimator=estimator,
            maps=maps_of(fits),
            thresholds=thresholds_of(fits),
            fitted={
                "file": val.name,
                "sha256": sha256(val),
                "records": len(table),
                "thresholds_for": {label or "all": str(goal) for label, goal in TARGETS.items()},
                "safe_rate": SAFE_RATE,
                "left_alone": {fit.label: fit.reason for fit in fits if fit.map is None},
            },
        )
    return found


if __name__ == "__main__":
    main()
