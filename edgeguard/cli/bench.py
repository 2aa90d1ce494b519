"""`edgeguard bench quant`: what quantization does to a guard's scores."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import (
    read_thresholds,
    record_options,
    refuse_read,
    reported_errors,
    split_names,
    take_reading,
    workers_option,
)
from edgeguard.cli.say import say
from edgeguard.cli.tables import truth_options
from edgeguard.errors import printable
from edgeguard.quant import DEFAULT_VARIANTS

if TYPE_CHECKING:
    from edgeguard.backend import KvCache
    from edgeguard.quant.plan import StudyPlan
    from edgeguard.quant.progress import Step, Tell

NONE_KEEPS, TOO_FEW = 4, 5  # exit codes


@click.group(
    epilog="""\b
Examples:
  edgeguard bench quant labelled.jsonl --out study --max-flip-rate 0.02
  edgeguard bench compare before/report.json after/report.json"""
)
def bench() -> None:
    """Measure what a guard's scores are worth on your machine."""


@bench.command(
    epilog="""\b
Examples:
  edgeguard bench quant labelled.jsonl --out study
  edgeguard bench quant texts.jsonl -r guard.F16.gguf -p llama-guard-3 -v q8_0,q4_k_m,onnx-int4 --out study
  edgeguard bench quant texts.jsonl -r guard.F16.gguf -v guard.Q5_K_M.gguf --out study --max-flip-rate 0.02
  edgeguard bench quant labelled.jsonl --out study --max-flip-rate 0.02 --plan"""
)
@click.argument("records", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder for the report and what is kept"
)
@click.option(
    "--reference", "-r", help="F32 or F16 GGUF, or fp32 ONNX model, or a hub's [default: edgeguard-135m, merged to F32]"
)
@click.option(
    "--variants",
    "-v",
    multiple=True,
    metavar="TYPE|FILE,…",
    help=f"Model files, or types to make of the reference and keep [default: {','.join(DEFAULT_VARIANTS)}]",
)
@click.option("--profile", "-p", help="Name from `edgeguard profiles`, or a TOML file [default: told by the reference]")
@click.option("--policies", metavar="CODE,…", help="As of `score`")
@click.option("--strictness", metavar="NAME", help="As of `score`")
@click.option(
    "--calibration",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The reference's own, one for an estimator: decisions are taken on what it gives",
)
@click.option(
    "--threshold", multiple=True, metavar="P|LABEL=P|FILE", help="As of `score` [default: the calibration's, else 0.5]"
)
@click.option("--max-flip-rate", type=click.FloatRange(0, 1), help="Limit: share of verdicts that may change")
@click.option("--max-auprc-loss", type=click.FloatRange(0, 1), help="Limit: AUPRC that the verdict may lose")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done, and how long it takes; then stop")
@click.option("--anyway", is_flag=True, help="Go on though there are too few records to decide on the limits")
@click.option("--all-records", is_flag=True, help="Score all records with every variant, decided or not")
@click.option("--texts", is_flag=True, help="Show the texts of the records whose decision changed")
@click.option(
    "--floor",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Records at most for the noise floor, and for the part that rounded activations have",
)
@click.option(
    "--measurements",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Of speed and memory, in turn; 0: what an earlier run in --out has measured",
)
@record_options
@click.option("--limit", "-n", type=click.IntRange(min=1), help="Score the first N records only")
@workers_option
@click.option(
    "--threads",
    "-t",
    type=click.IntRange(min=1),
    help="CPU threads of a process [default: all cores; 1 where --workers says or chooses the processes]",
)
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
    variants: tuple[str, ...],
    policies: str | None,
    calibration: tuple[Path, ...],
    threshold: tuple[str, ...],
    max_flip_rate: float | None,
    max_auprc_loss: float | None,
    only_plan: bool,
    all_records: bool,
    threads: int | None,
    context: int | None,
    tolerance: float,
    max_nodes: int,
    kv_cache: KvCache,
    labels_map: Path | None,
    draws: int,
    seed: int,
    **others: Any,
) -> None:
    """Compare quantized models with a full precision reference, decision by decision, on RECORDS.

    Writes report.json, report.html (one page, no network) and a folder of repairs: calibration files that bring a
    variant's scores back to the reference's, fitted without labels. With `labels` in the records it also says what
    quantization did to ranking and calibration. Scores are kept in --out, keyed by the hashes of models and records:
    run the same command again after an interruption, or with more variants, and nothing is scored twice.

    With limits, each variant keeps inside, does not, or there are too few records to say. It is scored, in a shuffled
    order and the smallest file first, until that is certain. What the records cannot decide is said before the first
    score.

    Exit code 4: no variant keeps inside the limits. 5: too few records to say whether one does.
    """
    read = {"records": records, "variant": variants, "calibration": calibration, "labels-map": labels_map, **others}
    refuse_read([out / "report.json", out / "report.html", *(out / "repair").glob("*.json")], read)
    reading = take_reading(others)
    with reported_errors():
        from edgeguard.backend import RuntimeOptions
        from edgeguard.calibration.files import read_calibration
        from edgeguard.cli.screen.quant import print_quant
        from edgeguard.evaluation.label_map import read_label_map
        from edgeguard.guard import Search
        from edgeguard.hub import resolved
        from edgeguard.quant.choices import Choices, by_estimator
        from edgeguard.quant.files import write_report
        from edgeguard.quant.reading import plan_lines
        from edgeguard.quant.study import StudyOptions, plan_of, study

        choices = Choices(
            calibrations=by_estimator(map(read_calibration, calibration)),
            thresholds=read_thresholds(threshold),
            max_flip_rate=max_flip_rate,
            max_auprc_loss=max_auprc_loss,
            watch=not all_records,
            draws=draws,
            seed=seed,
        )
        others["reference"] = resolved(others["reference"])
        options = StudyOptions(
            records=records,
            folder=out,
            reading=reading,
            variants=[str(resolved(name)) for name in split_names(*variants)] or DEFAULT_VARIANTS,
            policies=None if policies is None else tuple(split_names(policies)),
            runtime=RuntimeOptions(context=context, threads=threads, kv_cache=kv_cache),
            search=Search(tolerance, max_nodes),
            choices=choices,
            label_map=None if labels_map is None else read_label_map(labels_map),
            command=_command(),
            **others,
        )
        with _too_few_to_begin():
            if only_plan:
                for line in plan_lines(plan_of(options, tell=_teller()).data()):
                    click.echo(printable(line))
                return
            report = study(options, tell=_teller(), show=_show)
        write_report(report, out)
        print_quant(report.data)
        say(f"wrote {out / 'report.json'}, {out / 'report.html'} and {out / 'repair'}")
    code = {"breaks": NONE_KEEPS, "too_few": TOO_FEW}.get(report.data["recommendation"]["verdict"])
    if code is not None:
        say(f"edgeguard: {printable(report.data['recommendation']['why'])}")
        sys.exit(code)


@contextmanager
def _too_few_to_begin() -> Iterator[None]:
    """Records that cannot decide have an exit code of their own, before a study and after it."""
    from edgeguard.cli.advice import advised
    from edgeguard.errors import InputError

    try:
        yield
    except InputError as error:
        if error.kind != "too_few_records":
            raise
        say(f"edgeguard: {printable(advised(error))}")
        sys.exit(TOO_FEW)


@bench.command(epilog="Example: edgeguard bench compare before/report.json after/report.json")
@click.argument("first", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("second", metavar="B.json", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As one JSON object")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Two studies side by side, as of two versions of a runtime or two machines: what is not the same.

    A.json and B.json are reports of `bench quant`. A change is marked where it is beyond chance: rates whose intervals
    do not meet, drift beyond both noise floors, speeds whose measurements do not overlap.
    """
    with reported_errors():
        from edgeguard.cli.screen.quant import print_comparison
        from edgeguard.quant.compare import compare as side_by_side
        from edgeguard.quant.compare import read_report

        found = side_by_side(read_report(first), read_report(second))
        if as_json:
            import json

            click.echo(json.dumps(found))
        else:
            print_comparison(found)


def _command() -> str:
    """What was typed; inside another program, what would be."""
    arguments = sys.argv[1:] if sys.argv[1:2] == ["bench"] else ["bench", "quant", "…"]
    return shlex.join(["edgeguard", *arguments])


def _show(plan: StudyPlan) -> None:
    from edgeguard.quant.reading import plan_lines

    for line in plan_lines(plan.data()):
        say(f"edgeguard: {printable(line)}")


def _teller() -> Tell:
    """A line on a terminal that is written over; elsewhere a line for every tenth."""
    shown: dict[str, int] = {}
    width = [0]  # of what stands on the terminal's line

    def tell(step: Step) -> None:
        tenth = 10 * step.done // max(1, step.total)
        line = f"edgeguard: {printable(step.what)}" + (f": {step.done} of {step.total}" if step.total else "")
        if step.total and sys.stderr.isatty():
            line = f"{line}{_where(step)}"[: shutil.get_terminal_size().columns - 1]
            say(f"\r{line:<{width[0]}}", nl=step.done == step.total)
            width[0] = 0 if step.done == step.total else len(line)
        elif not step.total or tenth > shown.get(step.what, 0):
            shown[step.what] = tenth
            say(line)

    return tell


def _where(step: Step) -> str:
    """`, stage 2 of 5, at most 3 min left`."""
    from edgeguard.quant.reading import duration

    stage = f", stage {step.stage} of {step.stages}" if step.stage else ""
    return stage + ("" if step.left is None else f", at most {duration(step.left)} left")
