"""Ray itself, imported where it is first needed."""

from __future__ import annotations

from typing import Any

from edgeguard.errors import EdgeguardError


def ray_data() -> Any:
    """The package `ray`, with `ray.data`. Raises EdgeguardError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EdgeguardError(
            f"scoring on many machines needs Ray Data, which cannot be imported ({error}); "
            "pip install 'edgeguard[ray]'",
            kind="no_ray",
        ) from None
    return ray
