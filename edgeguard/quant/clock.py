"""Speed and memory of a study's models: measured in turn, and kept, so that a later run without measuring has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edgeguard.files import write_whole
from edgeguard.machine import processor
from edgeguard.quant.plan import FOR_THE_CLOCK
from edgeguard.quant.progress import Progress
from edgeguard.quant.scoring import Cost, Setting, key_of, measure
from edgeguard.quant.variants import Variant


def costs_of(
    models: Sequence[Variant], setting: Setting, measurements: int, folder: Path, progress: Progress
) -> list[list[Cost]]:
    """For each model its measurements: all models in turn, so that a noisy minute hits all of them."""
    costs: list[list[Cost]] = [[] for _ in models]
    for n in range(measurements):
        for i, model in enumerate(models):
            progress.say(f"measuring {model.name}", n, measurements)
            costs[i].append(measure(model, setting, FOR_THE_CLOCK))
            progress.skip(FOR_THE_CLOCK)
            progress.say(f"measuring {model.name}", n + 1, measurements)
    for model, found in zip(models, costs, strict=True):
        path = _file(model, setting, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps([asdict(cost) for cost in found]).encode())
    return costs


def kept_costs(models: Sequence[Variant], setting: Setting, folder: Path) -> list[list[Cost]]:
    """What an earlier run on a machine like this one has left; nothing of any model where one of them has nothing:
    ratios of two different hours are none.
    """
    found = [_read(_file(model, setting, folder)) for model in models]
    return found if all(found) else [[] for _ in models]


def _read(path: Path) -> list[Cost]:
    try:
        return [Cost(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _file(model: Variant, setting: Setting, folder: Path) -> Path:
    where = hashlib.sha256(processor().encode()).hexdigest()[:8]
    return folder / "costs" / f"{key_of(model, setting)}-{where}.json"
