"""What the command line can do about an error, by its kind: the library's messages name no option."""

from __future__ import annotations

from edgeguard.errors import EdgeguardError

# kind → what to do, with the error's data by name in braces
ADVICE = {
    "context_overflow": "or raise --context",
    "conversion_exists": "--overwrite replaces it",
}


def advised(error: EdgeguardError) -> str:
    """The error's message, and what an option can do about it."""
    advice = ADVICE.get(error.kind)
    return str(error) if advice is None else f"{error}; {advice.format_map(error.data)}"
