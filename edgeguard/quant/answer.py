"""What a study answers, in sentences: which file to ship, how sure that is, and what it costs. From the report's data.

The page begins with them, and a terminal may end with them: the same words in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeguard.quant.reading import percent

ReportData = Mapping[str, Any]
Kind = Literal["ship", "reference", "too_few"]

VERDICTS = {"keeps": "keeps inside", "breaks": "does not", "too_few": "too few records to say", None: "no limit"}


@dataclass(frozen=True)
class Answer:
    """What to do.

    kind     "ship" a variant; the "reference", since none keeps inside the limits; "too_few" records to say
    file     the name of the file to ship now: of "too_few", the reference, until there are more records
    first    the one sentence that answers
    further  what goes with it: limits, the other files, records that were not scored
    """

    kind: Kind
    file: str
    first: str
    further: tuple[str, ...]


def answer(report: ReportData) -> Answer:
    """Read a report: with `recommendation.ship`, and each variant's `decision`."""
    ship = report["recommendation"]["ship"]
    chosen = next((v for v in report["variants"] if v["name"] == ship), None)
    open_ones = [v for v in report["variants"] if v["decision"]["verdict"] == "too_few"]
    reference = report["reference"]["name"]
    if chosen is not None:
        return Answer("ship", chosen["name"], shipped(chosen, report), _further(report, chosen))
    if open_ones:
        return Answer("too_few", reference, too_few(open_ones, report), _further(report, None))
    return Answer("reference", reference, none_keeps(report), _further(report, None))


# The first sentence


def shipped(variant: ReportData, report: ReportData) -> str:
    """`Ship q8_0: 145 MB instead of 540, 2.1 times as fast; of 1,000 records 6 decisions change (at most 13), …`."""
    here, there = (megabytes(model["bytes"]) for model in (variant, report["reference"]))
    size = f"{here} MB, as large as the reference" if here == there else f"{here} MB instead of {there}"
    speed = speed_of(variant)
    costs = f"{size}, {speed}" if speed else size
    return f"Ship {variant['name']}: {costs}; {changes(variant['decision'])}."


def too_few(open_ones: Sequence[ReportData], report: ReportData) -> str:
    """Which file cannot be decided, and how many records would do; of several the one that needs fewest."""
    nearest = min(open_ones, key=lambda v: (v["decision"]["records_needed"] or float("inf"), v["bytes"]))
    decision = nearest["decision"]
    needed = decision["records_needed"]
    enough = f"about {count(needed)} would do" if needed else "more are needed"
    return (
        f"Too few records to say whether {nearest['name']} keeps inside the limits: {count(decision['of'])} were "
        f"scored, {enough}; until then ship the reference, {report['reference']['name']}."
    )


def none_keeps(report: ReportData) -> str:
    """All are decided, and none is inside."""
    limits = limits_in_words(report)
    reference = report["reference"]
    return (
        f"None keeps inside {'the limit' if limits.count('%') + limits.count('AUPRC') < 2 else 'the limits'}"
        f"{f' ({limits})' if limits else ''}: ship the reference, {reference['name']}, "
        f"{megabytes(reference['bytes'])} MB."
    )


def changes(decision: ReportData) -> str:
    """`of 1,000 records 6 decisions change (at most 13), 4 of them toward safe`."""
    n, of, most = decision["changed"], decision["of"], decision["at_most"]
    bound = f" (at most {count(most)})" if most is not None else ""
    said = f"of {count(of)} record{'' if of == 1 else 's'} "
    if not n:
        return f"{said}no decision changes{bound}"
    said += f"{count(n)} decision{' changes' if n == 1 else 's change'}{bound}"
    safe, unsafe = decision["toward_safe"], decision["toward_unsafe"]
    if n == 1:
        return f"{said}, toward {'safe' if safe else 'unsafe'}"
    if not safe or not unsafe:
        return f"{said}, all toward {'safe' if safe else 'unsafe'}"
    return f"{said}, {count(safe)} of them toward safe"


def speed_of(variant: ReportData) -> str:
    """`2.1 times as fast`; "" where it was not measured."""
    ratio = variant["cost"].get("rate_ratio")
    if ratio is None:
        return ""
    rounded = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    return "as fast" if rounded == "1.0" else f"{rounded} times as fast"


# What goes with it


def _further(report: ReportData, chosen: ReportData | None) -> tuple[str, ...]:
    said = []
    if limits := limits_in_words(report):
        said.append(f"The limit: {limits}." if chosen is None else f"It is the smallest file inside the limit: {limits}.")
    others = [v for v in report["variants"] if v is not chosen]
    if chosen is not None:
        others = [v for v in others if v["bytes"] < chosen["bytes"]]
    for verdict, words in (
        ("breaks", "not inside the limit"),
        ("too_few", "too few records to say"),
    ):
        names = [v["name"] for v in others if v["decision"]["verdict"] == verdict]
        if names:
            said.append(f"{'Smaller, but ' if chosen is not None else ''}{words}: {', '.join(names)}.")
    if report["failed"]:
        n = report["failed"]
        said.append(f"{count(n)} record{' was' if n == 1 else 's were'} not scored and {'is' if n == 1 else 'are'} in no figure.")
    return tuple(said)


def limits_in_words(report: ReportData) -> str:
    """`at most 2 % of the decisions change, AUPRC loses at most 0.01`; "" where none was given."""
    limits, said = report["recommendation"]["limits"], []
    if limits.get("max_flip_rate") is not None:
        said.append(f"at most {percent(limits['max_flip_rate'])} of the decisions change")
    if limits.get("max_auprc_loss") is not None:
        said.append(f"AUPRC loses at most {limits['max_auprc_loss']:g}")
    return ", ".join(said)


def megabytes(n_bytes: int) -> str:
    """Of a file, to the MB; below 10 MB to a tenth, and never 0."""
    size = n_bytes / 1e6
    return f"{size:,.0f}" if size >= 10 else f"{size:.1f}" if size >= 0.1 else f"{size:.2g}"


def count(n: float) -> str:
    """A number of things: 1,000."""
    return f"{n:,.0f}"
