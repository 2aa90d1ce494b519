"""`edgeguard models`: the guards that come with edgeguard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import reported_errors

if TYPE_CHECKING:
    from edgeguard.builtin import BuiltIn, ModelFile


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edgeguard models
  edgeguard models card edgeguard-135m
  edgeguard models build edgeguard-135m""",
)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the guards that come with edgeguard: what each is made of, size, hashes, licence, card.

    The list says whether a guard's files are there and whether their hashes are right; exit code 1 if one is not.
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

            click.echo(json.dumps([_row(guard, files) for guard, files in found], ensure_ascii=False))
        else:
            from edgeguard.cli.screen.guards import print_models

            print_models(found)
    sys.exit(0 if all(file.problem is None for _, files in found for file in files) else 1)


def _row(guard: BuiltIn, files: list[ModelFile]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": guard.name,
        "version": guard.version,
        "description": guard.description,
        "profile": guard.profile,
        "license": guard.license,
        "card": str(guard.card),
        "model_sha256": guard.model_sha256,
        "files": [{**asdict(file), "path": None if file.path is None else str(file.path)} for file in files],
    }


@models.command(epilog="Example: edgeguard models card edgeguard-135m")
@click.argument("name")
def card(name: str) -> None:
    """Print the model card of NAME: data, figures, what it is for and what it must not be used for."""
    with reported_errors():
        from edgeguard.builtin import built_in

        click.echo(built_in(name).card.read_text(encoding="utf-8"), nl=False)


@models.command(epilog="Example: edgeguard models build edgeguard-135m")
@click.argument("name")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write [default: in the cache folder]")
@click.option("--overwrite", is_flag=True, help="Replace an existing --output")
def build(name: str, output: Path | None, overwrite: bool) -> None:
    """Merge NAME's adapter into its base model: one GGUF of F32 weights, to convert and to quantize.

    Prints the path. Building again gives the same bytes; in the cache folder a file that is there already and whole
    is taken as it is.
    """
    with reported_errors():
        from edgeguard.builtin import built_in

        guard = built_in(name)
        if output is None:
            click.echo(merged(guard, _cached(guard)))
        else:
            _merge(guard, output, overwrite=overwrite)
            click.echo(output)


def merged(guard: BuiltIn, path: Path) -> Path:
    """`path` with the guard merged to F32 in it; a file that is there already and whole is taken as it is."""
    if not _is_built(guard, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _merge(guard, path, overwrite=True)
    return path


def _merge(guard: BuiltIn, path: Path, *, overwrite: bool) -> None:
    from edgeguard.convert import Options, convert

    options = Options(lora=guard.adapter_path, name=guard.name, overwrite=overwrite)
    convert(guard.base_path, path, to="f32", options=options)


def _cached(guard: BuiltIn) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("edgeguard", appauthor=False) / f"{guard.name}-{guard.version}.F32.gguf"


def _is_built(guard: BuiltIn, path: Path) -> bool:
    """Is this what building gives? By the manifest beside it: its sources are the guard's, and the file is whole."""
    import json

    from edgeguard.errors import EdgeguardError
    from edgeguard.formats.hashes import sha256

    try:
        manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text(encoding="utf-8"))
        sources = {source["sha256"] for source in manifest["sources"]}
        (output,) = manifest["outputs"]
        return sources == set(guard.sha256.values()) and bool(output["sha256"] == sha256(path))
    except (OSError, ValueError, KeyError, TypeError, EdgeguardError):
        return False
