"""What quantization does to a guard: the study on the data pack, as tables for the docs.

    python bench/study.py DATA --out FOLDER > bench/results/quantization_study.md
    python bench/study.py DATA --out FOLDER --val 700 --per-file 100 > …            # samples: an hour, not four
    python bench/study.py DATA --out FOLDER --plan                                  # what it would do, and how long
    python bench/study.py DATA --out FOLDER --guard FILE.gguf --profile NAME > …    # another guard, with K-quants

DATA is the data pack: val.jsonl and eval_public/. FOLDER keeps models and scores: the same command goes on where it was
stopped. The reference is the F32 of the built-in guard's base and adapter, or FILE. Its calibration is fitted on
val.jsonl by the built-in guard's rule; decisions are taken with it. Also written: a picture of sizes and changes (of
the default guard docs/images/quantization-study.svg, else docs/images/quantization-study-FILE.svg), and for each set
of records bench quant's page and report in FOLDER.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import built_in
from edgeguard.calibration.maps import Calibration
from edgeguard.convert import Options, convert
from edgeguard.errors import CalibrationError
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.quant.choices import Choices
from edgeguard.quant.files import write_report
from edgeguard.quant.pictures import size_and_changes, standalone
from edgeguard.quant.progress import Progress, Step
from edgeguard.quant.reading import floor_of, interval, number, percent, plan_lines, verdict
from edgeguard.quant.report import HEADLINE, ReportData
from edgeguard.quant.scoring import score
from edgeguard.quant.study import StudyOptions, open_reference, plan_of, setting_of, study
from edgeguard.quant.variants import Variant

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "recipe"))
from calibrate import fit

GUARD = "edgeguard-135m"
LEGACY = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "onnx-fp32", "onnx-int8", "onnx-int4")
K_TYPES = ("q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
# Of a guard whose rows have room for blocks of 256; of the default one K-quants are named in the last table.
WITH_K = ("q8_0", *K_TYPES[:4], "q4_0", "iq4_nl", "onnx-int8", "onnx-int4")
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--val", type=int, help="a sample of so many records of val.jsonl [default: all]")
    parser.add_argument(
        "--per-file", type=int, help="of each public file [default: all]; 0: none; xstest is taken whole"
    )
    parser.add_argument("--floor", type=int, default=200, help="records of the second set, as of bench quant")
    parser.add_argument("--guard", default=GUARD, help="a built-in guard, or a GGUF file in full precision")
    parser.add_argument("--profile", help="[default: the built-in guard's]")
    parser.add_argument("--variants", help="types, with commas [default: those that the guard's study has]")
    parser.add_argument("--no-speed", action="store_true", help="leave speed and memory out")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu")
    parser.add_argument("--together", type=int, help="records in one batch, where this edgeguard has such a mode")
    parser.add_argument("--workers", type=int, help="processes to score in [default: as bench quant]")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    variants = tuple(args.variants.split(",")) if args.variants else LEGACY if args.guard == GUARD else WITH_K
    val = StudyOptions(
        records=sample([args.data / "val.jsonl"], args.val, args.out / "val.jsonl"),
        folder=args.out,
        reference=args.guard,
        variants=variants,
        profile=args.profile or built_in(args.guard).profile,
        runtime=runtime(args),
        workers=args.workers,
        measurements=0 if args.no_speed else 3,
        command="python bench/study.py DATA --out FOLDER" + ("" if args.guard == GUARD else " --guard FILE"),
    )
    limits_ = Choices(max_flip_rate=0.02, max_auprc_loss=0.01)
    # Noise is measured on the second set, speed and memory with the first: once is enough.
    files = sorted((args.data / "eval_public").rglob("*.jsonl"))
    public = sample(files, args.per_file, args.out / "public.jsonl")
    studies = {"val": replace(val, floor=args.floor if args.per_file == 0 else 0, choices=limits_)}
    if args.per_file != 0:
        studies["public"] = replace(val, records=public, floor=args.floor, measurements=0, choices=limits_)
    if args.plan:
        print_plans(studies)
        return
    reference = open_reference(val)
    choices = replace(limits_, calibrations=calibrate(reference, val))
    reports = {
        name: kept_study(replace(options, choices=choices), args.out / name) for name, options in studies.items()
    }
    k = [] if set(K_TYPES) & set(variants) else k_types(reference, args.out / "k-types")
    name = Path(args.guard).name.removesuffix(".gguf").removesuffix(".F32")
    print_study(name, reports, k)
    own = "" if args.guard == GUARD else f"-{name}"
    picture = ROOT / "docs" / "images" / f"quantization-study{own}.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(standalone(size_and_changes(without(list(reports.values())[-1], "onnx-fp32"))))


def runtime(args: argparse.Namespace) -> RuntimeOptions:
    """The options of all models; a mode that this edgeguard has not is refused by name."""
    options = RuntimeOptions(kv_cache="f32", device=args.device)
    if args.together is None:
        return options
    if "together" not in {one.name for one in fields(RuntimeOptions)}:
        raise SystemExit("this edgeguard scores no records together; leave --together out")
    return replace(options, together=args.together)


def print_plans(studies: Mapping[str, StudyOptions]) -> None:
    """What would be done of each set of records, and what llama.cpp falls back to."""
    for name, options in studies.items():
        print(f"{name}:")
        for line in plan_lines(plan_of(options, tell=say).data()):
            print(f"  {line}")


def sample(files: Sequence[Path], n: int | None, out: Path) -> Path:
    """One file of records, at most n of each file, shuffled; the same arguments give the same bytes."""
    dice, lines = random.Random(0), []
    for file in files:
        rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
        lines += rows if n is None or n >= len(rows) or file.stem == "xstest" else dice.sample(rows, n)
    dice.shuffle(lines)
    text = "".join(lines)
    if not out.exists() or out.read_text(encoding="utf-8") != text:
        out.write_text(text, encoding="utf-8")
    return out


def calibrate(reference: Variant, options: StudyOptions) -> dict[str, Calibration]:
    """The reference's own calibrations, from the very scores that the study will take."""
    setting = setting_of(reference, options)
    heard = Progress(say, ()).counting(f"scoring {reference.name}")
    table = score(reference, setting, options.scores, tell=heard).table
    truth = find_truth(options.records, table.labels)
    assert truth is not None
    table = with_truth(table, truth, same_file=True)
    identity = {"guard": reference.name, "profile": setting.profile, "model_sha256": reference.sha256}
    try:
        return fit(table, identity, options.records)
    except CalibrationError:  # a sample of a few records of each source: none can be left out
        return fit(table, identity, options.records, method="none")


def kept_study(options: StudyOptions, folder: Path) -> ReportData:
    """A study's data; its page and its repairs are left in `folder`."""
    report = study(options, tell=say)
    write_report(report, folder)
    return report.data


def say(step: Step) -> None:
    """To stderr: stdout is the tables'."""
    print(step.what, f"{step.done} of {step.total}" if step.total else "", file=sys.stderr)


def k_types(reference: Variant, folder: Path) -> list[tuple[str, Path, Sequence[str]]]:
    """(type, file, what its making said) of the K-quants, which this model's width does not fit."""
    folder.mkdir(exist_ok=True)
    found = []
    for kind in K_TYPES:
        done = convert(reference.path, folder / f"{kind}.gguf", to=kind, options=Options(overwrite=True))
        found.append((kind, done.path, done.notices))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def print_study(guard: str, reports: Mapping[str, ReportData], k: Sequence[tuple[str, Path, Sequence[str]]]) -> None:
    """All of them, as Markdown."""
    first, *_, last = (reports["val"], *reports.values())
    print(f"Reference: {guard} in F32, {first['reference']['bytes'] / 1e6:.0f} MB. In brackets: 95 % intervals.")
    for name, report in reports.items():
        what = {"val": "`val.jsonl`", "public": "the public evaluation files"}[name]
        print(
            f"\n## On {what}: {report['records']} of {report['planned']} records, {report['unsafe']} of them unsafe\n"
        )
        print("### The verdict\n")
        table(_VERDICT, [verdict_row(v) for v in report["variants"]])
        found = report["recommendation"]
        ship = f"**{found['ship']}**; " if found["ship"] else ""
        print(f"\nInside {limits(report)}: {ship}{found['why']}.")
        print("\n### The three estimators\n")
        table(_ESTIMATORS, [row for v in report["variants"] for row in estimator_rows(v)])
        print("\n### Where the harm to the verdict comes from, Brier loss ×1000\n")
        table(("variant", "total", *_PARTS), [harm_row(v) for v in report["variants"]])
        print("\n### Repair without labels, told on the half that it was not fitted on\n")
        table(_REPAIR, [row for v in report["variants"] for row in repair_rows(v)])
        print("\n### What a repair could undo at most, and noise against bias: the verdict by `marginal`\n")
        table(_ORACLE, [row for v in report["variants"] for row in oracle_rows(v)])
    where = "public records" if last is not first else "records"
    print(f"\n## Noise floors: RMS change of the verdict's log-odds, nats, on as many {where} as it takes to tell\n")
    table(
        ("model", "records", *_CONDITIONS, "its drift"), [floor_row(v) for v in (last["reference"], *last["variants"])]
    )
    print(
        "\n## Weights or runtime: RMS change of the verdict's log-odds, nats, on as many records as it takes to tell\n"
    )
    table(_SPLIT, [split_row(v) for v in last["variants"] if v["weights_or_runtime"]])
    if all("rate" in v["cost"] for v in first["variants"]):  # it was measured
        print("\n## Cost, over the reference's\n")
        heads = ("variant", "MB", "size", "load", "peak memory", "speed (range)")
        table(heads, [cost_row(v) for v in first["variants"]])
    notices = [f"{v['name']}: {line}" for v in first["variants"] for line in v["notices"]]
    if notices:
        print("\n## What `edgeguard convert` says of them\n")
        print("\n".join(f"- {line}" for line in notices))
    if not k:
        return
    print("\n## K-quants of this model\n")
    rows = [(kind, f"{path.stat().st_size / 1e6:.0f}", " ".join(notices) or "–") for kind, path, notices in k]
    table(("type", "MB", "what `edgeguard convert` says"), rows)


_VERDICT = (
    *("variant", "MB", "changed (at most)", "to safe", "to unsafe", "inside?", "RMS, nats", "floor"),
    *("rank correlation", "ΔAUROC", "ΔAUPRC", "ΔECE", "ΔBrier", "same categories"),
)
_ESTIMATORS = ("variant", "estimator", "codes' RMS Δp", "codes flipped", "Δ micro F1", "Δ micro AUPRC")
_PARTS = ("emission", "calibration", "resolution", "discrimination")
_REPAIR = (
    *("variant", "estimator", "P(unsafe): RMS Δp before", "after", "verdicts flipped before", "after"),
    *("codes: RMS Δp before", "after"),
)
_ORACLE = (
    *("variant", "changed, of the half told on", "the repair undid", "any threshold, at most"),
    *("a linear map fitted here", "not fitted here", "RMS, nats", "bias", "noise", "changed, of all", "by noise alone"),
)
_CONDITIONS = ("threads", "batch", "attention", "neighbours")
_SPLIT = (
    "variant",
    "records",
    "both",
    "weights",
    "activations",
    "flipped by both",
    "by the weights",
    "by the activations",
)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table, numbers to the right."""
    print(f"| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def limits(report: ReportData) -> str:
    """In words."""
    r = report["recommendation"]
    return (
        f"{percent(r['max_flip_rate'])} changed decisions and an AUPRC loss of {r['max_auprc_loss']:g} (upper bounds)"
    )


def verdict_row(v: ReportData) -> list[str]:
    """A variant's verdicts."""
    e = v["estimators"][HEADLINE]
    u = e["labels"]["unsafe"]
    changes, found = e["truth"]["labels"]["unsafe"]["changes"], v["decision"]
    return [
        v["name"],
        f"{v['bytes'] / 1e6:.0f}",
        f"{found['changed']} of {found['of']} ({found['at_most']})",
        str(found["toward_safe"]),
        str(found["toward_unsafe"]),
        verdict(found),
        number(u["shift"]["odds_rms"]),
        number(floor_of(v, HEADLINE)),
        f"{u['shift']['spearman']:.4f}",
        *(interval(changes[key], digits=4) for key in ("auroc", "auprc", "ece", "brier")),
        percent(e["label_sets"]["same"]),
    ]


def estimator_rows(v: ReportData) -> list[list[str]]:
    """A variant's codes under each estimator."""
    found = []
    for name, e in v["estimators"].items():
        codes, overall = e["all_labels"], e["truth"]["overall"]
        changes = [interval(overall[key], digits=4) for key in ("micro_f1", "micro_auprc")]
        found.append([v["name"], name, f"{codes['rms']:.4f}", percent(codes["flips"]["rate"]), *changes])
    return found


def harm_row(v: ReportData) -> list[str]:
    """What the change of the Brier loss is made of."""
    harm = v["estimators"][HEADLINE]["truth"]["labels"]["unsafe"]["harm"]
    return [v["name"], *(interval(harm[part], 1000, 2) for part in ("total", *_PARTS))]


def repair_rows(v: ReportData) -> list[list[str]]:
    """Drift before and after a map fitted to the reference's scores."""
    found = []
    for name, fix in v["repair"].items():
        u, codes = fix["labels"]["unsafe"], [x for label, x in fix["labels"].items() if label != "unsafe"]
        flips = [percent(u[key]["rate"]) for key in ("flips_before", "flips_after")]
        squares = [sum(x[key] ** 2 for x in codes) / len(codes) for key in ("rms_before", "rms_after")]
        rms = [f"{u['rms_before']:.4f}", f"{u['rms_after']:.4f}"]
        found.append([v["name"], name, *rms, *flips, *(f"{s**0.5:.4f}" for s in squares)])
    return found


def oracle_rows(v: ReportData) -> list[list[str]]:
    """A variant's, where a decision changed: no monotone map undoes more than the best threshold for these records."""
    fix, parts = v["repair"][HEADLINE], v["noise_or_bias"]
    found, after = fix["oracle"], fix["labels"]["unsafe"]["flips_after"]
    if parts is None or not parts["changed"]:
        return []
    undone = found["changed"] - round(after["n"] * after["rate"])
    maps = ["–" if found[key] is None else str(found[key]) for key in ("linear", "linear_out_of_fold")]
    nats = [number(parts[key]) for key in ("rms", "bias", "noise")]
    told = f"{found['changed']} of {found['of']}"
    row = [v["name"], told, str(undone), str(found["threshold"]), *maps, *nats]
    return [[*row, f"{parts['changed']} of {parts['records']}", f"{parts['by_noise']:.1f}"]]


def floor_row(v: ReportData) -> list[str]:
    """A model's own noise."""
    there = {name: f[HEADLINE]["labels"]["unsafe"]["odds_rms"] for name, f in v["floor"].items()}
    records = max((f[HEADLINE]["records"] for f in v["floor"].values()), default=0)
    noise = [number(there[c]) if c in there else "–" for c in _CONDITIONS]
    return [v["name"], str(records), *noise, (v.get("noise") or {"verdict": "–"})["verdict"]]


def split_row(v: ReportData) -> list[str]:
    """What the weights did, and what the rounding of activations."""
    parts = [v["weights_or_runtime"][HEADLINE][name] for name in ("total", "weights", "runtime")]
    moved = [*(number(p["odds_rms"]) for p in parts), *(percent(p["flips"]["rate"]) for p in parts)]
    return [v["name"], str(v["weights_or_runtime"]["records"]), *moved]


def cost_row(v: ReportData) -> list[str]:
    """Ratios to the reference; the range is over the measurements of the variant alone."""
    c = v["cost"]
    base = c["rate"]["median"] / c["rate_ratio"]
    speeds = f"{c['rate_ratio']:.2f} ({c['rate']['low'] / base:.2f} … {c['rate']['high'] / base:.2f})"
    size = f"{v['bytes'] / 1e6:.0f}"
    return [v["name"], size, *(f"{c[key]:.2f}" for key in ("size_ratio", "load_ratio", "peak_ratio")), speeds]


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def without(report: ReportData, name: str) -> ReportData:
    """The report but for one variant."""
    return {**report, "variants": [v for v in report["variants"] if v["name"] != name]}


if __name__ == "__main__":
    main()
