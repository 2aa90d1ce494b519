"""Fits the calibrations that go with the guard: three files from one scoring of the validation set.

    python models/edgeguard-135m/calibrate.py DATA/val.jsonl

`edgeguard calibrate` gives the same for one estimator: --method platt --threshold-for f1
--threshold-for unsafe:fpr=0.02 --safe-rate 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from edgeguard.calibration.fitting import Target, calibration_of, fit_table
from edgeguard.calibration.maps import Calibration, write_calibration
from edgeguard.evaluation.table import ScoreTable, score_records
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_records

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
        identity = {**guard, "estimator": estimator}
        found[estimator] = calibration_of(fits, identity, val, records=len(table), targets=TARGETS, safe_rate=SAFE_RATE)
    return found


if __name__ == "__main__":
    main()
