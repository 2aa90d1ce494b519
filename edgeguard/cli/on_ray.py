"""`edgeguard score --ray`: the same records on many machines, into a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import load_arguments
from edgeguard.cli.say import say

if TYPE_CHECKING:
    from edgeguard.ray.run import Outcome
    from edgeguard.rows.readers import Reading

_HERE = "here"  # what --ray says without an address

ray_option = click.option(
    "--ray",
    "ray_address",
    is_flag=False,
    flag_value=_HERE,
    metavar="[ADDRESS]",
    help="On the machines of a Ray cluster, into the folder --output; without an address on this machine, by a Ray "
    "that is started for it. FILE may be a folder or a URI, such as s3://bucket/records",
)


class PathOrUri(click.Path):
    """A path as a Path; what has a scheme, such as s3://, as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Leave URIs alone: a Path would lose one of their slashes."""
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


def check(ray_address: str | None, source: Path | str, output: Path | str | None, *, table: bool) -> None:
    """Raises UsageError for what goes with --ray alone, or not with it."""
    if ray_address is None:
        uris = [place for place in (source, output) if isinstance(place, str)]
        if uris and str(uris[0]) != "-":
            raise click.UsageError(f"{uris[0]} is a URI, which is read and written with --ray; else give a file")
        return
    if output is None or str(output) == "-" or table:
        raise click.UsageError("--ray writes a folder: name one with --output, and leave --table out")
    if str(source) == "-":
        raise click.UsageError("--ray reads files, which its machines can open; stdin is none")


def score(
    ray_address: str,
    source: Path | str,
    output: Path | str,
    *,
    format_: str | None,
    reading: Reading,
    workers: int | None,
    limit: int | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> Outcome:
    """Score and write all. `options`: as `load_arguments` takes them."""
    from edgeguard.machine import available_cores
    from edgeguard.ray.run import RayRun, score_files
    from edgeguard.ray.scorer import GuardJob
    from edgeguard.rows.writer import format_of

    threads = options.get("threads") or 1
    plan = RayRun(
        source=source,
        output=output,
        job=GuardJob.of(load_arguments(**options), threads),
        format=format_ or format_of(str(output).rstrip("/").rpartition("/")[2]),
        reading=reading,
        address=None if ray_address == _HERE else ray_address,
        actors=workers,
        threads=threads,
        cores=max(available_cores(), (workers or 1) * threads),
        limit=limit,
        resume=resume,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    try:
        return score_files(plan)
    except KeyboardInterrupt:
        say("edgeguard: interrupted; run again with --resume to go on")
        sys.exit(130)
