"""Where edgeguard keeps what can be made or fetched again."""

from __future__ import annotations

from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder, as each system has it. It need not exist."""
    import platformdirs

    return platformdirs.user_cache_path("edgeguard", appauthor=False)
