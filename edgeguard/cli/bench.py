"""`edgeguard bench quant`: what quantization does to a guard's scores."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard import __version__
from edgeguard.cli.options import read_thresholds, reported_errors
from edgeguard.cli.tables import check_join, find_truth, truth_options
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.calibration.maps import Calibration
    from edgeguard.evaluation.table import ScoreTable
    from edgeguard.evaluation.truth import Truth
    from edgeguard.quant.choices import Choices
    from edgeguard.quant.report import Measured
    from edgeguard.quant.scoring import Scored, Setting
    from edgeguard.quant.variants import Variant

DEFAULT_VARIANTS = "q8_0,q5_1,q5_0,q4_1,q4_0,iq4_nl,onnx-int8,onnx-int4"


@click.group(epilog="Example: edgeguard bench quant labelled.jsonl --out study")
def bench() -> None:
    """Measure what a guard's scores are worth on your machine."""


@bench.command(
    epilog="""\b
Examples:
  edgeguard bench quant labelled.jsonl --out study
  edgeguard bench quant texts.jsonl -r guard.F16.gguf -p llama-guard-3 -v q8_0,q4_k_m,onnx-int4 --out study
  edgeguard bench quant texts.jsonl -r guard.F16.gguf -v guard.Q5_K_M.gguf --out study --max-flip-rate 0.02"""
)
@click.argument("records", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder for the report and what is kept"
)
@click.option("--reference", "-r", help="F32 or F16 GGUF, or fp32 ONNX model [default: edgeguard-135m, merged to F32]")
@click.option(
    "--variants",
    "-v",
    multiple=True,
    metavar="TYPE|FILE,…",
    help=f"Model files, or types to make of the reference and keep [default: {DEFAULT_VARIANTS}]",
)
@click.option("--profile", "-p", help="Name from `edgeguard profiles`, or a TOML file [default: told by the reference]")
@click.option(
    "--calibration",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The reference's own, one for an estimator: decisions are taken on what it gives",
)
@click.option(
    "--threshold", multiple=True, metavar="P|LABEL=P|FILE", help="As of `score` [default: the calibration's, else 0.5]"
)
@click.option("--max-flip-rate", type=click.FloatRange(0, 1), help="Of verdicts, for the recommendation")
@click.option("--max-auprc-loss", type=click.FloatRange(0, 1), help="Of the verdict, for the recommendation")
@click.option(
    "--floor",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Records to measure the noise floor on, and the part that rounded activations have",
)
@click.option(
    "--measurements", type=click.IntRange(min=0), default=3, show_default=True, help="Of speed and memory, in turn"
)
@click.option("--limit", "-n", type=click.IntRange(min=1), help="Score the first N records only")
@click.option("--threads", "-t", type=click.IntRange(min=1), help="CPU threads [default: all cores]")
@click.option("--context", type=click.IntRange(min=64), help="Context in tokens [default: the model's, up to 8192]")
@click.option("--tolerance", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="As of `score`")
@click.option("--max-nodes", type=click.IntRange(min=1), default=64, show_default=True, help="As of `score`")
@click.option(
    "--kv-cache",
    type=click.Choice(["f16", "f32"]),
    default="f32",
    show_default=True,
    help="GGUF: of all models; f32 keeps the cache's own error out of the comparison",
)
@truth_options
@click.option("--draws", type=click.IntRange(0, 100_000), default=500, show_default=True, help="Of the bootstrap")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap and the split")
def quant(
    records: Path,
    out: Path,
    reference: str | None,
    variants: tuple[str, ...],
    profile: str | None,
    calibration: tuple[Path, ...],
    threshold: tuple[str, ...],
    max_flip_rate: float | None,
    max_auprc_loss: float | None,
    floor: int,
    measurements: int,
    limit: int | None,
    threads: int | None,
    context: int | None,
    tolerance: float,
    max_nodes: int,
    kv_cache: str,
    labels: Path | None,
    labels_map: Path | None,
    draws: int,
    seed: int,
) -> None:
    """Compare quantized models with a full precision reference, decision by decision, on RECORDS.

    Writes report.json, report.html (one page, no network) and a folder of repairs: calibration files that bring a
    variant's scores back to the reference's, fitted without labels. With `labels` in the records it also says what
    quantization did to ranking and calibration. Scores are kept in --out, keyed by the hashes of models and records:
    run the same command again after an interruption, or with more variants, and nothing is scored twice.

    Exit code 4: no variant keeps inside --max-flip-rate and --max-auprc-loss.
    """
    numbers = read_thresholds(threshold)
    with reported_errors():
        import json

        from edgeguard.backend import available_cores
        from edgeguard.evaluation.truth import with_truth
        from edgeguard.profile import load_profile
        from edgeguard.quant.choices import Choices
        from edgeguard.quant.report import Measured, build_report
        from edgeguard.quant.scoring import Setting
        from edgeguard.quant.variants import make_variants
        from edgeguard.rows.readers import count_records

        count_records(records)  # a file that is not there is said before models are made
        _writable(out)
        base = _reference(reference, out)
        calibrations = _calibrations(calibration, base.sha256)
        setting = Setting(
            records=records,
            profile=profile or _profile_of(base),
            threads=threads or available_cores(),
            n_ctx=context,
            tolerance=tolerance,
            max_nodes=max_nodes,
            kv_type=kv_cache,
            first=limit,
        )
        wanted = [name.strip() for text in variants or (DEFAULT_VARIANTS,) for name in text.split(",") if name.strip()]
        truth = _truth(records, setting, labels, labels_map)
        models = [base, *make_variants(base, wanted, out / "models", tell=_say)]
        scored = [_score(model, setting, out / "scores") for model in models]
        _same_model(models, scored)
        floors = [_floors(model, setting, floor, out / "scores") for model in models]
        in_floats = [None, *(_in_floats(model, setting, floor, out) for model in models[1:])]
        costs = _costs(models, setting, measurements)

        def labelled(table: ScoreTable) -> ScoreTable:
            return table if truth is None else with_truth(table, truth, same_file=labels is None)

        measured = [
            Measured(model, labelled(one.table), floor_of_it, cost, between)
            for model, one, floor_of_it, cost, between in zip(models, scored, floors, costs, in_floats, strict=True)
        ]
        choices = Choices(calibrations, numbers, max_flip_rate, max_auprc_loss, draws, seed)
        report = build_report(measured[0], measured[1:], choices, _said(setting, records, measurements, floor))
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        _write_repairs(measured, choices, load_profile(setting.profile).name, out / "repair")
        _write_page(report, out / "report.html")
        from edgeguard.cli.screen.quant import print_quant

        print_quant(report)
        click.echo(f"wrote {out / 'report.json'}, {out / 'report.html'} and {out / 'repair'}", err=True)
    limited = max_flip_rate is not None or max_auprc_loss is not None
    if limited and report["recommendation"]["ship"] is None:
        click.echo("edgeguard: no variant keeps inside the limits", err=True)
        sys.exit(4)


def _truth(records: Path, setting: Setting, labels: Path | None, labels_map: Path | None) -> Truth | None:
    """The records' truth, if they have any; a mistake in it is said before models are made."""
    from edgeguard.profile import load_profile

    codes = (category.code for category in load_profile(setting.profile).categories)
    truth = find_truth(labels or records, ("unsafe", *codes), labels_map)
    if truth is not None:
        check_join(truth, records, same_file=labels is None, limit=setting.first)
    return truth


def _say(line: str) -> None:
    click.echo(f"edgeguard: {printable(line)}", err=True)


def _writable(out: Path) -> None:
    from edgeguard.errors import OutputError

    try:
        (out / "scores").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}; name another --out") from None


def _reference(given: str | None, out: Path) -> Variant:
    """The model to compare with. A built-in guard is merged to F32 and kept."""
    from edgeguard.builtin import find_built_in
    from edgeguard.convert.built_in import merged_built_in
    from edgeguard.quant.variants import open_variant

    built = find_built_in(given)
    if built is None:
        assert given is not None
        return open_variant(Path(given))
    return open_variant(merged_built_in(built, out / "models" / f"{built.name}.F32.gguf"))


def _profile_of(model: Variant) -> str:
    from edgeguard.errors import ProfileError
    from edgeguard.formats import gguf
    from edgeguard.profile import detect_profile

    name = None
    if model.runtime == "gguf":
        header = gguf.read_header(model.path)
        name = detect_profile(
            architecture=header.architecture,
            name=str(header.metadata.get("general.name", "")),
            chat_template=gguf.chat_template(header),
        )
    if name is None:
        raise ProfileError(f"{model.path} does not say for certain which guard it is; pass --profile")
    return name


def _calibrations(paths: Sequence[Path], sha256: str) -> dict[str, Calibration]:
    from edgeguard.calibration.files import read_calibration
    from edgeguard.errors import CalibrationError

    found: dict[str, Calibration] = {}
    for path in paths:
        calibration = read_calibration(path)
        if calibration.model_sha256 != sha256:
            raise CalibrationError(
                f"{path} was fitted on model {calibration.model_sha256}, the reference is {sha256}; "
                "fit one on the reference: edgeguard calibrate"
            )
        if calibration.estimator in found:
            raise CalibrationError(f"{path} is the second calibration for {calibration.estimator}; give one")
        found[calibration.estimator] = calibration
    return found


def _score(model: Variant, setting: Setting, folder: Path) -> Scored:
    from edgeguard.quant.scoring import score

    return score(model, setting, folder, tell=_progress(f"{model.name}{_condition(setting)}"))


def _condition(setting: Setting) -> str:
    from edgeguard.backend import Condition

    return "" if setting.condition == Condition() else ", another condition"


def _progress(what: str) -> Callable[[int, int], None]:
    """A line on a terminal that is written over; elsewhere a line for every tenth."""
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(1, total)
        if sys.stderr.isatty():
            click.echo(f"\r{printable(what)}: {done} of {total} ", err=True, nl=done == total)
        elif tenth > shown:
            shown = tenth
            click.echo(f"{printable(what)}: {done} of {total}", err=True)

    return tell


def _same_model(models: Sequence[Variant], scored: Sequence[Scored]) -> None:
    """Refuse what is no variant of the reference: another vocabulary."""
    from edgeguard.errors import ModelError

    for model, found in zip(models[1:], scored[1:], strict=True):
        if found.vocabulary != scored[0].vocabulary:
            raise ModelError(
                f"{model.path} is no variant of {models[0].path}: its vocabulary has {found.n_vocab} tokens and the "
                f"hash {found.vocabulary[:16]}, the reference's {scored[0].n_vocab} and {scored[0].vocabulary[:16]}"
            )


def _floors(model: Variant, setting: Setting, n: int, folder: Path) -> dict[str, Any]:
    """Condition → the scores of the model's first records under it."""
    from dataclasses import replace

    from edgeguard.backend import Condition

    if not n:
        return {}
    conditions: dict[str, Setting] = {
        "threads": replace(setting, threads=1 if setting.threads > 1 else 2),
        "batch": replace(setting, condition=Condition(batch=16)),
    }
    if model.runtime == "gguf":
        conditions["attention"] = replace(setting, condition=Condition(attention="flash"))
        conditions["neighbours"] = replace(setting, condition=Condition(company=True))
    first = min(n, setting.first or n)
    return {name: _score(model, replace(here, first=first), folder).table for name, here in conditions.items()}


def _in_floats(model: Variant, setting: Setting, n: int, out: Path) -> ScoreTable | None:
    """Scores of the model's first records with its weights as they are and nothing rounded beside them."""
    from dataclasses import replace

    from edgeguard.quant.scoring import is_kept
    from edgeguard.quant.variants import as_float, made_float

    named = as_float(model) if n else None
    if named is None:
        return None
    short = replace(setting, first=min(n, setting.first or n))
    if is_kept(named, short, out / "scores"):
        return _score(named, short, out / "scores").table
    with made_float(model, out / "models") as made:
        return _score(made, short, out / "scores").table


def _costs(models: Sequence[Variant], setting: Setting, measurements: int) -> list[list[Any]]:
    """For each model its measurements: all models in turn, so that a noisy minute hits all of them."""
    from dataclasses import replace

    from edgeguard.quant.scoring import measure

    short = replace(setting, first=min(32, setting.first or 32))
    found: list[list[Any]] = [[] for _ in models]
    for n in range(measurements):
        for i, model in enumerate(models):
            _say(f"measuring {model.name}, {n + 1} of {measurements}")
            found[i].append(measure(model, short))
    return found


def _said(setting: Setting, records: Path, measurements: int, floor: int) -> dict[str, Any]:
    """What the report says of how it was made; no path of this machine but the file's name."""
    from edgeguard.formats.hashes import sha256

    command = ["edgeguard", *sys.argv[1:]] if sys.argv[1:2] == ["bench"] else ["edgeguard", "bench", "quant", "…"]
    return {
        "edgeguard": __version__,
        "command": shlex.join(command),
        "records": records.name,
        "records_sha256": sha256(records),
        "profile": setting.profile,
        "threads": setting.threads,
        "tolerance": setting.tolerance,
        "max_nodes": setting.max_nodes,
        "kv_cache": setting.kv_type,
        "first": setting.first,
        "floor_records": floor,
        "measurements": measurements,
    }


def _write_repairs(measured: Sequence[Measured], choices: Choices, profile: str, folder: Path) -> None:
    from dataclasses import replace

    from edgeguard.calibration.files import write_calibration
    from edgeguard.evaluation.drift import aligned
    from edgeguard.quant.repair import repair

    folder.mkdir(exist_ok=True)
    reference = measured[0]
    for one in measured[1:]:
        left, right = aligned(reference.table, one.table)
        for estimator in left.scores:
            found, calibration = repair(left, right, estimator, choices)
            named = replace(
                calibration,
                guard=one.variant.name,
                profile=profile,
                model_sha256=one.variant.sha256,
                fitted={
                    "to": reference.variant.name,
                    "reference_sha256": reference.variant.sha256,
                    "records": found["fitted_on"],
                },
            )
            write_calibration(named, folder / f"{one.variant.name}-{estimator}.json")


def _write_page(report: Any, path: Path) -> None:
    from edgeguard.errors import OutputError

    try:
        from edgeguard.quant.page import page
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise OutputError(
            "report.json is written; the page needs matplotlib, which is not installed: pip install 'edgeguard[report]'"
        ) from None
    path.write_text(page(report), encoding="utf-8")
