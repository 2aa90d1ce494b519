"""What a study will do, said before it does it; and what its inputs decide against it, before the first score."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeguard.backends import opener
from edgeguard.errors import InputError, OutputError
from edgeguard.evaluation.rates import exact_high, fewest, watched_high
from edgeguard.evaluation.table import Bools
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import FEWEST, design_of, looks_of
from edgeguard.quant.scoring import edges
from edgeguard.quant.variants import Variant, Wanted, misfits_of

FOR_THE_CLOCK = 16  # records that speed and memory are measured on
FIRST_ASKED = 10  # records that the noise, and the part of the activations, are first looked for on
TIMED = 10  # records of the reference that an estimate of the time stands on
_BYTES_A_SCORE = 2000  # of a record in a file of scores


@dataclass(frozen=True)
class StudyPlan:
    """What there is to do.

    records        that can be read; unreadable: that cannot
    variants       in the order in which they are scored: the smallest first, which decides and runs the soonest
    looks          after how many records a variant is looked at
    least, most    records to score over all models and questions, those that are kept left out
    seconds_each   that the reference took for a record; None where it was not asked
    to_make        bytes of models to make, about; at_once: and of one that is made for a while
    free           bytes on the disk; None: not known
    decides_from   records after which a limit of changed decisions can be decided at the earliest; None: no such limit
    misfits        variant → what llama.cpp will make of rows that its type has no blocks for
    """

    records: int
    unreadable: int
    variants: tuple[Wanted, ...]
    looks: tuple[int, ...]
    least: int
    most: int
    seconds_each: float | None
    to_make: int
    at_once: int
    free: int | None
    decides_from: int | None
    limit: float | None
    misfits: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """As the report has it. `seconds` are an estimate: as if each model took as long as the reference."""
        each = self.seconds_each
        return {
            "records": self.records,
            "unreadable": self.unreadable,
            "order": [one.name for one in self.variants],
            "models": 1 + len(self.variants),
            "looks": list(self.looks),
            "scores": {"at_least": self.least, "at_most": self.most},
            "seconds": None if each is None else {"at_least": self.least * each, "at_most": self.most * each},
            "seconds_a_record": each,
            "timed_on": None if each is None else min(TIMED, self.records),
            "disk": {
                "models": self.to_make,
                "scores": self.most * _BYTES_A_SCORE,
                "for_a_while": self.at_once,
                "free": self.free,
            },
            "limit": self.limit,
            "records_for_limit": None if self.limit is None else fewest(self.limit),
            "decides_from": self.decides_from,
            "misfits": dict(self.misfits),
        }


def make_plan(
    reference: Variant,
    variants: Sequence[Wanted],
    choices: Choices,
    *,
    readable: int,
    unreadable: int,
    floor: int,
    measurements: int,
    kept: Mapping[str, int],
    folder: Path,
    seconds_each: float | None,
) -> StudyPlan:
    """The plan. `kept`: of a model's name, how many of its records are scored already."""
    n = readable + unreadable
    looks = looks_of(n) if watches(choices) else [n]
    names = [reference.name, *(one.name for one in variants)]
    scored = [[max(0, upto - kept.get(name, 0)) for name in names] for upto in (looks[0], n)]
    first, last = (_asked(reference, variants, min(n, upto)) if floor else 0 for upto in (FIRST_ASKED, floor))
    clock = measurements * len(names) * min(n, FOR_THE_CLOCK)
    rounds = any(_rounds(one) for one in variants) and floor
    return StudyPlan(
        records=readable,
        unreadable=unreadable,
        variants=tuple(variants),
        looks=tuple(looks),
        least=sum(scored[0]) + first + clock,
        most=sum(scored[1]) + max(first, last) + clock,
        seconds_each=seconds_each,
        to_make=sum(one.n_bytes for one in variants if not one.is_there),
        at_once=reference.n_bytes if rounds else 0,
        free=_free(folder),
        decides_from=_decides_from(n, looks, choices),
        limit=choices.max_flip_rate,
        misfits={one.name: said for one in variants if (said := misfits_of(reference, one))},
    )


def watches(choices: Choices) -> bool:
    """Whether a variant's scoring may end before the last record."""
    return choices.watch and (choices.max_flip_rate is not None or choices.max_auprc_loss is not None)


def _asked(reference: Variant, variants: Sequence[Wanted], upto: int) -> int:
    """Records to score for the noise of all, and for the activations of those that round them."""
    n = edges_up(upto)
    found = min(n, FIRST_ASKED) * _conditions(reference.runtime)
    return found + sum(n * (_conditions(one.runtime) + _rounds(one)) for one in variants)


def edges_up(n: int) -> int:
    """The end of the file of scores that holds the n-th record."""
    return next(edge for edge in edges(n + 1000) if edge >= n)


def _conditions(runtime: str) -> int:
    """Other conditions than a study's own: those of the runtime, and another number of threads."""
    return 1 + len(opener("onnx" if runtime == "onnx" else "gguf").conditions)


def _rounds(one: Wanted) -> bool:
    return one.kind not in ("f32", "onnx", "onnx-fp32", "onnx-fp16") and not one.name.endswith("-float")


def _free(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _decides_from(n: int, looks: Sequence[int], choices: Choices) -> int | None:
    """The first look at which a variant that changes nothing is told to keep inside."""
    limit = choices.max_flip_rate
    if limit is None:
        return None
    made = design_of(n, choices)
    for look in looks:
        high = exact_high(0, n, made.at_end) if look == n else watched_high(0, look, made.watching or 1e-300)
        if high <= limit:
            return look
    return None


# What the inputs decide


def check_limits(plan_records: int, truth: Bools | None, choices: Choices) -> None:
    """Raises InputError where no result could be inside the limits, with what would do.

    truth  (n,) whether a record is unsafe; None without labels
    """
    limit, loss = choices.max_flip_rate, choices.max_auprc_loss
    if limit is not None:
        wanted = fewest(limit)
        if wanted is None:
            raise InputError(
                "no number of records decides on a limit of 0 changed decisions; expected a share such as 0.02",
                kind="too_few_records",
            )
        if plan_records < wanted:
            high = f"{100 * exact_high(0, plan_records):.3g} %"
            raise InputError(
                f"{plan_records} records cannot decide on a limit of {100 * limit:g} %: if none of their decisions "
                f"changes, still up to {high} might (95 %); it takes {wanted:,} records, or a limit of {high}",
                kind="too_few_records",
            )
    if loss is not None:
        _check_truth(truth, loss)


def _check_truth(truth: Bools | None, loss: float) -> None:
    said = f"a limit of {loss:g} of the AUPRC lost"
    if truth is None:
        raise InputError(f"{said} needs labels, and the records have none", kind="no_truth")
    if truth.all() or not truth.any():
        raise InputError(
            f"{said} needs unsafe and safe records, and all {len(truth)} are {'unsafe' if truth.all() else 'safe'}"
        )
    if len(truth) < FEWEST:
        raise InputError(f"{said} takes {FEWEST} records, and there are {len(truth)}", kind="too_few_records")


def check_records(readable: int, n: int) -> None:
    """Raises InputError where there is nothing to compare."""
    if readable < 2:
        what = (
            "none of the records" if not readable else f"only 1 of {n} records" if n > 1 else "the only record there is"
        )
        tail = "" if n == 1 and readable else " can be read"
        raise InputError(f"{what}{tail}: a comparison takes at least 2 records; give more")


def check_disk(plan: StudyPlan, folder: Path) -> None:
    """Raises OutputError where the models do not fit."""
    wanted = plan.to_make + plan.at_once
    if plan.free is not None and wanted > plan.free:
        raise OutputError(
            f"{folder} has {plan.free / 1e6:,.0f} MB left; the models of this study take about {wanted / 1e6:,.0f} MB"
        )
