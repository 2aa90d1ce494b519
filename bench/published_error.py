"""Where the published scoring rules err, and by how much, against the truth.

    python bench/published_error.py                             # small languages only, a minute
    python bench/published_error.py examples/messages.jsonl     # and SmolLM2, asked with a policy

1. Small random answer languages that can be enumerated, so that the truth is exact: the codes as whole tokens
   (as in Llama 3's vocabulary) and split into digits (as in most others). Error = published - truth.
2. SmolLM2, asked with a policy, on a file; the truth lies in edgeguard's certified bounds, so an error is given
   only as far as it lies outside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common  # noqa: F401  (it puts tests/ on the path)
import numpy as np
from brute_force import Text
from languages import CODES, GRAMMARS, TOKENISATIONS, Language
from published import any_place, fixed_place, token_probability

from edgeguard.backend import Prefix
from edgeguard.estimators import bounds, conditional, joint, marginal
from edgeguard.guard import Guard, Search
from edgeguard.rows.readers import read_records
from edgeguard.rows.record import Record
from edgeguard.testing import vocabulary
from edgeguard.tree import Tree, explore


def guard_like(tokens: str, seed: int) -> Language:
    """A model that answers in the grammar as a guard does: a verdict, one to four codes, then the stop."""
    pieces = TOKENISATIONS[tokens]
    draw = np.random.default_rng(seed)
    unsafe, codes, more = draw.beta(1, 1), draw.dirichlet([0.6] * 3), draw.beta(1, 4)

    def texts(text: str) -> dict[str, float]:
        """What may follow, as text: the same distribution for both tokenisations."""
        if text == "":
            return {"u\n" + c: unsafe * p for c, p in zip(CODES, codes, strict=True)} | {"s": 1 - unsafe}
        if text == "s" or text.count(",") >= 3:
            return {"": 1.0}
        return {"": 1 - more} | {"," + c: more * p for c, p in zip(CODES, codes, strict=True)}

    answers: dict[bytes, float] = {}
    todo = [("", 1.0)]
    while todo:
        text, mass = todo.pop()
        for following, p in texts(text).items():
            if following == "":
                answers[text.encode()] = answers.get(text.encode(), 0.0) + mass * p
            elif p > 0:
                todo.append((text + following, mass * p))
    canonical = {tuple(encode(pieces, text)): p for text, p in answers.items()}

    def row(path: tuple[int, ...]) -> np.ndarray:
        p = np.zeros(len(pieces) + 1)
        for tokens_, mass in canonical.items():
            if tokens_[: len(path)] == path:
                p[len(pieces) if len(tokens_) == len(path) else tokens_[len(path)]] += mass
        if p.sum() == 0:
            p[-1] = 1
        with np.errstate(divide="ignore"):
            return np.log(p / p.sum())

    return Language(GRAMMARS["list"], pieces, row, 30, list[Text](), vocabulary(pieces))


def encode(pieces: list[bytes], text: bytes) -> list[int]:
    return vocabulary(pieces).encode(text.decode())


def compare(tokens: str, n: int) -> None:
    errors: dict[str, list[np.ndarray]] = {"marginal": [], "joint": [], "conditional": []}
    over_one = steps = 0
    for seed in range(n):
        spoken = guard_like(tokens, seed)
        backend = spoken.backend()
        pieces, stops = [*spoken.pieces, b""], spoken.stops
        labels = [b"u", *(c.encode() for c in CODES)]

        def step(path: tuple[int, ...], backend=backend) -> np.ndarray:
            return backend.logprobs([Prefix((0, *path))])[0]

        tree = explore(backend.logprobs, spoken.answers(), Prefix((0,)), tolerance=1e-6, max_rows=10**5)
        backend.calls.clear()
        published = any_place(step, pieces, labels, stops)[1:]
        steps += len(backend.calls)
        over_one += bool((published > 1).any())
        errors["marginal"].append(published - marginal(tree)[1:-1])
        errors["joint"].append(fixed_place(step, pieces, labels, stops)[1:] - joint(tree)[1:-1])
        errors["conditional"].append(token_probability(step, pieces, labels, stops)[1:] - conditional(tree)[1:-1])
    print(f"{tokens}: {n} random guards; marginal above 1 in {over_one}, {steps / n:.0f} full prompts each")
    for name, found in errors.items():
        error = np.array(found)
        columns = ", ".join(
            f"{code} mean {error[:, i].mean():+.3f}, worst {error[np.argmax(np.abs(error[:, i])), i]:+.3f}"
            for i, code in enumerate(CODES)
        )
        print(f"  {name:11} mean |error| {np.abs(error).mean():.4f}; {columns}")


def outside(value: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Signed distance from the bounds; 0 inside."""
    return np.where(value > limits[:, 1], value - limits[:, 1], np.minimum(0, value - limits[:, 0]))


def on_the_model(file: Path, limit: int) -> None:
    with Guard.load(profile="instruct", search=Search(tolerance=0.005, max_nodes=400, min_grammar_mass=0)) as guard:
        found = []
        for record in read_records(file, limit=limit):
            if not isinstance(record, Record):
                continue
            tree: Tree = guard.explore(record)
            places = {(): guard.prompt(record)}

            def step(path: tuple[int, ...], places: dict[tuple[int, ...], Prefix] = places) -> np.ndarray:
                # With the cache, unlike the published code: the same numbers, sooner.
                places[path] = places[()] if not path else Prefix(path[-1:], places[path[:-1]])
                return guard.backend.logprobs([places[path]])[0]

            labels = [b"unsafe", *(code.encode() for code in guard.codes)]
            stops = set(guard.answers.stops.tolist())
            value = any_place(step, guard.backend.vocabulary.pieces, labels, stops)[1:]
            found.append(outside(value, bounds(tree)[1:-1]))
        error = np.array(found)
        print(f"{guard.name} on {len(error)} records: how far the published marginal lies outside the certified bounds")
        for i, code in enumerate(guard.codes):
            print(
                f"  {code:4} mean {error[:, i].mean():+.4f}, range {error[:, i].min():+.4f} … {error[:, i].max():+.4f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--random-guards", type=int, default=300)
    parser.add_argument("--limit", type=int, default=20)
    args = parser.parse_args()
    for tokens in ("whole codes", "split digits") if args.random_guards else ():
        compare(tokens, args.random_guards)
    if args.file:
        on_the_model(args.file, args.limit)


if __name__ == "__main__":
    main()
