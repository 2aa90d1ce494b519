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


@dataclass(frozen=True)
class Rule:
    """What the files are held against.

    ship      the name of the file to ship; None where there is none
    limit     the share of decisions that may change; None where another limit was given alone
    verdicts  name → "keeps", "breaks", "too_few"
    needed    name → records that would do, about
    asked     whether limits were given; else it is the default rule, `said`
    """

    ship: str | None
    limit: float | None
    verdicts: Mapping[str, str]
    needed: Mapping[str, int | None]
    asked: bool
    said: str = ""


def rule_of(report: ReportData) -> Rule:
    """The limits that were given, or the rule that stands in for them."""
    recommendation, variants = report["recommendation"], report["variants"]
    default = recommendation["without_limits"]
    if default is not None:
        return Rule(
            default["ship"], default["limit"], default["verdicts"], default["records_needed"], False, default["rule"]
        )
    decisions = {v["name"]: v["decision"] for v in variants}
    return Rule(
        recommendation["ship"],
        recommendation["limits"]["max_flip_rate"],
        {name: decision["verdict"] for name, decision in decisions.items()},
        {name: decision["records_needed"] for name, decision in decisions.items()},
        True,
    )


def answer(report: ReportData) -> Answer:
    """Read a report. Without limits it answers by the rule that the report has for that."""
    rule, reference = rule_of(report), report["reference"]["name"]
    chosen = next((v for v in report["variants"] if v["name"] == rule.ship), None)
    open_ones = [v for v in report["variants"] if rule.verdicts[v["name"]] == "too_few"]
    if chosen is not None:
        return Answer("ship", chosen["name"], shipped(chosen, report), _further(report, rule, chosen))
    if open_ones:
        return Answer("too_few", reference, too_few(open_ones, report, rule), _further(report, rule, None))
    return Answer("reference", reference, none_keeps(report, rule), _further(report, rule, None))


# The first sentence


def shipped(variant: ReportData, report: ReportData) -> str:
    """`Ship q8_0: 145 MB instead of 540, 2.1 times as fast; of 1,000 records 6 decisions change (at most 13), …`."""
    here, there = (megabytes(model["bytes"]) for model in (variant, report["reference"]))
    size = f"{here} MB, as large as the reference" if here == there else f"{here} MB instead of {there}"
    speed = speed_of(variant)
    costs = f"{size}, {speed}" if speed else size
    return f"Ship {variant['name']}: {costs}; {changes(variant['decision'])}."


def too_few(open_ones: Sequence[ReportData], report: ReportData, rule: Rule) -> str:
    """Which file cannot be decided, and how many records would do: the one that would be inside the soonest."""

    def soonest(variant: ReportData) -> tuple[bool, float, int]:
        decision, needed = variant["decision"], rule.needed[variant["name"]]
        outside = rule.limit is not None and decision["changed"] > rule.limit * decision["of"]
        return outside, needed or float("inf"), variant["bytes"]

    nearest = min(open_ones, key=soonest)
    reference = report["reference"]["name"]
    of, needed = nearest["decision"]["of"], rule.needed[nearest["name"]]
    enough = f"about {count(needed)} would do" if needed else "no number would do, so near is it to the limit"
    return (
        f"Too few records to say whether {nearest['name']} keeps inside {limits_in_words(report, rule)}: {count(of)} "
        f"{'was' if of == 1 else 'were'} scored, {enough}; until then ship the reference, {reference}."
    )


def none_keeps(report: ReportData, rule: Rule) -> str:
    """All are decided, and none is inside."""
    reference = report["reference"]
    ship = f"ship the reference, {reference['name']}, {megabytes(reference['bytes'])} MB"
    if not report["variants"]:
        return f"No file was compared: {ship}."
    return f"None keeps inside {limits_in_words(report, rule)}: {ship}."


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


def mending(variant: ReportData, estimator: str) -> str:
    """`q4_0: of 23 changed decisions a new threshold could undo at most 4; the rest is noise of single records`.

    "" where none changed, and of a report that was made before this was told.
    """
    found = variant["repair"][estimator].get("oracle")
    if not found or not found["changed"]:
        return ""
    n, undone, more = found["changed"], found["threshold"], found["linear_out_of_fold"] or 0
    said = f"{variant['name']}: of {count(n)} changed decision{'' if n == 1 else 's'} a new threshold could undo "
    if undone == n:
        return f"{said}{'it' if n == 1 else 'all'}"
    said += f"at most {count(undone)}" if undone else "none"
    said += f", a linear map of all scores {count(more)}" if more > undone else ""
    return f"{said}; {'the rest' if undone or more else 'it'} is noise of single records"


# What goes with it


def _further(report: ReportData, rule: Rule, chosen: ReportData | None) -> tuple[str, ...]:
    said = []
    if not rule.asked:
        said.append(f"No limit was given; by the default rule it is {rule.said}.")
    elif chosen is not None:
        said.append(f"It is the smallest file inside {limits_in_words(report, rule)}, at 95 % confidence.")
    others = [v for v in report["variants"] if chosen is None or (v["bytes"] <= chosen["bytes"] and v is not chosen)]
    for verdict, words in (("breaks", "not inside the limits"), ("too_few", "too few records to say")):
        names = [v["name"] for v in others if rule.verdicts[v["name"]] == verdict]
        if verdict == "too_few" and 1 < len(names) == len(report["variants"]):
            said.append(f"That holds for all {len(names)} files.")
        elif names and (chosen is not None or verdict == "breaks" or len(names) > 1):
            begin = "Smaller, but " + words if chosen is not None else words[0].upper() + words[1:]
            said.append(f"{begin}: {', '.join(names)}.")
    if failed := report["failed"]:
        said.append(f"Not scored, and in no figure: {count(failed)} record{'' if failed == 1 else 's'}.")
    return tuple(said)


def limits_in_words(report: ReportData, rule: Rule) -> str:
    """`2 % of changed decisions and 0.01 of AUPRC`."""
    said = [] if rule.limit is None else [f"{percent(rule.limit)} of changed decisions"]
    loss = report["recommendation"]["limits"]["max_auprc_loss"] if rule.asked else None
    return " and ".join([*said, *([] if loss is None else [f"{loss:g} of AUPRC lost"])])


def megabytes(n_bytes: int) -> str:
    """Of a file, to the MB; below 10 MB to a tenth, and never 0."""
    size = n_bytes / 1e6
    return f"{size:,.0f}" if size >= 10 else f"{size:.1f}" if size >= 0.1 else f"{size:.2g}"


def count(n: float) -> str:
    """A number of things: 1,000."""
    return f"{n:,.0f}"
