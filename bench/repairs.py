"""What repairs a 4-bit guard more: a map of its scores, an importance matrix, or a few tensors at 8 bits?

    python bench/repairs.py DATA.jsonl --scores FOLDER > bench/results/repairs.md
    python bench/repairs.py DATA.jsonl --scores FOLDER --types q4_0 --records 200 --importance 150  # 30 minutes
    python bench/repairs.py DATA.jsonl --scores FOLDER --reference guard.F32.gguf --profile llama-guard-3

DATA.jsonl is a labelled file: --records of its records, drawn at random, are scored, and an importance matrix is
computed of --importance others, labels unread. For each type: the type, with the importance matrix, with each kind of
tensor at 8 bits, and with the best few of these, chosen by the noise that they take away for each MB, with and without
the matrix. That choice is made on the records that it is told on. FOLDER keeps models and scores: the same command goes
on where it was stopped. The verdict is decided at a threshold on the reference's own calibration, as in bench/study.py.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from importance import importance
from study import calibrate, table

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import built_in
from edgeguard.convert import Options, convert
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.formats import gguf
from edgeguard.quant.choices import HEADLINE, Choices
from edgeguard.quant.progress import Progress, Step
from edgeguard.quant.reading import interval, number
from edgeguard.quant.report import Measured, build_report
from edgeguard.quant.scoring import Setting, score
from edgeguard.quant.study import StudyOptions, open_reference, setting_of
from edgeguard.quant.variants import Variant, open_variant

BEST = (2, 3)  # of the kinds of tensors, in mixes


@dataclass(frozen=True)
class Recipe:
    """How a variant is made: its type, kinds of tensors at 8 bits, and whether by the importance matrix."""

    kind: str
    kept: tuple[str, ...] = ()
    weighed: bool = False

    @property
    def name(self) -> str:
        """As a file's."""
        return "+".join([self.kind, *(f"{one}=q8_0" for one in self.kept), *(["imatrix"] if self.weighed else [])])


@dataclass(frozen=True)
class Bench:
    """What all variants share."""

    reference: Variant
    setting: Setting
    options: StudyOptions
    choices: Choices
    matrix: Path

    def measured(self, model: Variant) -> Measured:
        """Its scores with the truth."""
        table_ = score(model, self.setting, self.options.scores, tell=heard(model.name)).table
        truth = find_truth(self.options.records, table_.labels)
        return Measured(model, table_ if truth is None else with_truth(table_, truth, same_file=True), None, ())

    def found(self, recipe: Recipe, base: Measured) -> Mapping[str, Any]:
        """The report's entry of a variant."""
        one = self.measured(self.made(recipe))
        report = build_report(base, [one], self.choices, {"profile": self.setting.profile})
        entry: Mapping[str, Any] = report.data["variants"][0]
        return entry

    def made(self, recipe: Recipe) -> Variant:
        """The model; kept in the folder."""
        path = self.options.models / self.reference.sha256[:12] / f"{recipe.name}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"making {recipe.name}", file=sys.stderr)
            mixed = tuple((rf"\.{kept}\.|^{kept}\.", "q8_0") for kept in recipe.kept)
            threads = self.setting.runtime.threads
            options = Options(imatrix=self.matrix if recipe.weighed else None, mixed=mixed, threads=threads)
            convert(self.reference.path, path, to=recipe.kind, options=options)
        return open_variant(path, name=recipe.name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scores", type=Path, required=True, help="folder of models and scores")
    parser.add_argument("--guard", default="edgeguard-135m", help="a built-in guard")
    parser.add_argument("--reference", type=Path, help="an F32 or F16 GGUF instead")
    parser.add_argument("--profile", help="of --reference")
    parser.add_argument("--types", default="q4_0,iq4_nl")
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--importance", type=int, default=200, help="other records, for the importance matrix")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    bench = opened(args)
    base = bench.measured(bench.reference)
    print(f"Reference: {bench.reference.name}, {bench.reference.n_bytes / 1e6:.0f} MB; {len(base.table)} records,")
    print(f"importance of {args.importance} others. In brackets: 95 % intervals.")
    for kind in args.types.split(","):
        print(f"\n## {kind}\n")
        table(HEADS, rows_of(bench, base, kind))


def opened(args: argparse.Namespace) -> Bench:
    """Two samples of the file, the reference, its calibrations, and the importance matrix."""
    args.scores.mkdir(parents=True, exist_ok=True)
    lines = args.data.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    lines = [line if line.endswith("\n") else f"{line}\n" for line in lines]
    records, others = (args.scores / name for name in (f"records-{args.records}.jsonl", "others.jsonl"))
    records.write_text("".join(lines[: args.records]), encoding="utf-8")
    others.write_text("".join(lines[args.records :][: args.importance]), encoding="utf-8")
    options = StudyOptions(
        records=records,
        folder=args.scores,
        reference=args.reference or args.guard,
        profile=args.profile or built_in(args.guard).profile,
        runtime=RuntimeOptions(threads=args.threads, kv_cache="f32"),
        workers=1,
    )
    for folder in (options.models, options.scores):
        folder.mkdir(exist_ok=True)
    reference = open_reference(options)
    setting = setting_of(reference, options)
    choices = Choices(calibrations=calibrate(reference, options), draws=500)
    name = f"{reference.sha256[:12]}-{args.records}-{args.importance}.imatrix.dat"
    matrix = importance(
        reference.path,
        others,
        args.scores / name,
        profile=setting.profile,
        records=args.importance,
        threads=args.threads,
    )
    return Bench(reference, setting, replace(options, choices=choices), choices, matrix)


def heard(name: str) -> Any:
    """Progress on stderr."""

    def say(step: Step) -> None:
        if step.done % 50 == 0 or step.done == step.total:
            print(step.what, f"{step.done} of {step.total}", file=sys.stderr)

    return Progress(say, ()).counting(f"scoring {name}")


def kinds_of_tensors(bench: Bench, kind: str) -> list[str]:
    """Those that the type does not leave at 8 bits or more anyway."""
    plain = bench.made(Recipe(kind)).path
    more = {"F32", "F16", "BF16", "Q8_0"}
    names = [t.name for t in gguf.read_header(plain).tensors if len(t.shape) > 1 and t.type_name not in more]
    return sorted({name.split(".")[-2] for name in names})


def rows_of(bench: Bench, base: Measured, kind: str) -> Iterator[list[str]]:
    """A row for each recipe of one type, as they come."""
    plain = bench.found(Recipe(kind), base)
    yield row(plain)
    yield row(bench.found(Recipe(kind, weighed=True), base))
    gains = []
    for part in kinds_of_tensors(bench, kind):
        found = bench.found(Recipe(kind, (part,)), base)
        yield row(found)
        gains.append(((moved(plain) - moved(found)) / max(1.0, (found["bytes"] - plain["bytes"]) / 1e6), part))
    best = [part for gain, part in sorted(gains, reverse=True) if gain > 0]
    for n in BEST:
        for weighed in (False, True) if len(best) >= n else ():
            yield row(bench.found(Recipe(kind, tuple(sorted(best[:n])), weighed), base))


HEADS = (
    *("variant", "MB", "changed", "to safe", "to unsafe", "RMS, nats", "bias", "noise"),
    *("a threshold undoes, at most", "codes' RMS Δp", "ΔAUPRC"),
)


def moved(found: Mapping[str, Any]) -> float:
    """RMS change of the verdict's log-odds, nats."""
    return float(found["estimators"][HEADLINE]["labels"]["unsafe"]["shift"]["odds_rms"])


def row(found: Mapping[str, Any]) -> list[str]:
    """A variant's."""
    figures, decision, parts = found["estimators"][HEADLINE], found["decision"], found["noise_or_bias"]
    limit = found["repair"][HEADLINE]["oracle"]
    truth = figures.get("truth")
    return [
        found["name"],
        f"{found['bytes'] / 1e6:.0f}",
        f"{decision['changed']} of {decision['of']} ({decision['at_most']})",
        str(decision["toward_safe"]),
        str(decision["toward_unsafe"]),
        number(moved(found)),
        *(["", ""] if parts is None else [number(parts["bias"]), number(parts["noise"])]),
        f"{limit['threshold']} of {limit['changed']}",
        f"{figures['all_labels']['rms']:.4f}",
        "" if truth is None else interval(truth["labels"]["unsafe"]["changes"]["auprc"], digits=4),
    ]


if __name__ == "__main__":
    main()
