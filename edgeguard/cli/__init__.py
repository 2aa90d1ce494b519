"""The command line: files, stdin, progress, exit codes. Nothing else in edgeguard prints.

Exit codes: 0 done; 1 some record failed, or the run did, or could not say what it had to; 2 misused; 3 `--fail-over`
was exceeded; 4 no variant keeps inside the limits of `bench quant`; 5 too few records to say; 130 interrupted.
Only click is imported here and in the command modules; what a command needs, it imports when it runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from edgeguard import __version__
from edgeguard.cli.bench import bench
from edgeguard.cli.calibrate import calibrate
from edgeguard.cli.check import check
from edgeguard.cli.convert import convert
from edgeguard.cli.evaluate import evaluate
from edgeguard.cli.explain import explain
from edgeguard.cli.inspect import inspect
from edgeguard.cli.models import models
from edgeguard.cli.profiles import profiles
from edgeguard.cli.say import say, status, stdout_lost
from edgeguard.cli.score import score
from edgeguard.cli.serve import serve


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: edgeguard score examples/messages.jsonl --table",
)
@click.version_option(__version__, prog_name="edgeguard")
def main() -> None:
    """Per-category confidence from generative guard models, on your own machine.

    A guard model answers `safe`, or `unsafe` and a list of categories. edgeguard reads its token
    probabilities and gives each category a probability, with the error it may have.
    """


for command in (score, serve, explain, check, evaluate, calibrate, convert, inspect, profiles, models, bench):
    main.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run a command line as a process: its exit status. Errors of usage, of stdout and Ctrl-C are a line on stderr."""
    if "_EDGEGUARD_COMPLETE" in os.environ:
        main(prog_name="edgeguard")
    try:
        with main.make_context("edgeguard", [*arguments]) as context:
            main.invoke(context)
        return status(0)
    except click.exceptions.Exit as error:
        return status(error.exit_code)
    except SystemExit as error:
        return status(error.code if isinstance(error.code, int) else 1)
    except click.ClickException as error:
        return status(_shown(error))
    except OSError as error:  # files have errors of their own
        return status(stdout_lost(error))
    except (KeyboardInterrupt, click.Abort):
        say("edgeguard: interrupted")
        return status(130)


def _shown(error: click.ClickException) -> int:
    try:
        error.show()
    except OSError:
        say("")  # which remembers why
    return error.exit_code
