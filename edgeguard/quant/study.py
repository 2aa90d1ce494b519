"""A study: a reference and its variants on one file of records, from model files to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import conditions
from edgeguard.builtin import find_built_in
from edgeguard.convert.built_in import merged_built_in
from edgeguard.errors import CalibrationError, ModelError, ProfileError
from edgeguard.evaluation.label_map import LabelMap
from edgeguard.evaluation.table import ScoreTable
from edgeguard.evaluation.truth import Truth, described, find_truth, with_truth
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Search
from edgeguard.inspection import inspect_model
from edgeguard.machine import available_cores
from edgeguard.quant import DEFAULT_VARIANTS
from edgeguard.quant.choices import Choices
from edgeguard.quant.files import not_writable
from edgeguard.quant.report import Measured, Report, build_report
from edgeguard.quant.scoring import Cost, Scored, Setting, is_kept, measure, score
from edgeguard.quant.variants import Variant, as_float, made_float, make_variants, open_variant
from edgeguard.rows.readers import AS_IT_IS, Reading, count_records
from edgeguard.workers import planned

FOR_THE_CLOCK = 32  # records that speed and memory are measured on

Tell = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


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
    floor         records to measure the noise floor on, and the part that rounded activations have; 0: neither
    measurements  of speed and memory, of all models in turn; 0: none
    limit         score the first so many records only
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


def study(options: StudyOptions, *, tell: Tell = silent) -> Report:
    """Make the variants, score them all, measure noise and cost, and compare with the reference.

    Nothing is made or scored twice in one folder, and each model runs in a process of its own. `tell` hears what is
    done, and how many of how many; 0 of 0 where nothing is counted.

    Raises InputError, ModelError, ProfileError, CalibrationError, OutputError.
    """
    options.reading.check(options.records)  # what is wrong with the file is said before models are made
    _make_folders(options)
    reference = open_reference(options)
    _check_calibrations(options.choices, reference)
    setting = setting_of(reference, options)
    truth = _truth(setting, options, tell)
    made = make_variants(reference, options.variants, options.models, tell=lambda line: tell(line, 0, 0))
    measured = [_with_truth(one, truth, options) for one in _measured([reference, *made], setting, options, tell)]
    return build_report(measured[0], measured[1:], options.choices, _setting_data(setting, options))


def _truth(setting: Setting, options: StudyOptions, tell: Tell) -> Truth | None:
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
        tell(line, 0, 0)
    return truth


def _with_truth(one: Measured, truth: Truth | None, options: StudyOptions) -> Measured:
    if truth is None:
        return one
    return replace(one, table=with_truth(one.table, truth, same_file=options.labels is None))


def open_reference(options: StudyOptions) -> Variant:
    """The model to compare with; a built-in guard is merged to F32 and kept. Raises ModelError, OutputError."""
    built = find_built_in(options.reference)
    if built is None:
        assert options.reference is not None
        return open_variant(Path(options.reference))
    return open_variant(merged_built_in(built, options.models / f"{built.name}.F32.gguf"))


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


def _measured(models: Sequence[Variant], setting: Setting, options: StudyOptions, tell: Tell) -> list[Measured]:
    """All that is measured of each model, the reference first."""
    scored = [score(model, setting, options.scores, tell=_scoring(model, tell)) for model in models]
    _refuse_strangers(models, scored)
    floors = [_floors(model, setting, options, tell) for model in models]
    in_floats = [None, *(_in_floats(model, setting, options, tell) for model in models[1:])]
    costs = _costs(models, _for_the_clock(setting, options), options.measurements, tell)
    return [
        Measured(model, one.table, floor, cost, between)
        for model, one, floor, cost, between in zip(models, scored, floors, costs, in_floats, strict=True)
    ]


def _scoring(model: Variant, tell: Tell, condition: str = "") -> Callable[[int, int], None]:
    return partial(tell, f"scoring {model.name}" + (f", other {condition}" if condition else ""))


def _refuse_strangers(models: Sequence[Variant], scored: Sequence[Scored]) -> None:
    """A model with another vocabulary is no variant of the reference. Raises ModelError."""
    for model, found in zip(models[1:], scored[1:], strict=True):
        if found.vocabulary != scored[0].vocabulary:
            raise ModelError(
                f"{model.path} is no variant of {models[0].path}: its vocabulary has {found.n_vocab} tokens and the "
                f"hash {found.vocabulary[:16]}, the reference's {scored[0].n_vocab} and {scored[0].vocabulary[:16]}"
            )


# Noise: the same model and records, computed in another way


def _floors(model: Variant, setting: Setting, options: StudyOptions, tell: Tell) -> dict[str, ScoreTable]:
    """Condition → the scores of the model's first records under it."""
    if not options.floor:
        return {}
    short, runtime = _first(setting, options.floor), setting.runtime
    threads = 2 if runtime.threads == 1 else 1
    fewer = max(1, setting.workers // threads)  # processes, where each has more threads
    others = {"threads": replace(short, runtime=replace(runtime, threads=threads), workers=fewer)}
    for name, one in conditions(model.path).items():
        others[name] = replace(short, runtime=replace(runtime, condition=one))
    return {
        name: score(model, other, options.scores, tell=_scoring(model, tell, name)).table
        for name, other in others.items()
    }


def _in_floats(model: Variant, setting: Setting, options: StudyOptions, tell: Tell) -> ScoreTable | None:
    """Scores of the model's first records with its weights as they are and nothing rounded beside them."""
    named = as_float(model) if options.floor else None
    if named is None:
        return None
    short, heard = _first(setting, options.floor), _scoring(named, tell)
    if is_kept(named, short, options.scores):
        return score(named, short, options.scores, tell=heard).table
    with made_float(model, options.models) as made:
        return score(made, short, options.scores, tell=heard).table


def _costs(models: Sequence[Variant], setting: Setting, measurements: int, tell: Tell) -> list[list[Cost]]:
    """For each model its measurements: all models in turn, so that a noisy minute hits all of them."""
    costs: list[list[Cost]] = [[] for _ in models]
    for n in range(measurements):
        for i, model in enumerate(models):
            tell(f"measuring {model.name}", n, measurements)
            costs[i].append(measure(model, setting))
            tell(f"measuring {model.name}", n + 1, measurements)
    return costs


def _for_the_clock(setting: Setting, options: StudyOptions) -> Setting:
    """What speed and memory are measured with: one process that has the machine."""
    runtime = replace(setting.runtime, threads=options.runtime.threads or available_cores())
    return replace(_first(setting, FOR_THE_CLOCK), runtime=runtime, workers=1)


def _first(setting: Setting, n: int) -> Setting:
    return replace(setting, limit=min(n, setting.limit or n))


def _setting_data(setting: Setting, options: StudyOptions) -> Mapping[str, Any]:
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
        "floor_records": options.floor,
        "measurements": options.measurements,
    }
