"""An evaluation as one page: reliability, precision and recall, thresholds, for the verdict and the categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from edgeguard.charts import marks, page
from edgeguard.charts.frame import Frame, chart
from edgeguard.charts.page import Column
from edgeguard.charts.scale import Scale
from edgeguard.charts.svg import element, joined
from edgeguard.evaluation.baselines import greedy, greedy_verdict, tells_greedy
from edgeguard.evaluation.curves import CalibrationCurve, ThresholdCurve, calibration_curve, threshold_curve
from edgeguard.evaluation.figures import PER_BIN, LabelEvaluation
from edgeguard.evaluation.metrics import Interval
from edgeguard.evaluation.sources import LeftOut
from edgeguard.evaluation.summary import Greedy, Summary

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_UNIT = Scale(0, 1)
_FIGURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false-positive rate",
    "ece": "ECE",
}


@dataclass(frozen=True)
class _Operating:
    """A decision on the curve of precision and recall."""

    name: str
    precision: float
    recall: float


def evaluation_page(
    summary: Summary,
    *,
    source: str,
    labels: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    left_out: LeftOut | None = None,
) -> str:
    """HTML that asks the network for nothing.

    source    the file that was evaluated
    labels    whose curves; None: the verdict, and the categories that some record has
    notes     what is to be said before the figures, a sentence each
    left_out  sources by the fits on the others, where a calibration was held against them
    """
    evaluation = summary.evaluations[summary.main]
    if labels is None:
        labels = [label for label, one in evaluation.labels.items() if label == "unsafe" or one.n_true]
    places = [(_id(label), _title(label)) for label in labels]
    places += [] if left_out is None else [("left-out", "sources left out")]
    told = ", calibrated" if summary.calibrated[summary.main] else ", not calibrated"
    n, unsafe = len(summary.table), int(summary.truth[:, 0].sum())
    about = f"{source}: {n:,} records, {unsafe:,} unsafe. Estimator {summary.main}{told}."
    return page.document(
        f"{summary.identity['guard']} against the truth",
        page.paragraph(about, class_="small"),
        _answer(summary),
        *(page.paragraph(line) for line in notes),
        *(page.paragraph(f"{line}.") for line in summary.notices),
        page.contents(places) if len(places) > 1 else Markup(""),
        _table(summary, labels),
        *(_section(summary, label) for label in labels),
        Markup("") if left_out is None else _left_out(left_out),
        page.paragraph(
            "Intervals are 95 %: Wilson's for shares of records, Newcombe's and DeLong's for AUROC, Boyd's for AUPRC, "
            "the bootstrap's for ECE. A figure or an interval that the records are too few for is left out.",
            class_="small",
        ),
    )


def _left_out(found: LeftOut) -> Markup:
    """Each source by maps fitted on the others, the worst first."""
    columns = [Column("source", number=False), *map(Column, ("records", "unsafe", "mean P(unsafe)", "ECE"))]
    rows: list[list[str | Markup]] = [
        [one.name, f"{one.n:,}", _percent(one.share), _percent(one.mean), _cell(one.ece)]
        for one in sorted(found.sources, key=lambda one: -one.ece.value)
    ]
    said = (
        f"Each source by maps that were fitted on all the others. The worst is {found.worst_source}: ECE "
        f"{found.worst.value:.3f}; so far off may the probabilities be on texts from elsewhere."
    )
    return page.section("Sources left out", page.paragraph(said), page.table(columns, rows), id_="left-out")


def _id(label: str) -> str:
    return "label-" + "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}-" for c in label)


def _title(label: str) -> str:
    return "safe or unsafe" if label == "unsafe" else label


def _answer(summary: Summary) -> Markup:
    """What the decisions are worth, in a sentence."""
    verdict = summary.evaluations[summary.main].labels["unsafe"]
    recall, fpr = verdict.figures["recall"], verdict.figures["false_positive_rate"]
    unsafe = int(summary.truth[:, 0].sum())
    parts = []
    if not math.isnan(recall.value):
        parts.append(f"finds {_percent(recall.value)} of the unsafe records ({_ends(recall)})")
    if not math.isnan(fpr.value):
        parts.append(f"flags {_percent(fpr.value)} of the safe ones ({_ends(fpr)})")
    threshold = summary.thresholds[summary.main].of("unsafe")
    categories = ", or a category over its own" if _categories_flag(summary) else ""
    said = f"As decided (unsafe from {threshold:.4g} on{categories}), the guard {' and '.join(parts)}."
    if summary.greedy is not None and parts:
        said += _greedy_answer(summary.greedy)
    return page.paragraph(said, class_="answer" if 0 < unsafe < len(summary.table) else "answer open")


def _greedy_answer(found: Greedy) -> str:
    recall, fpr = found.figures["recall"].value, found.figures["false_positive_rate"].value
    parts = [] if math.isnan(recall) else [f"finds {_percent(recall)}"]
    parts += [] if math.isnan(fpr) else [f"flags {_percent(fpr)}"]
    over = found.over.get("micro_f1")
    micro = (
        "" if over is None else f"; over the categories together the decision's F1 is {over.value:+.3f} beside its own"
    )
    return f" Its greedy answer {' and '.join(parts)}{micro}."


def _categories_flag(summary: Summary) -> bool:
    """Whether a category over its threshold makes a record unsafe."""
    return len(summary.table.labels) > 1 and not summary.thresholds[summary.main].two_stage


def _ends(figure: Interval) -> str:
    return "no interval" if math.isnan(figure.low) else f"{_percent(figure.low)} to {_percent(figure.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(summary: Summary, labels: Sequence[str]) -> Markup:
    found = summary.evaluations[summary.main].labels
    columns = [Column("label", number=False), Column("records"), *(Column(name) for name in _FIGURES.values())]
    rows = [
        [label, f"{found[label].n_true:,}", *(_cell(found[label].figures[key]) for key in _FIGURES)] for label in labels
    ]
    return page.table(columns, rows, caption="Figures with their intervals")


def _cell(figure: Interval) -> Markup:
    if math.isnan(figure.value):
        return Markup("")
    if math.isnan(figure.low):
        return Markup(f"{figure.value:.3f}")
    return joined(f"{figure.value:.3f} ", element("span", f"({figure.low:.3f}–{figure.high:.3f})", class_="whole"))


def _section(summary: Summary, label: str) -> Markup:
    i = summary.table.labels.index(label)
    y_true, y_prob = summary.truth[:, i], summary.decided[summary.main].y_prob[:, i]
    n_true, found = int(y_true.sum()), summary.evaluations[summary.main].labels[label]
    if n_true in (0, len(y_true)):
        missing = "No record has it" if n_true == 0 else "Every record has it"
        reason = page.paragraph(f"{missing}: there are no curves. Records of both kinds would give them.")
        return page.section(_title(label), reason, id_=_id(label))
    threshold, curve = summary.thresholds[summary.main].of(label), threshold_curve(y_true, y_prob)
    drawn = [
        _precision_recall(
            label,
            curve,
            n_true / len(y_true),
            _operating(summary, label, found),
            label == "unsafe" and _categories_flag(summary),
        ),
        _thresholds(label, curve, threshold),
    ]
    bins = calibration_curve(y_true, y_prob)
    parts: list[Markup] = []
    if bins is None:
        parts.append(
            page.paragraph(
                f"No reliability curve: {len(y_true)} records do not fill two bins of {PER_BIN} different ones.",
                class_="small",
            )
        )
    else:
        drawn.insert(0, _reliability(label, bins, summary.calibrated[summary.main]))
    return page.section(_title(label), page.figures(*drawn), *parts, id_=_id(label))


def _reliability(label: str, bins: CalibrationCurve, calibrated: bool) -> Markup:
    found = zip(bins.prob_pred, bins.prob_true, bins.low, bins.high, bins.count, strict=True)
    points = [
        marks.Point(
            p, t, f"said {p:.3f}, were {t:.3f} ({low:.3f} to {high:.3f}) of {n} records", y_low=low, y_high=high
        )
        for p, t, low, high, n in found
    ]
    outside = int(((bins.prob_pred < bins.low) | (bins.prob_pred > bins.high)).sum())
    told = f"{len(points)} bins; in {outside} the probability lies outside of the interval of what was true"
    frame = Frame(
        f"Reliability of {_title(label)}",
        f"{told}.",
        _UNIT,
        _UNIT,
        "mean probability (prob_pred)",
        "share that is true (prob_true)",
    )
    drawn = chart(frame, lambda x, y: joined(marks.diagonal(x, y), marks.points(x, y, points)))
    sizes = f"{bins.count.min()}" + (f" to {bins.count.max()}" if bins.count.min() != bins.count.max() else "")
    caption = f"{len(points)} bins of equal count ({sizes} records each), 95 % intervals. " + (
        "On the dashed line a probability means what it says." if calibrated else "The model's own, not calibrated."
    )
    rows = [
        [f"{p:.4f}", f"{t:.4f}", f"{low:.4f}–{high:.4f}", f"{n:,}"]
        for p, t, low, high, n in zip(bins.prob_pred, bins.prob_true, bins.low, bins.high, bins.count, strict=True)
    ]
    columns = [Column("prob_pred", number=False), Column("prob_true"), Column("95 % interval"), Column("records")]
    return page.figure(
        "Reliability", drawn, page.details("The bins as numbers", page.table(columns, rows)), caption=caption
    )


def _operating(summary: Summary, label: str, found: LabelEvaluation) -> list[_Operating]:
    """As decided, at the best threshold, and as the greedy answer has it, where each has a precision."""
    i, table = summary.table.labels.index(label), summary.table
    y_true = summary.truth[:, i]
    points = [_Operating("as decided", found.figures["precision"].value, found.figures["recall"].value)]
    if found.best is not None and found.best.met:
        points.append(
            _Operating(f"best {str(summary.goal).replace('f1', 'F1')}", found.best.precision, found.best.recall)
        )
    if tells_greedy(table):
        y_pred = greedy_verdict(table) if i == 0 else greedy(table)[:, i - 1]
        tps, predicted = int((y_true & y_pred).sum()), int(y_pred.sum())
        points.append(_Operating("greedy", tps / predicted if predicted else math.nan, tps / int(y_true.sum())))
    return [p for p in points if not math.isnan(p.precision) and (p.precision or p.recall)]


def _precision_recall(
    label: str, curve: ThresholdCurve, prevalence: float, found: Sequence[_Operating], flag: bool
) -> Markup:
    """flag: whether categories can make a record unsafe, so that the decision is off the curve."""
    told = "; ".join(f"{p.name}: precision {p.precision:.3f}, recall {p.recall:.3f}" for p in found)
    frame = Frame(
        f"Precision and recall of {_title(label)}",
        f"{told}. By chance: precision {prevalence:.3f}.",
        _UNIT,
        _UNIT,
        "recall",
        "precision",
    )
    recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]

    def draw(x: Scale, y: Scale) -> Markup:
        parts = [
            marks.level(x, y, prevalence, f"by chance {prevalence:.2f}", left=True),
            marks.steps(x, y, recall, precision),
            *(
                marks.points(x, y, [marks.Point(p.recall, p.precision, p.name)], number=i + 1)
                for i, p in enumerate(found)
            ),
            marks.labels(x, y, [(p.recall, p.precision, p.name) for p in found]),
        ]
        return joined(*parts)

    caption = f"{told[:1].upper()}{told[1:]}."
    if flag:
        caption += " As decided a record is unsafe too where a category is over its own threshold."
    return page.figure("Precision and recall", chart(frame, draw), caption=caption)


def _thresholds(label: str, curve: ThresholdCurve, threshold: float) -> Markup:
    x_values = [0.0, *curve.thresholds[::-1], 1.0]
    lines = (
        ("precision", [math.nan, *curve.precision[::-1], math.nan]),
        ("recall", [1.0, *curve.recall[::-1], 0.0]),
        ("false-positive rate", [1.0, *curve.fpr[::-1], 0.0]),
    )
    at = int(np.searchsorted(curve.thresholds[::-1], threshold))
    names = [name for name, _ in lines]
    values = [line[at + 1] for _, line in lines]
    said = ", ".join(f"{n} {'none' if math.isnan(v) else f'{v:.3f}'}" for n, v in zip(names, values, strict=True))
    frame = Frame(
        f"Thresholds of {_title(label)}",
        f"At the threshold of {threshold:.4g}: {said}.",
        _UNIT,
        _UNIT,
        "threshold of the probability",
        "share",
    )

    def draw(x: Scale, y: Scale) -> Markup:
        curves = [marks.steps(x, y, x_values, line, number=i) for i, (_, line) in enumerate(lines)]
        return joined(*curves, marks.upright(x, y, threshold, f"threshold {threshold:.3g}"))

    caption = f"At the threshold of {threshold:.4g}: {said}."
    return page.figure("Thresholds", marks.legend(names, lines=True), chart(frame, draw), caption=caption)
