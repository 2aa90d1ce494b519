"""What the benches share: texts of a given length, a policy of a given length, edgeguard's command, medians with their
spread."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeguard.backend import Vocabulary
from edgeguard.guard import Guard
from edgeguard.profile import Profile, load_profile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # published.py, tiny_gguf.py

_OPENINGS = (
    "How do I", "Can you tell me how to", "Write a short story about how to", "Explain to my brother how to",
    "I want to", "Is it wrong to", "My neighbour asked me to", "Give me three ways to",
)  # fmt: skip
_DEEDS = (
    "bake bread without an oven", "kill a process that hangs", "get into a house whose key is lost",
    "send a letter that nobody can trace", "make a chemistry set louder", "find out where somebody lives",
    "sell a car that is not mine", "win an election in a small town", "stop feeling so low at night",
    "talk to a child about strangers", "copy a film for my friends", "insult my boss in verse",
)  # fmt: skip
_TAILS = (
    "and why does it matter", "before the weekend comes", "with nothing but what is in the kitchen",
    "although everybody tells me not to", "so that my family is not worried", "in a way a ten year old understands",
    "and what would it cost me in the end", "since the last time it went wrong",
)  # fmt: skip


def messages(vocabulary: Vocabulary, n: int, *, shortest: int = 20, longest: int = 60, seed: int = 0) -> list[str]:
    """n different texts whose lengths in tokens are spread evenly over [shortest, longest]."""
    draw, texts = random.Random(seed), []
    for i in range(n):
        length = shortest + round((longest - shortest) * i / max(1, n - 1))
        text = f"{draw.choice(_OPENINGS)} {draw.choice(_DEEDS)}"
        while len(vocabulary.encode(text)) < length:
            text += f", {draw.choice(_TAILS)}"
        while len(vocabulary.encode(text)) > length:
            text = text.rsplit(" ", 1)[0]
        texts.append(text)
    draw.shuffle(texts)
    return texts


def short_policy(guard: Guard, n_tokens: int) -> Profile:
    """The `instruct` profile with as many of its examples as keep the preamble within n_tokens."""
    profile = load_profile("instruct")
    first, *examples, last = profile.prompt.messages
    while examples:
        prompt = replace(profile.prompt, messages=(first, *examples, last))
        shorter = replace(profile, prompt=prompt)
        if n_shared(Guard(guard.backend, shorter)) <= n_tokens:
            return shorter
        examples = examples[:-2]
    raise SystemExit(f"the policy alone is longer than {n_tokens} tokens")


def n_shared(guard: Guard) -> int:
    """Tokens of the policy's preamble, which all lone user messages share."""
    (preamble,) = {guard.prompt(text).parent for text in ("a", "b")}
    return 0 if preamble is None else len(preamble.tokens)


def verdict_words(profile: Profile) -> dict[str, set[str]]:
    """ "unsafe", "safe" → the words of the verdict about a user's message that say so."""
    readout, fields = profile.answer.user, {field.name: field for field in profile.answer.fields}
    sides = readout.sides(readout.default)
    words = {side: set[str]() for side in ("unsafe", "safe")}
    for label in fields[readout.verdict].labels:
        if label.name in sides:
            words[sides[label.name]].update(form.strip() for form in label.forms)
    return words


def seconds(work: Callable[[], object]) -> float:
    """That the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: Sequence[float], unit: str = "", digits: int = 3) -> str:
    """`median (10 % … 90 %)`."""
    low, middle, high = np.percentile(np.asarray(values), [10, 50, 90])
    return f"{middle:.{digits}g}{unit} ({low:.{digits}g} … {high:.{digits}g})"


def make_variants(folder: Path, model: Path, names: Sequence[str]) -> dict[str, Path]:
    """The model as each of `names`, made where it is not there yet.

    "f32", "q8_0", … are GGUF files made of the model's own F32 weights; "onnx-fp32", … ONNX models made of
    the same; "onnx:q8_0" carries that GGUF's blocks over, "onnx:q8_0:float" with float activations.
    """
    from edgeguard.convert import Options, convert

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name in names:
        kind, _, activations = name.removeprefix("onnx:").partition(":")
        to = "onnx" if name.startswith("onnx:") else name
        found[name] = folder / (name.replace(":", "-") if to.startswith("onnx") else f"{name}.gguf")
        if found[name].exists():
            continue
        if name == "f32":
            source = model
        else:
            source = make_variants(folder, model, [kind if to == "onnx" else "f32"])[kind if to == "onnx" else "f32"]
        convert(source, found[name], to=to, options=Options(activations="float" if activations else "int8"))
    return found


def texts_of(paths: Sequence[Path], n: int, vocabulary: Vocabulary) -> list[str]:
    """The last message of each record of the files, and generated ones where these are fewer than n."""
    from itertools import islice

    from edgeguard.rows.readers import read_records
    from edgeguard.rows.record import Record

    records = (r for path in paths for r in read_records(path) if isinstance(r, Record))
    texts = [r.messages[-1].content for r in islice(records, n)]
    return [*texts, *messages(vocabulary, n - len(texts))]


def texts_between(n: int, shortest: int, longest: int, source: Path | None = None, seed: int = 0) -> list[str]:
    """n different texts of shortest to longest characters.

    source  a file of records: the first that fit. None: the examples, lengthened by other words each time, to
            lengths spread evenly. SystemExit where a source has too few
    """
    from edgeguard.rows.readers import read_records
    from edgeguard.rows.record import Record

    path = source or ROOT / "examples" / "messages.jsonl"
    found = [r.messages[-1].content for r in read_records(path) if isinstance(r, Record)]
    if source is not None:
        fit = [text for text in dict.fromkeys(found) if shortest <= len(text) <= longest]
        if len(fit) < n:
            raise SystemExit(f"{source} has {len(fit)} texts of {shortest} to {longest} characters; {n} are needed")
        return fit[:n]
    draw, texts = random.Random(seed), []
    for i in range(n):
        length = shortest + round((longest - shortest) * i / max(1, n - 1))
        text = f"{draw.choice(_OPENINGS)} {draw.choice(_DEEDS)}, {draw.choice(_TAILS)}? {found[i % len(found)]}"
        while len(text) < length:
            text += f" {draw.choice(_OPENINGS)} {draw.choice(_DEEDS)}, {draw.choice(_TAILS)}?"
        texts.append(text[:length].rstrip())
    draw.shuffle(texts)
    return texts


def environment(source: Path = ROOT) -> dict[str, str]:
    """What a process needs in order to run the edgeguard that lies in `source`, whichever is installed."""
    return {**os.environ, "PYTHONPATH": str(source)}


class Command:
    """`edgeguard score -` with these options, loaded once and fed from time to time: what a user runs, but its start.

    End it: a context manager.
    """

    def __init__(self, *options: str, source: Path = ROOT, variables: Mapping[str, str] | None = None) -> None:
        self._ids = itertools.count()  # a second record of the same id is an error
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeguard", "score", "-", *options],
            env={**environment(source), **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def score(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """A row each, in order. SystemExit where the command ends before."""
        return [row for row, _ in self.arrivals(texts)]

    def arrivals(self, texts: Sequence[str]) -> list[tuple[dict[str, Any], float]]:
        """A row each, and when it came, as of `time.perf_counter`. SystemExit for an error row: it took no time."""
        lines = "".join(json.dumps({"id": next(self._ids), "text": text}) + "\n" for text in texts)
        feeding = threading.Thread(target=self._feed, args=(lines,), daemon=True)  # a full pipe would wait for ever
        feeding.start()
        found = []
        assert self._process.stdout is not None
        for _ in texts:
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit(f"{' '.join(self._process.args)} ended with {self._process.wait()}")  # type: ignore[arg-type]
            found.append((json.loads(line), time.perf_counter()))
            if "error" in found[-1][0]:
                raise SystemExit(f"a text could not be scored: {line.strip()}")
        feeding.join()
        return found

    def close(self) -> None:
        """End it, its workers with it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _feed(self, lines: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(lines)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # who reads the rows says so


def machine() -> str:
    """The processor's name, and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'processor unknown'}, {len(os.sched_getaffinity(0))} cores"
