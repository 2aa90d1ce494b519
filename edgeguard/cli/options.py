"""Options that several commands share, and how they become a Guard."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeguard.cli.say import say, stdout_lost
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.calibration.maps import Calibration
    from edgeguard.guard import WindowSize
    from edgeguard.rows.readers import Reading
    from edgeguard.workers import Workers

F = TypeVar("F", bound=Callable[..., Any])

_MODEL_OPTION = click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    help="GGUF or ONNX file, a folder with one, a name from `edgeguard models`, as NAME[@VERSION][:FORM], or a hub's, "
    "as hf:ORG/REPO[:FILE][@REVISION] [default: edgeguard-135m]",
)
_MODELS_OPTION = click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="As `edgeguard score` takes it, and the name that clients call it by; repeatable, the first is the default "
    "[default: edgeguard-135m]",
)
_OPENING_OPTIONS = (
    click.option("--lora", type=click.Path(path_type=Path), help="GGUF: a LoRA adapter to apply, a GGUF file too"),
    click.option("--profile", "-p", help="Name from `edgeguard profiles`, or a TOML file [default: told by the model]"),
    click.option(
        "--policies",
        metavar="CODE,…",
        help="Of a profile with a question for each category: the ones to ask [default: all]",
    ),
    click.option(
        "--strictness",
        metavar="NAME",
        help="Of a profile that leaves open what counts as unsafe: strict, loose … [default: the profile's]",
    ),
    click.option(
        "--runtime",
        type=click.Choice(["llama", "onnx"]),
        help="Of a built-in guard, what to score with [default: llama where it is installed]",
    ),
    click.option("--context", type=click.IntRange(min=64), help="Context in tokens [default: the model's, up to 8192]"),
    click.option(
        "--threads",
        "-t",
        type=click.IntRange(min=1),
        help="CPU threads of a process [default: all cores; 1 where --workers says or chooses the processes]",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda", "auto"]),
        default="cpu",
        show_default=True,
        help="Where to compute; auto takes CUDA if the runtime has it",
    ),
    click.option("--gpu-layers", type=click.IntRange(min=-1), help="GGUF: layers on the GPU [default: all with cuda]"),
    click.option(
        "--batch",
        type=click.IntRange(1, 512),
        help="GGUF: tokens a call; in steps of so many a chat that grows is gone on with [default: 512]",
    ),
    click.option(
        "--kv-cache", type=click.Choice(["f16", "f32"]), help="GGUF: precision of the KV memory [default: f16]"
    ),
)
_SEARCH_OPTIONS = (
    click.option(
        "--tolerance",
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        help="Widest bound to accept",
    ),
    click.option(
        "--max-nodes",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Places of the answer tree to look into",
    ),
    click.option(
        "--min-grammar-mass",
        type=click.FloatRange(0, 1),
        help="Under it a record is an error [default: the profile's]",
    ),
    click.option(
        "--threshold",
        multiple=True,
        metavar="P|LABEL=P|FILE",
        help="0.4, or S1=0.3 (repeatable), or a TOML or JSON file [default: the calibration's, else 0.5]",
    ),
)
_CALIBRATION_OPTIONS = (
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        help="File with maps and thresholds [default: the one that a built-in guard comes with]",
    ),
    click.option("--no-calibration", is_flag=True, help="The model's own probabilities"),
    click.option("--force-calibration", is_flag=True, help="Take a calibration that was fitted on another guard"),
)
_RECORD_OPTIONS = (
    click.option("--text-field", metavar="NAME", help="Field or column that holds the text; dots reach into objects"),
    click.option("--prompt-field", metavar="NAME", help="That holds what the user says [default: prompt]"),
    click.option("--response-field", metavar="NAME", help="That holds what the assistant answers [default: response]"),
    click.option("--messages-field", metavar="NAME", help="That holds a chat [default: messages]"),
    click.option("--id-field", metavar="NAME", help="That holds the record's id [default: id]"),
    click.option(
        "--input-format",
        type=click.Choice(["jsonl", "json", "csv", "tsv", "parquet"]),
        help="Of the input [default: by content and name]",
    ),
    click.option("--encoding", metavar="NAME", help="Of the input, such as cp1252 [default: UTF-8, or by its BOM]"),
    click.option(
        "--max-ratio",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Bytes that a compressed input may hold for each of its own",
    ),
    click.option("--strict", is_flag=True, help="What guards do not judge (system turns, images) is an error"),
)


def _all(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    return lambda command: reduce(lambda f, option: option(f), reversed(options), command)


model_options = _all((_MODEL_OPTION, *_OPENING_OPTIONS))
models_options = _all((_MODELS_OPTION, *_OPENING_OPTIONS))  # several by name, opened by the same options
workers_option = click.option(
    "--workers",
    "-w",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Processes, of one thread each unless --threads says more [default: by cores, model, records and memory]",
)
together_option = click.option(
    "--together",
    type=click.IntRange(2, 128),
    metavar="N",
    help="N records of the input in one batch: for a GPU. Scores then differ in their last digits from those of each "
    "record alone, which is the default",
)
search_options = _all(_SEARCH_OPTIONS)
calibration_options = _all(_CALIBRATION_OPTIONS)
record_options = _all(_RECORD_OPTIONS)


def take_reading(options: dict[str, Any]) -> Reading:
    """How records are to be read, taken out of a command's options."""
    from edgeguard.rows.readers import Reading
    from edgeguard.rows.shapes import Fields
    from edgeguard.rows.streams import check_encoding

    names = {kind: options.pop(f"{kind}_field") for kind in ("text", "prompt", "response", "messages", "id")}
    format_, encoding, strict, ratio = (
        options.pop(name) for name in ("input_format", "encoding", "strict", "max_ratio")
    )
    try:
        check_encoding(encoding or "utf-8")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--encoding") from None
    try:
        return Reading(format_, Fields(**names), encoding, strict, ratio)
    except ValueError:
        raise click.UsageError("--text-field, --messages-field and --prompt-field exclude one another") from None


def begin_guard() -> None:
    """Have a process for a guard start, before this one imports what it needs itself: they do it side by side."""
    from edgeguard.pool import begin

    begin("edgeguard.workers")


def files_of(options: Mapping[str, Any]) -> list[tuple[str, str | Path]]:
    """(option, path) of every value that names something on the disk: files that a command reads."""
    found = [
        (name, one) for name, value in options.items() for one in (value if isinstance(value, tuple) else (value,))
    ]
    return [(f"the {name}", one) for name, one in found if isinstance(one, str | Path) and _is_there(one)]


def refuse_read(outputs: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Misuse, where a command would write over a file that it reads, as any of its options or arguments says."""
    from edgeguard.errors import OutputError
    from edgeguard.files import check_not_read

    try:
        check_not_read(outputs, [*files_of(options), *_built_in_files()])
    except OutputError as error:
        raise click.UsageError(str(error)) from None


def _built_in_files() -> list[tuple[str, Path]]:
    """Folders whose files edgeguard reads unasked: of the built-in guards, and of the profiles."""
    from importlib.resources import files

    from edgeguard.builtin import built_in_guards, find_base

    guards = built_in_guards()
    bases = (find_base(guard) for guard in guards)
    folders = [path for guard in guards for path in (guard.folder, *map(guard.form_folder, guard.forms))]
    own = [*folders, *(base.path for base in bases if base is not None), Path(str(files("edgeguard") / "profiles"))]
    return [("a file of edgeguard's own", path) for path in own]


def _is_there(path: str | Path) -> bool:
    try:
        return str(path) == "-" or Path(path).exists()
    except (OSError, ValueError):
        return False


def waiting(what: str) -> contextlib.AbstractContextManager[Any]:
    """Say on a terminal what is waited for; a pipe and a log hear nothing."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from edgeguard.cli.screen.progress import spinner

    return spinner(what)


def _loading(model: Path | None) -> contextlib.AbstractContextManager[Any]:
    return waiting(f"loading {'the default guard' if model is None else printable(str(model))}")


def load_guard(**options: Any) -> Workers:
    """The guard that the options ask for, in one process that is not this one: native code may end it."""
    begin_guard()
    with _loading(options["model"]):
        from edgeguard.workers import isolated

        return isolated(**load_arguments(**options))


def open_guard(*, workers: int | None, records: int | None, **options: Any) -> Workers:
    """The guard that the options ask for, in as many processes as they or the machine say, for so many records."""
    begin_guard()
    with _loading(options["model"]):
        from edgeguard.workers import Workers, open_guard

        opened = open_guard(workers=workers, records=records, isolated=True, **load_arguments(**options))
        assert isinstance(opened, Workers)
        return opened


def load_arguments(
    *,
    model: Path | None,
    profile: str | None,
    policies: str | None = None,
    strictness: str | None = None,
    threshold: tuple[str, ...] = (),
    estimator: str = "marginal",
    window: WindowSize | None = None,
    calibration: Path | None = None,
    no_calibration: bool = False,
    force_calibration: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """What `Guard.load` takes. `options`: those of RuntimeOptions and of Search, by their names."""
    from edgeguard.backend import RuntimeOptions
    from edgeguard.calibration.files import read_calibration
    from edgeguard.guard import Search

    if no_calibration and (calibration or force_calibration):
        raise click.UsageError("--no-calibration excludes --calibration and --force-calibration")
    if force_calibration and calibration is None:
        raise click.UsageError("--force-calibration needs a --calibration")
    taken: Path | Calibration | bool = calibration or not no_calibration
    if calibration and force_calibration:
        taken = read_calibration(calibration).unbound()
    runtime = {field.name: options.pop(field.name) for field in fields(RuntimeOptions) if field.name in options}
    return {
        "model": model,
        "profile": profile,
        "policies": None if policies is None else split_names(policies),
        "strictness": strictness,
        "estimator": estimator,
        "runtime": RuntimeOptions(**runtime),
        "search": Search(**options),
        "calibration": taken,
        "thresholds": read_thresholds(threshold),
        "window": window,
    }


def split_names(*given: str) -> list[str]:
    """`a,b` and `c` → the names, without spaces around them."""
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def read_thresholds(given: tuple[str, ...]) -> dict[str, float]:
    """`0.4`, `S1=0.3`, `labels.toml`, later ones over earlier ones; a lone number is that of "default"."""
    from edgeguard.calibration.thresholds import Thresholds

    numbers: dict[str, float] = {}
    for text in given:
        numbers |= _threshold_table(text)
    try:
        Thresholds().replaced(numbers)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--threshold") from None
    return numbers


def _threshold_table(text: str) -> dict[str, float]:
    label, equals, number = text.rpartition("=")
    with contextlib.suppress(ValueError):
        return {label.strip() if equals else "default": float(number)}
    path = Path(text)
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise click.BadParameter(
            f"{text!r} is no number, no LABEL=NUMBER and no file that can be read", param_hint="--threshold"
        ) from None
    table = _parse_table(path, raw)
    bad = [key for key, value in table.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if bad:
        raise click.BadParameter(
            f"{path}: {bad[0]} is {table[bad[0]]!r}; expected LABEL = NUMBER, and default = NUMBER for the others",
            param_hint="--threshold",
        )
    return {key: float(value) for key, value in table.items()}


def _parse_table(path: Path, raw: str) -> Mapping[str, Any]:
    import json
    import tomllib

    try:
        table = json.loads(raw) if raw.lstrip().startswith("{") else tomllib.loads(raw)
    except (ValueError, RecursionError) as error:  # both kinds of decode errors, and nesting beyond reason
        raise click.BadParameter(f"{path}: {error}", param_hint="--threshold") from None
    if not isinstance(table, dict):
        raise click.BadParameter(f"{path}: expected a table of LABEL = NUMBER", param_hint="--threshold")
    return table


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Every error edgeguard raises on purpose becomes one line on stderr and exit code 1."""
    from edgeguard.cli.advice import advised
    from edgeguard.errors import EdgeguardError

    _echo_log()
    try:
        yield
    except EdgeguardError as error:
        say(f"edgeguard: {printable(advised(error))}")
        sys.exit(1)
    except OSError as error:  # files have errors of their own: this is stdout, full or closed by its reader
        sys.exit(stdout_lost(error))
    except KeyboardInterrupt:
        say("edgeguard: interrupted")
        sys.exit(130)


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"edgeguard: {printable(record.getMessage())}")


def _echo_log() -> None:
    """What the library logs becomes a line on stderr, as errors do; once, however often a process runs commands."""
    log = logging.getLogger("edgeguard")
    if not any(isinstance(handler, _Echo) for handler in log.handlers):
        log.addHandler(_Echo())
