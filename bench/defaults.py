"""The default guard as a new user gets it, against the edgeguard before it was merged, quantized and put to all cores.

    python bench/defaults.py                                   # 3 minutes on 2 quiet cores
    python bench/defaults.py --texts texts.jsonl --records 30 --before COMMIT

Whole commands, `edgeguard score FILE`, on the same texts in turn: how long a user waits, starting and loading with it.
The rate is that of the texts alone: n over what the command takes longer for 2n texts than for n. The edgeguard from
before is that commit's own files, run by the same Python with the same runtimes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np

BEFORE = "712bd5297fc6e5e0b38da13452a22cc1f3d33cd1"  # the last one without forms, workers and pull


@dataclass(frozen=True)
class Way:
    """A command: whose files, and its options."""

    source: Path
    options: tuple[str, ...] = ()

    def seconds(self, file: Path) -> float:
        """That it takes for a file. SystemExit where it fails."""
        command = [sys.executable, "-m", "edgeguard", "score", str(file), *self.options]
        env = common.environment(self.source)

        def run() -> None:
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")

        return common.seconds(run)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=15, help="n [default: 15]")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--texts", type=Path, default=None, help="a file of records, in place of the examples")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    args = parser.parse_args()
    texts = common.texts_between(2 * args.records, 100, 400, args.texts)
    with tempfile.TemporaryDirectory() as folder:
        files = [written(Path(folder) / f"{n}.jsonl", texts[:n]) for n in (args.records, 2 * args.records)]
        ways = {"before": Way(files_of(args.before, Path(folder) / "before")), "now": Way(common.ROOT)}
        if find_spec("onnxruntime"):
            ways["now, ONNX Runtime"] = Way(common.ROOT, ("--runtime", "onnx"))
        print(f"{common.machine()}; {args.records} and {2 * args.records} texts of 100 to 400 characters", flush=True)
        compare(ways, files, args.records, args.rounds)


def files_of(commit: str, folder: Path) -> Path:
    """A commit's files, in a folder of their own. SystemExit where the repository does not have it."""
    archive = subprocess.run(["git", "archive", commit], cwd=common.ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(
            f"no commit {commit} in {common.ROOT}: {archive.stderr.decode().strip()}; --before names another"
        )
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


def written(path: Path, texts: Sequence[str]) -> Path:
    """The texts as a file of records."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def compare(ways: Mapping[str, Way], files: Sequence[Path], n: int, rounds: int) -> None:
    """Print each way's seconds and rate, and its ratios over "before", within each round."""
    first = written(files[0].with_name("1.jsonl"), ["What is this?"])
    for way in ways.values():
        way.seconds(first)  # the guard's form is made at first use; the files are in the memory then
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: 1 if i % 2 else -1]:
            taken[name].append(tuple(ways[name].seconds(file) for file in (first, *files)))  # type: ignore[arg-type]
    found = {name: np.array(times).T for name, times in taken.items()}  # (3, rounds): of 1, n and 2n texts
    rates = {name: n / (double - single) for name, (_, single, double) in found.items()}
    for name, (one, _, double) in found.items():
        print(f"{name}: {common.spread(rates[name], ' records/s')}")
        print(
            f"   the whole command, {2 * n} texts: {common.spread(double, ' s')}; one text: {common.spread(one, ' s')}"
        )
        if name != "before":
            print(f"   rate over that before: {common.spread(rates[name] / rates['before'], '×')}")
            for what, row, times in (("the whole command", 2, double), ("one text", 0, one)):
                print(f"   {what}, before over now: {common.spread(found['before'][row] / times, '×')}")


if __name__ == "__main__":
    main()
