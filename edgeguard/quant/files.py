"""A report as files: its data, its page, and the calibrations that repair each variant."""

from __future__ import annotations

import json
from pathlib import Path

from edgeguard.calibration.files import write_calibration
from edgeguard.errors import OutputError
from edgeguard.files import write_whole
from edgeguard.quant.page import page
from edgeguard.quant.report import Report


def write_report(report: Report, folder: Path) -> None:
    """report.json, repair/VARIANT-ESTIMATOR.json and report.html. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.json", (json.dumps(report.data, indent=1) + "\n").encode())
        write_repairs(report, folder / "repair")
        write_whole(folder / "report.html", page(report.data).encode())
    except OSError as error:
        raise not_writable(folder, error) from None


def not_writable(folder: Path, error: OSError) -> OutputError:
    """The error of a folder that takes no files."""
    return OutputError(f"{folder} cannot be written: {error.strerror or error}", kind="folder_not_writable")


def write_repairs(report: Report, folder: Path) -> None:
    """A calibration file for each variant and estimator, for `edgeguard score` to take."""
    folder.mkdir(exist_ok=True)
    for variant, repairs in report.repairs.items():
        for estimator, calibration in repairs.items():
            write_calibration(calibration, folder / f"{variant}-{estimator}.json")
