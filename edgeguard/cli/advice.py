"""What the command line can do about an error, by its kind: the library's messages name no option."""

from __future__ import annotations

from edgeguard.errors import EdgeguardError

# kind → what to do, with the error's data by name in braces
ADVICE = {
    "calibrated_scores": "score again with --no-calibration",
    "foreign_calibration": "or force it with --force-calibration",
    "no_truth": "or --labels FILE with the ground truth",
    "unknown_label": "or say with --labels-map FILE what the file's names stand for",
    "base_not_installed": "or pass another model with --model",
    "built_in_altered": "or pass the file with --model",
    "context_overflow": "or raise --context",
}


def advised(error: EdgeguardError) -> str:
    """The error's message, and what an option can do about it."""
    advice = ADVICE.get(error.kind)
    return str(error) if advice is None else f"{error}; {advice.format_map(error.data)}"
