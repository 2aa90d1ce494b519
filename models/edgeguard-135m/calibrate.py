"""Fits the calibrations that go with the guard: three files from one scoring of the validation set.

    python models/edgeguard-135m/calibrate.py DATA/val.jsonl

`edgeguard calibrate` gives the same for one estimator: --method platt --threshold-for f1
--threshold-for unsafe:fpr=0.02 --safe-rate 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from edgeguard.calibration.files import write_calibration
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Goal
from edgeguard.evaluation.calibrate import calibrate
from edgeguard.evaluation.table import ScoreTable, score_records
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_records

HERE = Path(__file__).parent
GOALS = {"": Goal("f1"), "unsafe": Goal("fpr", 0.02)}
SAFE_RATE = 0.01  # of the safe records, over a category's threshold


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("val", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    with Guard.load(calibration=False) as guard:
        table = score_records(guard, read_records(args.val))
        identity = {"guard": guard.name, "profile": guard.profile.name, "model_sha256": guard.backend.info.sha256}
    truth = find_truth(args.val, table.labels)
    assert truth is not None
    for estimator, calibration in fit(with_truth(table, truth, same_file=True), identity, args.val).items():
        write_calibration(calibration, args.out / f"calibration-{estimator}.json")


def fit(table: ScoreTable, identity: Mapping[str, str], val: Path) -> dict[str, Calibration]:
    """Estimator → calibration, by the guard's own rule, of a guard's scores on the validation set."""
    rule = {"method": "platt", "goals": GOALS, "safe_rate": SAFE_RATE}
    return {name: calibrate(table, name, identity=identity, source=val, **rule)[0] for name in table.scores}


if __name__ == "__main__":
    main()
