"""Whether a profile fits a model: the two texts of its self-test side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable, shortened
from edgeguard.guard import QuestionResult, SelfTestResult
from edgeguard.ports import Finding
from edgeguard.selftest import SelfTestPair

_FIRST = 3  # likeliest beginnings of an answer that are shown


def print_self_test(test: SelfTestPair, names: Mapping[str, str]) -> None:
    """What the guard made of the two texts, each question's answers, and what is wrong. `names`: of the codes."""
    console = plain_console()
    console.print(Text(f"{printable(test.guard)} with profile {printable(test.profile)}"), soft_wrap=True)
    console.print()
    console.print(_texts_table(test, names))
    if len(test.safe.questions) > 1:
        console.print()
        console.print(_questions_table(test, names))
    console.print()
    for problem in test.problems:
        _mark(console, "✗", printable(problem), "bold red")
    if not test.problems:
        _mark(console, "✓", f"the profile fits the model: {_verdicts(test)}", "bold green")
    for note in (*test.notes, test.prompt.summary):
        _mark(console, "·", printable(note))
    for finding in test.prompt.findings:
        _print_finding(console, finding)


def _verdicts(test: SelfTestPair) -> str:
    return (
        f"the texts get different verdicts, {test.apart:.2f} nats apart, P(unsafe) "
        f"{test.safe.unsafe:.2f} and {test.unsafe.unsafe:.2f}"
    )


def _mark(console: Console, mark: str, text: str, style: str = "") -> None:
    """A sentence behind a mark, its further lines behind the mark too."""
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(mark, style), Text(text, style))
    console.print(line)


def _print_finding(console: Console, finding: Finding) -> None:
    line = Table.grid(padding=(0, 1))
    line.add_row("-", Text(printable(finding.text)))
    console.print(Padding(line, (0, 0, 0, 2), expand=False))
    if finding.published or finding.ported:
        both = Table.grid(padding=(0, 1))
        both.add_column(style="dim", no_wrap=True)
        both.add_column(overflow="fold")
        both.add_row("published", Text(finding.published or "nothing"))
        both.add_row("the file", Text(finding.ported or "nothing"))
        console.print(Padding(both, (0, 0, 0, 4), expand=False))


# Tables


def _texts_table(test: SelfTestPair, names: Mapping[str, str]) -> Table:
    """A row for each thing that is said of both texts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("known safe", "known unsafe"):
        table.add_column(name, overflow="fold")
    both = (test.safe, test.unsafe)

    def row(name: str, *cells: str | Text) -> None:
        table.add_row(Text(printable(name)), *(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    row("text", *(shortened(printable(result.text), 60) for result in both))
    row("verdict", *map(_verdict, both))
    row(f"P(unsafe), threshold {test.thresholds['unsafe']:.3g}", *(f"{result.unsafe:.4f}" for result in both))
    row("log-odds, nats", *(f"{result.margin:+.2f}" for result in both))
    if any(result.category_scores for result in both):
        row("likeliest category", *(_likeliest(result, names) for result in both))
    if any(result.no_code is not None for result in both):
        row("unsafe, no code named", *map(_no_code, both))
    row("on the grammar", *map(_on_grammar, both))
    if any(result.decided_by is not None for result in both):
        row("decided by", *(printable(result.decided_by or "") for result in both))
    for field in test.safe.fields:
        row(field, *(_field(result.fields[field]) for result in both))
    row("answers begin", *map(_first_tokens, both))
    return table


def _verdict(result: SelfTestResult) -> Text:
    return Text("FLAGGED", "bold red") if result.flagged else Text("ok", "green")


def _likeliest(result: SelfTestResult, names: Mapping[str, str]) -> str:
    if not result.category_scores:
        return ""
    code = max(result.category_scores, key=lambda c: result.category_scores[c])
    name = names.get(code, code)
    return printable(f"{code}{'' if name == code else f' {name}'} {result.category_scores[code]:.4f}")


def _no_code(result: SelfTestResult) -> str:
    if result.no_code is None:
        return ""
    lower, upper = result.no_code
    return f"{lower:.4f}" if upper - lower < 0.00005 else f"{lower:.4f} to {upper:.4f}"


def _on_grammar(result: SelfTestResult) -> str:
    asked = "" if result.worst.question is None else f" ({printable(result.worst.question)})"
    return f"{result.grammar_mass:.4f}{asked}"


def _field(said: Mapping[str, float]) -> str:
    return "  ".join(f"{printable(label)} {p:.2f}" for label, p in said.items())


def _first_tokens(result: SelfTestResult) -> str:
    """Of the question that decided."""
    decided = next(q for q in result.questions if q.question == result.decided_by)
    return "  ".join(f"{printable(repr(t)[1:-1])} {p:.2f}" for t, p in decided.first_tokens[:_FIRST])


def _questions_table(test: SelfTestPair, names: Mapping[str, str]) -> Table:
    """Each question's answers about both texts, a star where it decides; its mass on the grammar is the lesser one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("question", overflow="fold")
    for name in ("P safe text", "P unsafe text", "log-odds", "", "grammar"):
        table.add_column(name, justify="right")
    for safe, unsafe in zip(test.safe.questions, test.unsafe.questions, strict=True):
        code = printable(safe.question or "")
        name = printable(names.get(safe.question or "", code))
        table.add_row(
            Text(code if name == code else f"{code} {name}"),
            *(_decisive(question, of) for question, of in ((safe, test.safe), (unsafe, test.unsafe))),
            *(f"{question.margin:+.1f}" for question in (safe, unsafe)),
            f"{min(safe.grammar_mass, unsafe.grammar_mass):.3f}",
        )
    return table


def _decisive(question: QuestionResult, of: SelfTestResult) -> Text:
    decides = question.question == of.decided_by
    return Text(f"{question.unsafe:.3f}{'*' if decides else ' '}", "bold" if decides else "")
