"""Long texts: how fast they are scored, and what their length does to the verdict, whole and in windows.

    python bench/window.py                                        # about 15 minutes on 2 quiet cores
    python bench/window.py labelled.jsonl --texts 50 --window 512
    python bench/window.py labelled.jsonl --model edgeguard-135m edgeguard-135m@1
    python bench/window.py --speed-only --model guard.gguf --profile llama-guard-3

Prints for each model, within one run and on the same texts: (1) for texts of some lengths, the time in which the
engine reads the tokens of the prompt and nothing else, over the time that `score` takes; (2) what share of long texts
is flagged that are made of harmless lines alone, and of those with one harmful line in the middle; each text whole,
and in windows. Lines are those of a JSONL file: harmless with `labels` that are empty, harmful with others; without
`labels` the guard's own verdict on the line alone decides, so that what differs is the length. In brackets: 95 %
intervals (Wilson).
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common

from edgeguard import Guard, RuntimeOptions
from edgeguard.backend import Prefix
from edgeguard.evaluation.intervals import wilson
from edgeguard.rows.jsonl import rows

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "messages.jsonl"
MOST_LINES = 400  # read of a file


@dataclass(frozen=True)
class Lines:
    """Texts of lines, by what they are."""

    harmless: Sequence[str]
    harmful: Sequence[str]
    said_by: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lines", type=Path, nargs="?", default=EXAMPLES)
    parser.add_argument("--model", nargs="+", default=[None], help="[default: the default guard]")
    parser.add_argument("--profile", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--texts", type=int, default=20, help="of each kind and length")
    parser.add_argument("--tokens", type=int, nargs="+", default=[250, 1000, 4000], help="lengths of these")
    parser.add_argument("--window", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--speed-tokens", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true")
    args = parser.parse_args()
    for model in args.model:
        with Guard.load(model, profile=args.profile, runtime=RuntimeOptions(threads=args.threads)) as guard:
            print(f"{model or guard.name}: {guard.backend.info.path.name}, context {guard.backend.n_ctx} tokens")
            compare_speed(guard, args.speed_tokens, args.rounds)
            if not args.speed_only:
                compare_verdicts(guard, lines_of(args.lines, guard), args.tokens, args.window, args.texts)


def compare_speed(guard: Guard, lengths: Sequence[int], rounds: int) -> None:
    print("the engine's time to read the prompt's tokens, over that of `score`")
    for length in lengths:
        ratios, rates = [], []
        for seed in range(rounds):
            (text,) = common.messages(guard.backend.vocabulary, 1, shortest=length, longest=length, seed=seed)
            ids = guard.prompt_ids(text)
            plain = common.seconds(lambda ids=ids: guard.backend.logits([Prefix(ids)]))
            guard.score("a")  # the preamble is evaluated again
            scored = common.seconds(lambda text=text: guard.score(text))
            ratios.append(plain / scored)
            rates.append(len(ids) / scored)
        rate = statistics.median(rates)
        print(f"   {length} tokens: {common.spread(ratios, '×')}; scored at {rate:.0f} tokens/s")


def lines_of(path: Path, guard: Guard) -> Lines:
    """The texts of a JSONL file, harmless and harmful."""
    with open(path, "rb") as file:
        read = [row.fields for _, row in zip(range(MOST_LINES), rows(file, limit=2**20), strict=False)]
    texts = [(str(fields["text"]), fields.get("labels")) for fields in read if isinstance(fields.get("text"), str)]
    labelled = any(isinstance(labels, list) for _, labels in texts)
    harmful = {text for text, labels in texts if (labels if labelled else guard.score(text).flagged)}
    known = [text for text, labels in texts if not labelled or isinstance(labels, list)]
    if not known or not harmful or not set(known) - harmful:
        raise SystemExit(f"{path}: expected harmless and harmful lines among the first {MOST_LINES} with a text")
    return Lines(
        [text for text in known if text not in harmful],
        [text for text in known if text in harmful],
        "the file's labels" if labelled else "the guard, each alone",
    )


def compare_verdicts(guard: Guard, lines: Lines, lengths: Sequence[int], windows: Sequence[int], n: int) -> None:
    print(f"flagged of {n} texts of harmless lines / of {n} with one harmful line in the middle")
    print(f"   lines: {len(lines.harmless)} harmless and {len(lines.harmful)} harmful by {lines.said_by}")
    draw = random.Random(0)
    alone = [draw.choices(kind, k=n) for kind in (lines.harmless, lines.harmful)]
    print(f"   one line alone: {' / '.join(share(guard, texts)[0] for texts in alone)}")
    guards = {"whole": guard}
    for window in windows:
        guards[f"windows of {window}"] = Guard(
            guard.backend, guard.profile, calibration=guard.calibration, thresholds=guard.thresholds, window=window
        )
    for length in lengths:
        harmless, mixed = [], []
        for _ in range(n):
            harmless.append(long_text(guard, lines.harmless, length, draw))
            mixed.append(long_text(guard, lines.harmless, length, draw, draw.choice(lines.harmful)))
        for name, judge in guards.items():
            (quiet, fast), (caught, _) = share(judge, harmless), share(judge, mixed)
            print(f"   {length} tokens, {name}: {quiet} / {caught}; {fast:.2g} records/s")


def long_text(guard: Guard, lines: Sequence[str], length: int, draw: random.Random, middle: str | None = None) -> str:
    """Paragraphs of about as many tokens, in an order of their own; `middle` stands between the two in the middle."""
    encode, chosen, used = guard.backend.vocabulary.encode, [], 0
    if middle is not None:
        used += len(encode(middle))
    while used < length:
        chosen.append(draw.choice(lines))
        used += len(encode(chosen[-1])) + 1
    if middle is not None:
        chosen.insert(len(chosen) // 2, middle)
    return "\n\n".join(chosen)


def share(guard: Guard, texts: Sequence[str]) -> tuple[str, float]:
    """The share of texts that are flagged, with its interval, and records a second."""
    flagged: list[bool] = []
    taken = common.seconds(lambda: flagged.extend(guard.score(text).flagged for text in texts))
    low, high = wilson(sum(flagged), len(texts))
    return f"{sum(flagged) / len(texts):.0%} [{low:.0%}, {high:.0%}]", len(texts) / taken


if __name__ == "__main__":
    main()
