"""What a pool's processes open in the tests: no model, and ways to die."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeguard.errors import ContextOverflow, ModelError

if TYPE_CHECKING:
    from edgeguard import Guard, Record, Score


@dataclass(frozen=True)
class Opening:
    """Counts itself in `log`, and opens as `how` says."""

    log: Path
    how: str = "well"
    ready: Path | None = None

    @contextmanager
    def __call__(self) -> Iterator[str]:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.how == "logs":
            logging.getLogger("edgeguard").warning("open%s", "ing")
        if self.how == "says no" or (self.ready is not None and not self.ready.exists()):
            raise ModelError("no.gguf is no model", kind="no_room_for_context", path=Path("no.gguf"))
        if self.how == "dies":
            sys.stderr.write("llama.cpp: ran out of luck\n")
            die(signal.SIGKILL)
        if self.how == "prints":
            os.write(1, b"noise on stdout\n")
        yield f"opened as {len(self.log.read_text().splitlines())}" if self.how == "changes" else "opened"


def hello(opened: str) -> str:
    """What the process says of itself."""
    return opened


def die(how: int = signal.SIGSEGV) -> None:
    """As a bug in C does."""
    os.kill(os.getpid(), how)
    time.sleep(60)


def echo(opened: str, item: Any) -> Any:
    """The item, of which printing makes nothing else."""
    print("noise")
    return item


def logs(opened: str, item: str) -> None:
    """Says a line in the log."""
    logging.getLogger("edgeguard.deep.inside").warning(item)


def slowly(opened: str, item: tuple[Any, float]) -> Any:
    """An item that takes its time."""
    time.sleep(item[1])
    return item[0]


def kills(opened: str, item: Any) -> Any:
    """Dies of "kill", and of "kill once PATH" where the path is not there yet."""
    if item == "kill":
        sys.stderr.write("GGML_ASSERT(false) failed\n")
        sys.stderr.flush()
        die()
    if isinstance(item, str) and item.startswith("kill once "):
        marker = Path(item.removeprefix("kill once "))
        if not marker.exists():
            marker.touch()
            die(signal.SIGKILL)
    return item


def score_or_die(guard: Guard, record: Record) -> Score:
    """A guard whose model has a bug."""
    if "die" in record.messages[-1].content:
        die()
    return guard.score(record)


def process_id(opened: str, item: Any) -> int:
    """Which process it is."""
    return os.getpid()


def raises(opened: str, item: str) -> None:
    """An error of each kind."""
    if item == "overflow":
        raise ContextOverflow(10, 5)
    if item == "unpicklable":
        raise Local(lambda: None)
    raise KeyError(item)


class Local(Exception):
    """Does not survive pickle."""


class DiesUnread:
    """An item that ends the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return die, ()


class OnlyThere:
    """An item that comes to the process and not back."""

    def __init__(self, at_home: int | None = None) -> None:
        self.at_home = at_home or os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _only_there, (self.at_home,)


def _only_there(at_home: int) -> OnlyThere:
    if os.getpid() == at_home:
        raise TypeError("it lives in the other process")
    return OnlyThere(at_home)


def score_slowly(guard: Guard, record: Record) -> Score:
    """A guard that takes its time with some records."""
    if record.messages[-1].content.startswith("wait"):
        time.sleep(float(record.messages[-1].content.split()[1]))
    return guard.score(record)


def score_or_break(guard: Guard, record: Record) -> Score:
    """A guard whose weights turn out to be broken."""
    if "broken" in record.messages[-1].content:
        raise ModelError("its weights are broken", kind="odd", number=7)
    return guard.score(record)
