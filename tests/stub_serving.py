"""What the server's workers do in tests of faults: they die, wait, or fail, as the text says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stub_worker import die

from edgeguard.serve.work import Done, RecordWork, score

if TYPE_CHECKING:
    from edgeguard import Guard


def score_or_fail(guard: Guard, work: RecordWork) -> Done:
    """ "die", "die once PATH", "wait SECONDS", "note PATH", "bug"; anything else is scored."""
    text = work.record.messages[-1].content
    word, _, rest = text.partition(" ")
    if text == "die":
        die()
    if text.startswith("die once "):
        path = Path(text.removeprefix("die once "))
        if not path.exists():
            path.touch()
            die()
    if word == "wait":
        time.sleep(float(rest))
    if word == "note":
        Path(rest).touch()
    if word == "bug":
        raise KeyError("nobody foresaw this")
    return score(guard, work)


def process_id(guard: Guard, item: None) -> int:
    """Which process it is."""
    return os.getpid()
