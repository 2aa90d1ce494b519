"""What a study ran on, for its report: another machine or another version of a runtime is another study."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgeguard.backends import runtime_of
from edgeguard.machine import available_cores, processor
from edgeguard.quant.scoring import Setting
from edgeguard.quant.variants import Variant
from edgeguard.version import __version__


def machine_data(setting: Setting, for_the_clock: Setting, models: Iterable[Variant]) -> dict[str, Any]:
    """`machine` of a report."""
    modules = sorted({runtime_of(model.path).module for model in models})
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": setting.runtime.threads,
        "workers": setting.workers,
        "threads_for_speed": for_the_clock.runtime.threads,
        "runtimes": {module: _version(module) for module in modules},
        "edgeguard": __version__,
    }


def _version(module: str) -> str:
    """Of the package that a module came with: most are called alike."""
    from importlib.metadata import packages_distributions

    for name in packages_distributions().get(module, [module]):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
