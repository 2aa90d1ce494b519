"""Turns rows into the tokens that `train.py` learns: the prompts that edgeguard scores with, and their answers.

    python models/recipe/encode.py ROWS.jsonl ROWS.npz [--base BASE.gguf] [--longest 1500]

Training then needs torch alone, and no llama.cpp: it may be done on another machine. What a row's answer is worth is
decided there (`Settings` of train.py); here stands only what the row says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from encoded import Encoded, write
from export import DEFAULT, find_base

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.profile import load_profile
from edgeguard.prompt import Prompter, compile_prompt
from edgeguard.rows.shapes import make_record

# Share of a source's unsafe rows whose label is wrong, where it is more than a few in a hundred: about what a reader of
# some 60 found (the data pack has the counts), and a guess for the last two. The verdict's target is smoothed by it.
NOISE = {
    "edos": 0.25, "gab-hate-corpus": 0.2, "hatexplain": 0.12, "davidson-hate": 0.15, "hatemoji-build": 0.12,
    "composed2": 0.1, "diasafety": 0.1, "gptfuzz-responses": 0.1,
}  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, help="the base model's GGUF file [default: of the installed package]")
    parser.add_argument("--longest", type=int, default=1500, help="tokens; of longer rows beginning and end are kept")
    args = parser.parse_args()
    found = encode(read_rows(args.rows), open_prompter(args.base or find_base(DEFAULT)), args.longest)
    write(found, args.out)
    print(f"{args.out}: {len(found)} rows, {len(found.ids)} tokens")


def open_prompter(base: Path) -> Prompter:
    """The very prompts that edgeguard scores with."""
    backend = open_backend(base, RuntimeOptions(context=512))  # stays open: the vocabulary belongs to it
    return compile_prompt(load_profile("edgeguard-135m"), None, backend.vocabulary)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def encode(rows: Sequence[dict], prompter: Prompter, longest: int) -> Encoded:
    """Rows as tokens; answers in their canonical tokenisation."""
    tokens, answers, verdict = [], [], []
    for row in rows:
        prompt, answer = encode_row(row, prompter)
        if (over := len(prompt) + len(answer) - longest) > 0:
            middle = len(prompt) // 2
            prompt = prompt[: middle - over // 2] + prompt[middle - over // 2 + over :]
        tokens.append(prompt + answer)
        answers.append(len(answer))
        verdict.append(len(prompter.vocabulary.encode("unsafe" if row["labels"] else "safe")))
    return Encoded(
        ids=np.concatenate([np.asarray(t, np.int32) for t in tokens]),
        ends=np.cumsum([len(t) for t in tokens], dtype=np.int64),
        answers=np.asarray(answers, np.int32),
        verdict=np.asarray(verdict, np.int32),
        unsafe=np.asarray([bool(row["labels"]) for row in rows]),
        open=np.asarray([len(row["labels"]) == 1 and not row.get("complete", False) for row in rows]),
        noise=np.asarray([NOISE.get(row.get("source", ""), 0.0) * bool(row["labels"]) for row in rows], np.float32),
        sources=np.asarray([row.get("source", "") for row in rows]),
        safe_id=prompter.vocabulary.encode("safe")[0],
        unsafe_id=prompter.vocabulary.encode("unsafe")[0],
    )


def encode_row(row: dict, prompter: Prompter) -> tuple[list[int], list[int]]:
    """(prompt, answer) of one row."""
    said = {k: v for k, v in row.items() if k in ("text", "prompt", "response")}
    labels = sorted(row["labels"], key=lambda code: int(code[1:]))
    answer = prompter.vocabulary.encode("unsafe\n" + ",".join(labels) if labels else "safe")
    end = prompter.vocabulary.control["<|im_end|>"]
    return list(prompter.encode(make_record(said).messages)), [*answer, end]


if __name__ == "__main__":
    main()
