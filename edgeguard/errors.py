"""Every error edgeguard raises on purpose, one tree.

EdgeguardError
├── ModelError            a model file that cannot be used: not GGUF, truncated, lying header, wrong memory
├── ProfileError          a guard profile with a mistake, or one that does not fit the model
├── RecordError           one input record that cannot be scored; the others go on
│   ├── ContextOverflow   its prompt is longer than the model's context
│   ├── OffGrammar        the model does not answer in the profile's grammar
│   └── WorkerDied        the process that scored it ended, and a second one too
├── CalibrationError      a calibration file with a mistake, or one of another guard
├── InputError            an input file that cannot be read at all
└── OutputError           an output that cannot be written, or must not be overwritten

A programmer's mistake is a ValueError or TypeError and not in this tree.

Every error has a `kind` for machines and `data` about what happened. Messages name no command line option: a library's
user has none. `cli/advice.py` adds what an option can do, by kind.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class EdgeguardError(Exception):
    """Base of the tree: catch it to catch everything edgeguard raises on purpose.

    kind  what happened, in one word for machines: "context_too_long"; "" where nothing can be done about it by option
    data  the values that the message names, by name
    """

    kind = ""

    def __init__(self, message: str, *, kind: str | None = None, **data: object) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        """The same error in another process, whatever its class asks for to be made."""
        return _again, (type(self), str(self), self.kind, self.data)


class ModelError(EdgeguardError):
    """The model file cannot be used."""


class ProfileError(EdgeguardError):
    """The guard profile has a mistake, or does not fit the model."""


class RecordError(EdgeguardError):
    """One record cannot be scored. `kind` is the machine-readable reason in the output."""

    kind = "invalid_record"


class ContextOverflow(RecordError):
    """The record's prompt does not fit into the model's context.

    room  tokens that the rest of the prompt leaves for the text, where they are too few for a window of it
    """

    kind = "context_overflow"

    def __init__(self, n_tokens: int, n_ctx: int, *, room: int | None = None, counted_all: bool = True) -> None:
        needs = f"{n_tokens}" if counted_all else f"more than {n_tokens}"
        cure = "shorten the text"
        if room is not None:
            cure = f"all but the last text leaves {max(0, room)}, too few for a window; shorten the conversation"
        super().__init__(
            f"the prompt needs {needs} tokens with its answer, the context holds {n_ctx}; {cure}",
            kind=None if room is None else "no_room_for_window",
            n_tokens=n_tokens,
            n_ctx=n_ctx,
        )


class OffGrammar(RecordError):
    """Too little of the model's probability lies on answers the profile can read."""

    kind = "off_grammar"


class WorkerDied(RecordError):
    """The process that scored the record ended, and so did a fresh one."""

    kind = "worker_died"


class CalibrationError(EdgeguardError):
    """The calibration has a mistake, or was fitted on another guard."""


class InputError(EdgeguardError):
    """The input cannot be read."""


class OutputError(EdgeguardError):
    """The output cannot be written."""


def _again(kind_of: type[EdgeguardError], message: str, kind: str, data: Mapping[str, Any]) -> EdgeguardError:
    error = kind_of.__new__(kind_of)
    EdgeguardError.__init__(error, message, kind=kind, **data)
    return error


def printable(text: str) -> str:
    """Text from a stranger, fit for a message on a terminal: control and direction characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """The text, or as much of its beginning as `longest` characters hold."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(value: object, longest: int = 60) -> str:
    """A stranger's value for a message: its repr, printable and short."""
    return shortened(printable(repr(value)), longest)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the known one that is near, in brackets, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
