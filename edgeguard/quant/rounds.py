"""Scores as far as they are needed: of a variant until its decision is certain, of noise until its question is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.backends import conditions
from edgeguard.errors import ModelError
from edgeguard.evaluation import drift
from edgeguard.evaluation.rates import watched_high, watched_low
from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.evaluation.truth import Truth, join
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import Look, decide, goes_on, next_look
from edgeguard.quant.plan import FIRST_ASKED, watches
from edgeguard.quant.progress import Progress
from edgeguard.quant.reading import VERDICTS
from edgeguard.quant.scoring import Running, Scored, Setting, edges, is_kept, key_of, order_of, score
from edgeguard.quant.variants import Variant, as_float, made_float


@dataclass(frozen=True)
class Work:
    """What all rounds share.

    n      records in all; looks: after how many of them variants are looked at
    floor  records at most for the noise and the activations' part; 0: neither
    """

    setting: Setting
    models: Path
    scores: Path
    choices: Choices
    truth: Truth | None
    same_file: bool
    n: int
    looks: Sequence[int]
    floor: int
    progress: Progress
    running: Running

    def score(
        self, model: Variant, upto: int | None, *, setting: Setting | None = None, condition: str = ""
    ) -> ScoreTable:
        """A model's scores of the first records, with their truth; kept, or made now. Raises ModelError."""
        what = f"scoring {model.name}" + (f", other {condition}" if condition else "")
        tell = self.progress.counting(what)
        found = score(model, setting or self.setting, self.scores, upto=upto, tell=tell, running=self.running)
        return self._with_truth(found.table)

    def _with_truth(self, table: ScoreTable) -> ScoreTable:
        if self.truth is None or not len(table):
            return table
        y_true = join(self.truth, table.ids, table.places.tolist(), self.n, same_file=self.same_file)
        return replace(table, truth=y_true)


def open_model(model: Variant, work: Work) -> Scored:
    """What a model is, without a score. Raises ModelError."""
    return score(model, work.setting, work.scores, upto=0, running=work.running)


def refuse_strangers(reference: Variant, given: Sequence[Variant], work: Work) -> None:
    """A model with another vocabulary is no variant of the reference. They are opened, not run. Raises ModelError."""
    if not given:
        return
    ours = open_model(reference, work)
    for model in given:
        work.progress.say(f"opening {model.name}")
        found = open_model(model, work)
        if found.vocabulary != ours.vocabulary:
            raise ModelError(
                f"{model.path} is no variant of {reference.path}: its vocabulary has {found.n_vocab} tokens and the "
                f"hash {found.vocabulary[:16]}, the reference's {ours.n_vocab} and {ours.vocabulary[:16]}"
            )


# Decisions


def score_all(
    reference: Variant, variants: Sequence[Variant], work: Work
) -> tuple[ScoreTable, dict[str, ScoreTable], dict[str, list[Look]]]:
    """The reference's scores, each variant's by its name, and what was seen of it on the way.

    Variant by variant, in their order, each until it is decided; the reference as far as the one that goes furthest.
    So two models are open at a time, and none is opened twice.
    """
    tables: dict[str, ScoreTable] = {}
    looks: dict[str, list[Look]] = {}
    base, furthest = work.score(reference, work.looks[0]), work.looks[0]
    for one in variants:
        looks[one.name] = []
        for upto in work.looks:
            furthest = max(furthest, upto)
            base = work.score(reference, furthest)
            tables[one.name] = work.score(one, upto)
            left, right = drift.shared(base, tables[one.name])
            seen = looks[one.name]
            seen.append(next_look(left, right, seen, work.choices, planned=work.n, upto=upto))
            decision = decide(seen, work.n, work.choices, how_many=False)
            if decision.verdict and not goes_on(decision, work.n, work.choices) and watches(work.choices):
                work.progress.skip(work.n - upto)
                if upto < work.n:
                    said = VERDICTS[decision.verdict]
                    work.progress.say(f"{one.name}: {said} after {decision.look.n} records")
                break
    work.progress.skip(work.n - furthest)
    return base, tables, looks


# Noise: the same model and records, computed in another way


@dataclass(frozen=True)
class Asked:
    """Scores that answer a question, and how surely it is answered.

    tables  by condition, or of one other model
    first, n  on how many records the first of two is larger, of how many
    """

    tables: Mapping[str, ScoreTable]
    first: int = 0
    n: int = 0

    @property
    def low(self) -> float:
        """Bound of the share of records on which the first is larger, 95 %, however often one has looked."""
        return watched_low(self.first, self.n)

    @property
    def high(self) -> float:
        """The other bound."""
        return watched_high(self.first, self.n)

    @property
    def answered(self) -> bool:
        """Whether it is certain which of the two is larger on most records."""
        return self.low > 0.5 or self.high < 0.5


def noise_of(model: Variant, own: ScoreTable, base: ScoreTable | None, work: Work) -> Asked:
    """Condition → the scores of the model's first records under it.

    The question: is its drift from the reference larger than its own noise, on most records? Of the reference itself,
    `base` None, there is nothing to ask, and the first few records do. A condition that moves none of the first few by
    a bit is asked of no more: its noise is nought.
    """
    runtime = work.setting.runtime
    threads = 2 if runtime.threads == 1 else 1
    fewer = max(1, work.setting.workers // threads)  # processes, where each has more threads
    others = {"threads": replace(work.setting, runtime=replace(runtime, threads=threads), workers=fewer)}
    for name, one in conditions(model.path).items():
        others[name] = replace(work.setting, runtime=replace(runtime, condition=one))

    tables: dict[str, ScoreTable] = {}
    silent: set[str] = set()

    def ask(upto: int) -> Asked:
        for name, setting in others.items():
            if name not in silent:
                tables[name] = work.score(model, upto, setting=setting, condition=name)
                before, after = _margins(own, tables[name])
                if len(after) and np.array_equal(before, after):
                    silent.add(name)
        if base is None or not all(map(len, tables.values())):
            return Asked(dict(tables))
        noisy = [table for name, table in tables.items() if name not in silent]
        left, right, *moved = _margins(_first(base, upto, work.n), own, *noisy)
        noise = np.max([np.zeros(len(right)), *(np.abs(other - right) for other in moved)], axis=0)
        return Asked(dict(tables), *_larger(np.abs(right - left), noise))

    return _until_answered(ask, edges_to_ask(work, own), at_least_one=base is None)


def in_floats_of(model: Variant, own: ScoreTable, base: ScoreTable, work: Work) -> Asked | None:
    """Scores of the model's first records with its weights as they are and nothing rounded beside them.

    The question: do the weights move more, or the rounded activations? None for a model that rounds none.
    """
    named = as_float(model)
    if named is None:
        return None
    answers = []

    def ask(upto: int, one: Variant) -> Asked:
        table = work.score(one, upto)
        if not len(table):
            return Asked({named.name: table})
        left, right, between = _margins(base, own, table)
        return Asked({named.name: table}, *_larger(np.abs(between - left), np.abs(right - between)))

    kept = edges_to_ask(work, own)
    if is_kept(named, work.setting, work.scores, upto=kept[0]):
        answers = [ask(upto, named) for upto in kept if is_kept(named, work.setting, work.scores, upto=upto)]
        done = next((one for one in answers if one.answered), None)
        if done is not None or len(answers) == len(kept):
            return done or answers[-1]
    work.progress.say(f"making {named.name} for a while")
    with made_float(model, work.models) as made:
        try:
            return _until_answered(lambda upto: ask(upto, made), kept)
        finally:
            work.running.end(key_of(made, work.setting))  # before its file goes


def edges_to_ask(work: Work, own: ScoreTable) -> list[int]:
    """After how many records a question is looked at: twice as many each time, and none that the model's `own` scores
    have not.
    """
    found, here, most = [], FIRST_ASKED, min(work.floor, work.n, len(own) + len(own.failed))
    while here < most:
        found.append(here)
        here *= 2
    return [*found, most]


def _until_answered(ask: Callable[[int], Asked], looks: Sequence[int], *, at_least_one: bool = False) -> Asked:
    found = Asked({})
    for upto in looks:
        found = ask(upto)
        if found.answered or at_least_one:
            break
    return found


def _first(table: ScoreTable, upto: int, n: int) -> ScoreTable:
    """Those of the first `upto` of n records, in whole files of scores."""
    end = next(edge for edge in edges(n) if edge >= min(upto, n))
    return take(table, np.isin(table.places, order_of(n)[:end]))


def _margins(*tables: ScoreTable) -> list[npt.NDArray[np.float64]]:
    """(n,) margins of the records that all of the tables have."""
    places = reduce(np.intersect1d, [table.places for table in tables])
    return [table.margin[np.isin(table.places, places)] for table in tables]


def _larger(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[int, int]:
    """On how many records the first is larger, of how many."""
    return int((first > second).sum()), len(first)
