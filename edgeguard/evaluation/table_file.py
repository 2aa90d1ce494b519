"""Tables of scores as npz files: what was scored once need not be scored again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from edgeguard.errors import InputError
from edgeguard.evaluation.table import ScoreTable
from edgeguard.files import write_whole
from edgeguard.rows.record import Failure, Id

FORMAT = 3  # 1 had "unsafe" apart from the codes, 2 no fields


def save_table(table: ScoreTable, path: Path) -> None:
    """As an npz file, which `load_table` reads. Only a whole file ever has the name."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "labels": np.array(table.labels),
        "ids": _as_texts(table.ids),
        "places": table.places,
        "margin": table.margin,
        "off": table.off,
        "failed_ids": _as_texts([one.id for one in table.failed]),
        "failed_kinds": np.array([one.kind for one in table.failed], dtype=np.str_),
        "failed_messages": np.array([one.message for one in table.failed], dtype=np.str_),
        "failed_lines": np.array([one.line for one in table.failed], dtype=np.int64),
        **{f"scores_{name}": array for name, array in table.scores.items()},
        "field_labels": np.array([*table.fields], dtype=np.str_),
        "fields": np.array([*table.fields.values()], dtype=np.float64),
    }
    for name in ("truth", "first", "evidence"):
        if getattr(table, name) is not None:
            arrays[name] = getattr(table, name)
    whole = BytesIO()
    np.savez_compressed(whole, **arrays)
    write_whole(path, whole.getvalue())


def load_table(path: Path) -> ScoreTable:
    """What `save_table` wrote. Raises InputError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "format" not in arrays or arrays["format"] != FORMAT:
                raise ValueError("another version of edgeguard wrote it")
            return ScoreTable(
                labels=tuple(map(str, arrays["labels"])),
                ids=tuple(_ids(arrays["ids"])),
                places=arrays["places"],
                margin=arrays["margin"],
                scores={n.removeprefix("scores_"): arrays[n] for n in arrays.files if n.startswith("scores_")},
                first=arrays.get("first"),
                off=arrays["off"],
                fields=dict(zip(map(str, arrays["field_labels"]), arrays["fields"], strict=True)),
                truth=arrays.get("truth"),
                evidence=arrays.get("evidence"),
                failed=tuple(
                    Failure(id_, str(kind), str(message), int(line))
                    for id_, kind, message, line in zip(
                        _ids(arrays["failed_ids"]),
                        arrays["failed_kinds"],
                        arrays["failed_messages"],
                        arrays["failed_lines"],
                        strict=True,
                    )
                ),
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no table of scores: {error}; remove it, and score again") from error


def _as_texts(ids: Sequence[Id]) -> npt.NDArray[np.str_]:
    """Ids with a letter that says what they are."""
    texts = ["" if i is None else f"{'i' if isinstance(i, int) else 's'}{i}" for i in ids]
    return np.array(texts, dtype=np.str_)


def _ids(texts: npt.NDArray[np.str_]) -> Iterator[Id]:
    for text in map(str, texts):
        yield None if not text else int(text[1:]) if text[0] == "i" else text[1:]
