"""The tables of a study's page, from the report's data. What is not told apart from no change is grey."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edgeguard.charts.page import Column, paragraph
from edgeguard.charts.page import table as drawn
from edgeguard.charts.svg import element, joined
from edgeguard.quant.answer import ReportData, Rule, count, megabytes, rule_of
from edgeguard.quant.reading import floor_of, interval, number, percent, repaired
from edgeguard.quant.reading import verdict as words_of

NOT_TOLD = "≈"  # before a figure that is not told apart from no change: what is grey is marked without colour too
SHOWN = 200  # changed records of a file on the page; the others are in report.json
LETTERS = 280  # of a record's text


def files(report: ReportData) -> Markup:
    """What each file changes and costs, the reference last."""
    rule = rule_of(report)
    rows = [_file(v, rule) for v in by_size(report)]
    reference = report["reference"]
    rows.append([f"{reference['name']} (reference)", megabytes(reference["bytes"]), *[""] * 5, *_costs(reference)])
    heads = (
        *("file", "MB", "changed", "at most", "to safe", "to unsafe", "inside?"),
        *("speed", "records per second", "peak memory, MiB"),
    )
    return _filled(heads, rows, strong=rule_of(report).ship)


def _file(variant: ReportData, rule: Rule) -> list[str | Markup]:
    decision, verdict = variant["decision"], rule.verdicts[variant["name"]]
    judged = words_of({"verdict": verdict, "records_needed": rule.needed[variant["name"]]})
    return [
        variant["name"],
        megabytes(variant["bytes"]),
        f"{count(decision['changed'])} of {count(decision['of'])}",
        count(decision["at_most"]),
        count(decision["toward_safe"]),
        count(decision["toward_unsafe"]),
        grey(judged, sign="") if verdict == "too_few" else judged,
        *_costs(variant),
    ]


def _costs(model: ReportData) -> list[str]:
    cost = model["cost"]
    ratio, rate, peak = cost.get("rate_ratio"), cost.get("rate"), cost.get("peak")
    return [
        "" if ratio is None else f"{ratio:.2f}×",
        "" if rate is None else number_of(rate["median"]),
        "" if peak is None else count(peak["median"]),
    ]


def number_of(x: float) -> str:
    """A figure of no more than three digits."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def changed(variant: ReportData) -> Markup | None:
    """The records whose decision changed; None where none did."""
    records = variant["changed_records"]
    if not records:
        return None
    heads = ["record", "line", "reference", variant["name"], "decision"]
    with_texts = any(record.get("text") is not None for record in records)
    rows: list[list[str | Markup]] = []
    for record in records[:SHOWN]:
        row: list[str | Markup] = [
            str(record["id"]),
            str(record["line"]),
            f"{record['before']:.3f}",
            f"{record['after']:.3f}",
            f"{record['from']} → {record['to']}",
        ]
        rows.append([*row, _beginning(record.get("text") or "")] if with_texts else row)
    more = len(records) - SHOWN
    note = f"{count(more)} more are in report.json." if more > 0 else ""
    return joined(
        table([*heads, "text"] if with_texts else heads, rows), paragraph(note, class_="small") if note else Markup()
    )


def _beginning(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def drift(report: ReportData, estimator: str) -> Markup:
    """How far the verdict's log-odds move, against the model's own noise, and what made them move."""
    rows: list[list[str | Markup]] = []
    for v in by_size(report):
        figures, parts, noise = v["estimators"][estimator], v["weights_or_runtime"], v["noise"]
        moved = number(figures["labels"]["unsafe"]["shift"]["odds_rms"])
        each = ["", "", ""]
        if parts is not None:
            each = [
                str(parts["records"]),
                *(number(parts[estimator][key]["odds_rms"]) for key in ("weights", "runtime")),
            ]
        rows.append(
            [
                v["name"],
                grey(moved) if noise is not None and noise["verdict"] != "beyond" else moved,
                number(floor_of(v, estimator)),
                "" if noise is None else noise["verdict"],
                *each,
                percent(repaired(v, estimator)),
                percent(figures["label_sets"]["same"]),
            ]
        )
    heads = (
        *("file", "RMS", "floor", "beyond it?", "records apart", "weights alone", "activations alone", "repaired"),
        "same categories",
    )
    return _filled(heads, rows, strong=rule_of(report).ship)


def mending(report: ReportData, estimator: str) -> Markup | None:
    """What a repair undid, and what it could at most; None where nothing changed, or an old report does not say it."""
    rows: list[list[str]] = []
    for v in by_size(report):
        fix = v["repair"][estimator]
        found, parts = fix.get("oracle"), v.get("noise_or_bias")
        if not found or not found["changed"]:
            continue
        flips = fix["labels"]["unsafe"]["flips_after"]
        undone = found["changed"] - round(flips["n"] * flips["rate"])
        nats = ["", "", ""] if parts is None else [number(parts["bias"]), number(parts["noise"])]
        if parts is not None:
            nats.append(f"{number(parts['by_noise'])} of {count(parts['changed'])}")
        maps = ["" if found[key] is None else count(found[key]) for key in ("linear", "linear_out_of_fold")]
        changed = f"{count(found['changed'])} of {count(found['of'])}"
        rows.append([v["name"], changed, count(undone), count(found["threshold"]), *maps, *nats])
    heads = (
        *(
            "file",
            "changed",
            "repair undid",
            "a threshold, at most",
            "a linear map, fitted here",
            "a linear map, not fitted here",
        ),
        *("bias, nats", "noise, nats", "noise alone changes"),
    )
    return _filled(heads, rows, strong=rule_of(report).ship) if rows else None


def by_distance(report: ReportData, estimator: str) -> Markup | None:
    """Changed decisions by the reference's distance from the threshold; None where none changed."""
    rows, heads = [], ["file"]
    for v in by_size(report):
        bins = v["estimators"][estimator]["labels"]["unsafe"]["flips_by_margin"]
        heads = ["file", *(_bin(b["from"], b["to"]) for b in bins)]
        rows.append([v["name"], *(f"{count(round(b['n'] * (b['rate'] or 0)))} of {count(b['n'])}" for b in bins)])
    if all(cell.startswith("0 of") for row in rows for cell in row[1:]):
        return None
    return table(heads, rows, strong=rule_of(report).ship)


def _bin(low: float, high: float | None) -> str:
    return f"{low:g} or more nats" if high is None else f"{low:g} to {high:g} nats"


def quality(report: ReportData, estimator: str) -> Markup | None:
    """What the labels say of each file; None where no figure can be had of them."""
    rows = []
    for v in by_size(report):
        changes = v["estimators"][estimator]["truth"]["labels"]["unsafe"]["changes"]
        rows.append([v["name"], *(told(changes.get(key)) for key in ("auroc", "auprc", "f1", "brier", "ece"))])
    heads = ("file", "ΔAUROC", "ΔAUPRC", "ΔF1", "ΔBrier", "ΔECE")
    return _filled(heads, rows, strong=rule_of(report).ship) if any(any(row[1:]) for row in rows) else None


def told(found: Mapping[str, Any] | None, factor: float = 1.0, digits: int = 3) -> str | Markup:
    """A change with its 95 % interval: grey where the interval holds nought, or few records give none."""
    if found is None or found["value"] is None:
        return ""
    low, high = found["low"], found["high"]
    if all(round((x or 0.0) * factor, digits) == 0 for x in (found["value"], low, high)):
        return grey("0")
    value, bracket, rest = interval(_turned(found) if factor < 0 else found, abs(factor), digits).partition(" (")
    said = joined(value, bracket, unbroken(rest))
    return grey(said) if low is None or low <= 0 <= high else said


def _turned(found: Mapping[str, Any]) -> dict[str, Any]:
    """The change with the other sign."""
    minus = {key: None if found[key] is None else -found[key] for key in ("value", "low", "high")}
    return {"value": minus["value"], "low": minus["high"], "high": minus["low"]}


HARM = {  # of drift.PARTS → what it is, for a head
    "total": "all of it",
    "emission": "off the grammar",
    "calibration": "can be calibrated away (calibration)",
    "resolution": "scores that tie (resolution)",
    "discrimination": "the variant tells apart less well (discrimination)",
}


def harm(report: ReportData, estimator: str) -> Markup | None:
    """The change of the Brier loss and its parts as wholly wrong answers in 1,000 records, and pairs sorted wrongly."""
    rows = []
    for v in by_size(report):
        unsafe = v["estimators"][estimator]["truth"]["labels"]["unsafe"]
        parts = unsafe.get("harm")
        if parts:
            pairs = told(unsafe["changes"].get("auroc"), -1000, 1)
            rows.append([v["name"], *(told(parts[part], 1000, 1) for part in HARM), pairs])
    heads = ("file", *HARM.values(), "pairs sorted wrongly, of 1,000")
    return table(heads, rows, strong=rule_of(report).ship) if rows else None


def by_label(report: ReportData, estimator: str) -> Markup:
    """How far each label's probability moves: a line a label, since there may be forty."""
    variants = by_size(report)
    shifts = [v["estimators"][estimator]["labels"] for v in variants]
    rows = [[label, *(f"{s[label]['shift']['rms']:.3f}" for s in shifts)] for label in ("unsafe", *report["labels"])]
    return table(("label", *(v["name"] for v in variants)), rows)


def further(report: ReportData) -> Markup | None:
    """What else the answers say: how far each of these labels' probabilities moves; None where they say nothing."""
    variants = by_size(report)
    labels = list(variants[0]["fields"]) if variants else []
    rows = [
        [label, *(f"{v['fields'][label]['mean']:.3f} ({v['fields'][label]['p99']:.3f})" for v in variants)]
        for label in labels
    ]
    return table(("label", *(v["name"] for v in variants)), rows) if rows else None


def estimators(report: ReportData) -> Markup:
    """The categories together, by each estimator."""
    variants = by_size(report)
    names = list(variants[0]["estimators"]) if variants else []
    rows = []
    for v in variants:
        each = (v["estimators"][name]["all_labels"] for name in names)
        rows.append([v["name"], *(cell for e in each for cell in (f"{e['rms']:.4f}", percent(e["flips"]["rate"])))])
    heads = ["file", *(head for name in names for head in (f"{name}: RMS Δp", f"{name}: decisions that change"))]
    return table(heads, rows, strong=rule_of(report).ship)


def models(report: ReportData) -> Markup:
    """Which files these were."""
    rows = [
        [v["name"], v["file"], v["quantization"], element("code", v["sha256"])]
        for v in [report["reference"], *by_size(report)]
    ]
    return table(("name", "file", "type", "sha256"), rows)


def by_size(report: ReportData) -> list[ReportData]:
    """The variants, the smallest first: as the picture has them."""
    return sorted(report["variants"], key=lambda v: (v["bytes"], v["name"]))


def _filled(heads: Sequence[str], rows: Sequence[Sequence[str | Markup]], *, strong: str | None) -> Markup:
    """Without the columns that are empty in all rows."""
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    return table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], strong=strong)


WORDS = ("inside?", "beyond it?", "decision", "text", "file", "type", "sha256")  # columns that hold no numbers


def table(heads: Sequence[str], rows: Iterable[Sequence[str | Markup]], *, strong: str | None = None) -> Markup:
    """The row whose head is `strong` stands out."""
    rows = list(rows)
    columns = [Column(head, number=i > 0 and head not in WORDS) for i, head in enumerate(heads)]
    return drawn(columns, rows, classes=["chosen" if row[0] == strong else "" for row in rows])


def unbroken(said: str) -> Markup:
    """Words that stay on one line."""
    return joined(said).replace(" ", Markup("&nbsp;"))


def grey(said: str | Markup, sign: str = NOT_TOLD) -> Markup:
    """What says nothing: grey, and with a sign of its own."""
    before = Markup("{}&nbsp;").format(sign) if sign else Markup()
    return element("span", before, said, class_="no-finding")
