"""What the command line can do about an error, by its kind: the library's messages name no option."""

from __future__ import annotations

from edgeguard.errors import EdgeguardError

# kind → what to do, with the error's data by name in braces
ADVICE = {
    "base_not_installed": "or pass another model with --model",
    "built_in_altered": "or pass the file with --model",
    "context_overflow": "or raise --context",
}


def advised(error: EdgeguardError) -> str:
    """The error's message, and what an option can do about it."""
    advice = ADVICE.get(error.kind)
    return str(error) if advice is None else f"{error}; {advice.format_map(error.data)}"
