"""What the command line says beside its data: lines on stderr, and what happens where a stream takes nothing."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

import click

lost: list[OSError] = []  # why stderr took no line, once it did not
stdout_is_free = [False]  # whether the command writes no data there, so that a last line may stand there


def say(line: str, *, nl: bool = True) -> None:
    """A line on stderr. Where that is full or has no reader the run goes on; `status` knows of it."""
    if lost:
        return
    try:
        click.echo(line, err=True, nl=nl)
    except OSError as error:
        lost.append(error)
        drop(sys.stderr)


def status(code: int) -> int:
    """The exit status of a command that has come to this one, when stdout has taken what it still held."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or stdout_lost(error)
    if lost:
        if stdout_is_free[0]:
            with suppress(OSError):
                click.echo(f"edgeguard: stderr cannot be written ({_reason(lost[0])})")
        return code or 1
    return code


def stdout_lost(error: Exception) -> int:
    """Say that stdout takes nothing any more. The exit status."""
    drop(sys.stdout)
    say(f"edgeguard: stdout cannot be written ({_reason(error)})")
    return 1


def drop(stream: TextIO) -> None:
    """Point a stream elsewhere, so that what it still holds is not written once more when Python ends."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def _reason(error: Exception) -> str:
    import errno

    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "it is closed"
    return str(getattr(error, "strerror", None) or error)
