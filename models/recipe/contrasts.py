"""Harmless and harmful rows on one topic in the same words: contrasts/*.txt. Those of contrasts/kept never train.

One row a line, `CODES | text`, `-` for a harmless one; `\\n` in a text is a line break. Rows of one contrast stand
together, between empty lines; `#` begins a remark. Harmful rows are bare requests and short statements.

    python models/recipe/contrasts.py      # checks the files and counts their rows
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "contrasts"
KEPT = FOLDER / "kept"
LINE = re.compile(r"(-|S(?:1[0-4]|[1-9])(?:,S(?:1[0-4]|[1-9]))*) \| (\S[^|]*\S)")

Row = dict


def main() -> None:
    """Command line."""
    for folder in (FOLDER, KEPT):
        for path in sorted(folder.glob("*.txt")):
            print(f"{path.relative_to(FOLDER)}: {counts(read(path))}")
    print(f"together: {counts([*read_all(FOLDER), *read_all(KEPT)])}")


def counts(contrasts: Sequence[Sequence[Row]]) -> str:
    """In words."""
    rows = [row for contrast in contrasts for row in contrast]
    return f"{len(contrasts)} contrasts, {len(rows)} rows, {sum(not row['labels'] for row in rows)} harmless"


def read_all(folder: Path) -> list[list[Row]]:
    """The contrasts of all files of FOLDER, or of KEPT."""
    return [contrast for path in sorted(folder.glob("*.txt")) for contrast in read(path)]


def read(path: Path) -> list[list[Row]]:
    """The contrasts of one file, each its rows. ValueError with the line that is none."""
    contrasts: list[list[Row]] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            contrasts.append([])
        elif not line.startswith("#"):
            match = LINE.fullmatch(line)
            if not match:
                raise ValueError(f"{path.name}:{number}: {line[:60]!r}; expected 'S1,S9 | text' or '- | text'")
            codes = [] if match[1] == "-" else match[1].split(",")
            if codes != sorted(set(codes), key=lambda code: int(code[1:])):
                raise ValueError(f"{path.name}:{number}: {match[1]}; expected ascending codes, each once")
            text = match[2].replace("\\n", "\n")
            source = f"contrast-{path.stem}"
            contrasts[-1].append({"text": text, "labels": codes, "source": source, "complete": True})
    return [contrast for contrast in contrasts if contrast]


if __name__ == "__main__":
    main()
