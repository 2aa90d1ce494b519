"""`edgeguard convert`: a model file from a model file."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from edgeguard.cli.options import refuse_read, reported_errors
from edgeguard.cli.say import say
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.builtin import BuiltIn


@click.command(
    epilog="""\b
Examples:
  edgeguard convert guard.F16.gguf --to q8_0
  edgeguard convert guard.Q4_0.gguf --to onnx --output guard-onnx
  edgeguard convert guard.F16.gguf --to onnx-int8 --lora adapter.gguf
  edgeguard convert hf-checkpoint/ --to onnx-fp32 --output guard-fp32"""
)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="TYPE",
    help="onnx (quantized blocks as they are), onnx-fp32, onnx-fp16, onnx-int8, onnx-int4, or a llama.cpp type: "
    "f32, f16, q8_0, q5_1, q4_0, q4_k_m, iq4_nl, …",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File or folder to write [default: by the names]")
@click.option("--lora", type=click.Path(path_type=Path), help="Adapter to merge: a GGUF file or a PEFT folder")
@click.option("--lora-scale", type=float, default=1.0, show_default=True, help="Factor of the adapter")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, for quantized GGUF types")
@click.option(
    "--activations",
    type=click.Choice(["int8", "float"]),
    default="int8",
    show_default=True,
    help="ONNX int8 and int4: round what the blocks are multiplied with to 8 bits, or do not",
)
@click.option("--threads", "-t", type=click.IntRange(min=1), help="CPU threads [default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace an existing output")
def convert(
    model: Path | None,
    to: str,
    output: Path | None,
    lora: Path | None,
    lora_scale: float,
    imatrix: Path | None,
    activations: str,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Convert MODEL: GGUF to another GGUF type, GGUF to ONNX, a Hugging Face checkpoint to ONNX.

    MODEL may be a built-in guard's name, or a hub's (hf:ORG/REPO[:FILE][@REVISION]); left out, it is the default
    guard. Prints the path it wrote. The output carries its provenance: what it was made from, with which tools and
    options, in its own metadata and in a manifest. Converting twice gives the same bytes.
    """
    with reported_errors():
        from edgeguard.builtin import base_model, find_built_in
        from edgeguard.convert import TYPES, Options, default_output
        from edgeguard.convert import convert as run
        from edgeguard.hub import parse_hub_name, resolved

        kind = to.lower()
        if kind not in TYPES:
            raise click.BadParameter(f"{to!r} is none of {', '.join(TYPES)}", param_hint="--to")
        signal.signal(signal.SIGTERM, _interrupt)
        built = None if lora is not None and model is None else find_built_in(model)
        wanted = None if model is None else parse_hub_name(model)
        there = base_model() if model is None else Path(str(resolved(model, checkpoint=True)))
        given = there if built is None else built.base_path
        named = given if built is None else Path(f"{built.stem}.gguf")
        if wanted is not None:  # here, and not in the hub's cache
            named = Path(wanted.repo.rpartition("/")[2] if given.is_dir() else given.name)
        options = Options(
            lora=lora or (None if built is None else built.adapter_path),
            name=None if built is None or lora is not None else built.name,
            lora_scale=lora_scale,
            imatrix=imatrix,
            activations=activations,  # type: ignore[arg-type]  # click.Choice has checked it
            threads=threads,
            overwrite=overwrite,
        )
        refuse_read([output] if output is not None else [], {"lora": options.lora, "imatrix": imatrix})
        out = output or default_output(named, kind)
        done = run(given, out, to=kind, options=options, tell=lambda line: say(f"edgeguard: {printable(line)}"))
        for notice in (*done.notices, *_uncalibrated(built, lora, kind)):
            say(f"edgeguard: {printable(notice)}")
        for made in done.manifest["outputs"]:
            say(f"  {made['n_bytes']:>13,}  {printable(made['file'])}")
        click.echo(done.path)


def _uncalibrated(built: BuiltIn | None, lora: Path | None, kind: str) -> tuple[str, ...]:
    """A converted built-in guard is another model than the one whose scores were calibrated."""
    if built is None or lora is not None:
        return ()
    fitted = [form.name for form in built.made if built.calibration(form, "marginal") is not None]
    if not fitted:
        return ()
    form = kind if kind in fitted else fitted[0]
    return (
        f"its scores are not calibrated; --model {built.called}:{form} is this guard with a calibration of its own",
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """A conversion that is told to end removes what it has begun, as at Ctrl-C."""
    say("edgeguard: interrupted; nothing was written")
    sys.exit(1)
