"""A study: a reference and its variants on one file of records, from model files to a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import find_built_in
from edgeguard.convert.built_in import merged_built_in
from edgeguard.errors import CalibrationError, OutputError, ProfileError
from edgeguard.evaluation.label_map import LabelMap
from edgeguard.evaluation.table import Bools
from edgeguard.evaluation.truth import Truth, described, find_truth, join
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Search
from edgeguard.inspection import inspect_model
from edgeguard.machine import available_cores
from edgeguard.quant import DEFAULT_VARIANTS, rounds
from edgeguard.quant.choices import Choices
from edgeguard.quant.clock import costs_of, kept_costs
from edgeguard.quant.files import not_writable
from edgeguard.quant.hardware import machine_data
from edgeguard.quant.plan import TIMED, StudyPlan, check_disk, check_limits, check_records, make_plan
from edgeguard.quant.progress import Progress, Step, Tell, silent
from edgeguard.quant.report import Measured, Report, build_report
from edgeguard.quant.rounds import Work
from edgeguard.quant.scoring import Setting, kept_records, score
from edgeguard.quant.variants import Variant, Wanted, open_variant, wanted_variants
from edgeguard.rows.readers import AS_IT_IS, Reading, count_records
from edgeguard.rows.record import Record
from edgeguard.workers import planned

__all__ = ["Step", "StudyOptions", "open_reference", "plan_of", "setting_of", "study"]

_STAGES = ("models", "scores", "noise", "activations", "clock")


@dataclass(frozen=True)
class StudyOptions:
    """What to compare, on what, and how.

    records       file to score; a ground truth is welcome and not needed
    folder        keeps the models that are made, and all scores: the same study goes on where it was stopped
    reading       how the records are read
    reference     an F32 or F16 GGUF or fp32 ONNX model, or a built-in guard's name; None: the default guard
    variants      model files, or types to make of the reference
    profile       a built-in's name, or a TOML file; None: told by the reference
    policies      the questions to ask, of a profile with one for each category; None: all
    strictness    what counts as unsafe, of a profile that leaves it open; None: its default
    workers       processes to score in; None: as `workers.plan` says for the reference
    runtime       of all models; without `threads`, those of the plan, and all cores where speed is measured;
                  `kv_cache` "f32" keeps the cache's own error out of the comparison
    search        how far to look; its `min_grammar_mass` is taken for 0: what a variant loses there is a finding
    choices       what decisions are taken on, limits, and the bootstrap
    floor         records to look for the noise floor on, and for the part that rounded activations have, at most: as
                  few as it takes; 0: neither
    measurements  of speed and memory, of all models in turn; 0: those that an earlier run left in `folder`
    anyway        score though the records are too few to decide on the limits
    texts         whether the report shows the texts of the records whose decision changed
    limit         take the first so many records only
    labels        file with the ground truth; None: the records' own, where they have one
    label_map     what its names stand for in the taxonomy
    command       how the study was asked for, for the report to say

    Raises ValueError for a `lora`, which is merged into a reference first, a `condition`, which a study chooses, and a
        `runtime`, which each model's file says.
    """

    records: Path
    folder: Path
    reading: Reading = AS_IT_IS
    reference: str | Path | None = None
    variants: Sequence[str] = DEFAULT_VARIANTS
    profile: str | None = None
    policies: tuple[str, ...] | None = None
    strictness: str | None = None
    runtime: RuntimeOptions = RuntimeOptions(kv_cache="f32")
    search: Search = Search()
    choices: Choices = field(default_factory=Choices)
    floor: int = 200
    measurements: int = 3
    anyway: bool = False
    texts: bool = False
    limit: int | None = None
    workers: int | None = None
    labels: Path | None = None
    label_map: LabelMap | None = None
    command: str = ""

    def __post_init__(self) -> None:
        taken = self.runtime
        if not (taken.lora is None and taken.condition is None and taken.runtime is None):
            raise ValueError(f"a study takes no lora and no condition, and no runtime; {taken} has one")

    @property
    def models(self) -> Path:
        """Folder of the models that are made."""
        return self.folder / "models"

    @property
    def scores(self) -> Path:
        """Folder of the scores, by the hashes of models and records."""
        return self.folder / "scores"


@dataclass(frozen=True)
class _Ready:
    """All that is known before the first score, and no input decides against.

    records  (n,) the file's, as far as `limit` says; None for one that cannot be read
    """

    options: StudyOptions
    reference: Variant
    wanted: tuple[Wanted, ...]
    setting: Setting
    truth: Truth | None
    records: tuple[Record | None, ...]

    @property
    def readable(self) -> int:
        """How many records can be scored."""
        return sum(record is not None for record in self.records)

    def work(self, looks: Sequence[int], progress: Progress) -> Work:
        """What the rounds share."""
        options = self.options
        return Work(
            setting=self.setting,
            models=options.models,
            scores=options.scores,
            choices=options.choices,
            truth=self.truth,
            same_file=options.labels is None,
            n=len(self.records),
            looks=looks,
            floor=options.floor,
            progress=progress,
        )


def study(
    options: StudyOptions, *, tell: Tell = silent, show: Callable[[StudyPlan], None] = lambda plan: None
) -> Report:
    """Score the reference and its variants as far as it takes, measure noise and cost, and compare.

    Nothing is made or scored twice in one folder, and each model runs in a process of its own. `show` gets the plan
    before the work begins, `tell` hears each step of it.

    Raises InputError, ModelError, ProfileError, CalibrationError, OutputError; whatever the inputs decide, before the
    first score.
    """
    progress = Progress(tell, _STAGES)
    ready = _ready(options, progress)
    plan = _planned(ready, progress)
    show(plan)
    work = ready.work(plan.looks, progress)
    progress.expect(plan.most, plan.seconds_each)
    progress.begin("models")
    models = [_opened(one, ready.reference, progress) for one in plan.variants]
    measured = _measured(ready.reference, models, work, options)
    return build_report(
        measured[0],
        measured[1:],
        options.choices,
        _setting_data(ready.setting, options, measured[0]),
        machine=machine_data(ready.setting, _for_the_clock(ready.setting, options), [ready.reference, *models]),
        plan=plan.data(),
        texts=_texts(ready.records) if options.texts else None,
    )


def plan_of(options: StudyOptions, *, tell: Tell = silent) -> StudyPlan:
    """What `study` would do; the reference is made and scores its first ten records for it. Raises as `study` does."""
    progress = Progress(tell, ())
    return _planned(_ready(options, progress), progress)


def _ready(options: StudyOptions, progress: Progress) -> _Ready:
    """Everything that is asked of the inputs. Raises what they decide."""
    options.reading.check(options.records)
    _make_folders(options)
    reference = open_reference(options)
    wanted = wanted_variants(reference, options.variants, options.models)
    _check_calibrations(options.choices, reference)
    setting = setting_of(reference, options)
    truth = _truth(setting, options, progress)
    read = options.reading.records(options.records, limit=options.limit)
    records = tuple(record if isinstance(record, Record) else None for record in read)
    ready = _Ready(options, reference, tuple(wanted), setting, truth, records)
    check_records(ready.readable, len(records))
    unsafe = _unsafe(ready)
    if unsafe is not None and (unsafe.all() or not unsafe.any()):
        kind = "unsafe" if unsafe.all() else "safe"
        progress.say(f"all {len(unsafe)} records are {kind}: AUROC, AUPRC and the Brier loss's parts cannot be told")
    if not options.anyway:
        check_limits(ready.readable, unsafe, options.choices)
    given = [open_variant(one.path) for one in wanted if not one.made]
    rounds.refuse_strangers(reference, given, ready.work((), progress))
    return ready


def _unsafe(ready: _Ready) -> Bools | None:
    """(n,) whether a record that can be read is unsafe; None without labels. Raises InputError."""
    if ready.truth is None:
        return None
    places = [place for place, record in enumerate(ready.records) if record is not None]
    ids = [record.id for record in ready.records if record is not None]
    same_file = ready.options.labels is None
    return join(ready.truth, ids, places, len(ready.records), same_file=same_file)[:, 0]


def _planned(ready: _Ready, progress: Progress) -> StudyPlan:
    """The plan, with the time of the reference's first records. Raises OutputError where the disk is too full."""
    options, n = ready.options, len(ready.records)

    def plan(seconds_each: float | None) -> StudyPlan:
        return make_plan(
            ready.reference,
            ready.wanted,
            options.choices,
            readable=ready.readable,
            unreadable=n - ready.readable,
            floor=options.floor,
            measurements=options.measurements,
            kept=_kept(ready),
            folder=options.folder,
            seconds_each=seconds_each,
        )

    check_disk(plan(None), options.folder)
    heard = progress.counting(f"scoring {ready.reference.name}, for an estimate of the time")
    return plan(score(ready.reference, ready.setting, options.scores, upto=min(n, TIMED), tell=heard).seconds)


def _kept(ready: _Ready) -> dict[str, int]:
    """Of each model that is there, how many records are scored already."""
    there = [ready.reference, *(one.open(ready.reference) for one in ready.wanted if one.is_there)]
    return {one.name: kept_records(one, ready.setting, ready.options.scores) for one in there}


def _opened(one: Wanted, reference: Variant, progress: Progress) -> Variant:
    if not one.is_there:
        progress.say(f"making {one.name}")
    return one.open(reference)


def _texts(records: Sequence[Record | None]) -> dict[int, list[dict[str, str]]]:
    """Place → the turns of a record."""
    return {
        place: [{"role": one.role, "content": one.content} for one in record.messages]
        for place, record in enumerate(records)
        if record is not None
    }


def _truth(setting: Setting, options: StudyOptions, progress: Progress) -> Truth | None:
    codes = (category.code for category in setting.guard_profile().asked)
    truth = find_truth(
        options.records,
        ("unsafe", *codes),
        file=options.labels,
        label_map=options.label_map,
        reading=options.reading,
        limit=options.limit,
    )
    for line in described(truth) if truth is not None else ():
        progress.say(line)
    return truth


def open_reference(options: StudyOptions) -> Variant:
    """The model to compare with; a built-in guard merged to F32, which the cache folder keeps and `models` links to.

    Raises ModelError, OutputError.
    """
    built = find_built_in(options.reference)
    if built is None:
        assert options.reference is not None
        return open_variant(Path(options.reference))
    name = f"{built.stem}.F32"
    link = options.models / f"{name}.gguf"
    try:
        path = merged_built_in(built)
    except OutputError:  # the cache takes no file
        return open_variant(merged_built_in(built, link), name=name)
    if not link.exists():
        with suppress(OSError):  # a system without links: the cache has it all the same
            link.unlink(missing_ok=True)
            os.symlink(path, link)
    return open_variant(path, name=name)


def setting_of(reference: Variant, options: StudyOptions) -> Setting:
    """What all models are scored with. Raises ProfileError where neither options nor reference tell the profile."""
    count = count_records(options.records, format=options.reading.format, encoding=options.reading.encoding)
    known = count if options.limit is None else min(options.limit, count or options.limit)
    spread = planned(reference.path, options.runtime, workers=options.workers, records=known)
    return Setting(
        records=options.records,
        reading=options.reading,
        profile=options.profile or _profile_of(reference),
        runtime=replace(options.runtime, threads=spread.threads or available_cores()),
        workers=spread.workers,
        search=replace(options.search, min_grammar_mass=0),
        limit=options.limit,
        policies=options.policies,
        strictness=options.strictness,
    )


def _profile_of(model: Variant) -> str:
    name = inspect_model(model.path).profile
    if name is None:
        raise ProfileError(
            f"{model.path} does not say for certain which guard it is; give a `profile`", kind="profile_not_told"
        )
    return name


def _make_folders(options: StudyOptions) -> None:
    try:
        for folder in (options.models, options.scores):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(options.folder, error) from None


def _check_calibrations(choices: Choices, reference: Variant) -> None:
    for calibration in choices.calibrations.values():
        if calibration.model_sha256 != reference.sha256:
            raise CalibrationError(
                f"{calibration.source or 'the calibration'} was fitted on model {calibration.model_sha256}, "
                f"the reference is {reference.sha256}; fit one on the reference: edgeguard calibrate"
            )


def _measured(reference: Variant, models: Sequence[Variant], work: Work, options: StudyOptions) -> list[Measured]:
    """All that is measured of each model, the reference first."""
    progress = work.progress
    progress.begin("scores")
    base, tables, looks = rounds.score_all(reference, models, work)
    noise: dict[str, rounds.Asked] = {}
    floats: dict[str, rounds.Asked | None] = {}
    if options.floor:
        progress.begin("noise")
        noise[reference.name] = rounds.noise_of(reference, base, None, work)
        for one in models:
            noise[one.name] = rounds.noise_of(one, tables[one.name], base, work)
        progress.begin("activations")
        for one in models:
            floats[one.name] = rounds.in_floats_of(one, tables[one.name], base, work)
    progress.begin("clock")
    timed = _for_the_clock(work.setting, options)
    costs = kept_costs([reference, *models], timed, options.folder)
    if options.measurements:
        costs = costs_of([reference, *models], timed, options.measurements, options.folder, progress)
    elif not costs[0]:
        progress.say("no speed or memory: none was asked for, and no earlier run has left any")
    return [
        Measured(
            one,
            tables.get(one.name, base),
            noise.get(one.name),
            cost,
            floats.get(one.name),
            tuple(looks.get(one.name, ())),
            work.n,
        )
        for one, cost in zip([reference, *models], costs, strict=True)
    ]


def _for_the_clock(setting: Setting, options: StudyOptions) -> Setting:
    """What speed and memory are measured with: one process that has the machine."""
    runtime = replace(setting.runtime, threads=options.runtime.threads or available_cores())
    return replace(setting, runtime=runtime, workers=1)


def _setting_data(setting: Setting, options: StudyOptions, reference: Measured) -> Mapping[str, Any]:
    """What the report says of how it was made; no path of this machine but the records' name."""
    from edgeguard.version import __version__

    return {
        "edgeguard": __version__,
        "command": options.command,
        "records": setting.records.name,
        "records_sha256": sha256(setting.records),
        "profile": setting.guard_profile().name,
        "threads": setting.runtime.threads,
        "threads_for_speed": _for_the_clock(setting, options).runtime.threads,
        "tolerance": setting.search.tolerance,
        "max_nodes": setting.search.max_nodes,
        "kv_cache": setting.runtime.kv_cache,
        "first": setting.limit,
        "order": "shuffled",
        "seed": options.choices.seed,
        "floor_records": options.floor,
        "measurements": len(reference.costs),
    }
