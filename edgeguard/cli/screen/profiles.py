"""The guards that edgeguard knows how to ask, and one of them in full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.description import Description, SamplePrompt, how_it_answers, least_sure
from edgeguard.errors import printable, shortened
from edgeguard.grammar import Judged
from edgeguard.pattern import Field
from edgeguard.profile import Fact, Profile, Refused, Verified

VERIFIED: dict[Verified | None, tuple[str, str]] = {  # in the list's column, and in words
    "maker": ("maker", "read in the maker's own source"),
    "copies": ("copies", "several public copies agree"),
    "copy": ("one copy", "one public copy"),
    "unknown": ("in part", "unknown: asked of your file"),
    None: ("-", "the profile does not say"),
}
_JUDGED = {"user": "a prompt", "assistant": "a response"}
_MORE = 12  # lines that differ, and messages of a chat, that are shown at most
_WIDE, _NAME, _SHORT = 100, 25, 60  # characters of a terminal with room, of a name without, of a guard's description
_LABELS = 8  # labels of a field whose forms are told


def print_profiles(profiles: Sequence[Profile], refused: Sequence[Refused]) -> None:
    """One line a profile; the guards that get no scores, and why."""
    console = plain_console()
    table = _table("name", "what it is for", "answers", ">labels", "verified")
    for profile in profiles:
        name = profile.name if console.width > _WIDE else _broken(profile.name)
        labels = str(len(profile.asked)) if profile.asked else "-"
        what = shortened(short(profile.description), _SHORT)
        cells = (what, how_it_answers(profile), labels, VERIFIED[least_sure(profile)][0])
        table.add_row(Text("\n".join(map(printable, name.split("\n")))), *_texts(cells))
    console.print(table)
    console.print(
        Text(
            "verified: where the least sure thing that a profile says is from. maker: the maker's own source; copies: "
            "public copies that agree; in part: some of it nobody has seen. `edgeguard profiles NAME` tells each.",
            "dim",
        )
    )
    if refused:
        console.print()
        console.print(Text("Known, and refused: they get no scores", "bold"))
        table = _table("name", "why")
        for guard in refused:
            table.add_row(*_texts((guard.name, guard.refused)))
        console.print(table)


def _broken(name: str) -> str:
    """A long name on two lines, broken behind a hyphen."""
    at = name.rfind("-", 0, _NAME) + 1
    return name if len(name) <= _NAME or not at else f"{name[:at]}\n  {name[at:]}"


def short(description: str) -> str:
    """What a description begins with: the guard's name, as a rule."""
    return description.partition(":")[0].partition(". ")[0].strip()


def print_profile(found: Description) -> None:
    """What it is, what is asked and answered, the taxonomy, and where all of it is from."""
    console, profile = plain_console(), found.profile
    console.print(Text(printable(": ".join(filter(None, (profile.name, " ".join(profile.description.split())))))))
    _print_asked(console, found)
    _print_answers(console, found)
    if profile.categories:
        _heading(console, f"Taxonomy {profile.taxonomy}, version {profile.taxonomy_version}")
        console.print(_categories(profile))
    _print_facts(console, profile.facts)


def _categories(profile: Profile) -> Table:
    """The taxonomy, without the columns that say nothing."""
    columns = {
        "code": [c.code for c in profile.categories],
        "name": ["" if c.name == c.code else c.name for c in profile.categories],
        "what belongs to it": [c.description for c in profile.categories],
    }
    said = {name: cells for name, cells in columns.items() if any(cells)}
    table = _table(*said)
    for row in zip(*said.values(), strict=True):
        table.add_row(*_texts(row))
    return table


def print_refused(guard: Refused) -> None:
    """A guard that gets no scores, and why."""
    console = plain_console()
    console.print(Text(printable(f"{guard.name}: {guard.description}")))
    console.print(Text(printable(f"It gets no scores: {guard.refused}"), "bold"))
    _print_facts(console, guard.facts)


# What is asked


def _print_asked(console: Console, found: Description) -> None:
    profile = found.profile
    _heading(console, "What is asked")
    console.print(Text(printable(found.source)))
    if found.question is not None:
        others = [c.code for c in profile.asked if c.code != found.question]
        told = f"A prompt for each category; this is the one about {found.question}"
        console.print(Text(printable(f"{told}{', the others are ' if others else ''}{', '.join(others)}.")))
        if profile.questions is not None and profile.questions.umbrella is not None:
            console.print(Text(printable(f"The answer about {profile.questions.umbrella} decides.")))
    if found.written_by is None:
        console.print(Text(f"`edgeguard profiles {printable(profile.name)} --model FILE` writes it as a file does."))
    user, response = found.prompts["user"], found.prompts["assistant"]
    shown, other = (response, user) if user.error and not response.error else (user, response)
    if shown.text is not None or shown.chat:
        console.print(Text("« » mark the text that is judged.", "dim"))
    _print_prompt(console, shown, found.sample.values())
    if other.error and not shown.error:
        what = "A prompt alone" if other is user else "A response"
        console.print(Text(printable(f"{what} is not judged: {other.error}")))
    elif shown.text is not None or shown.chat:
        _print_difference(console, found)


def _print_prompt(console: Console, prompt: SamplePrompt, samples: Iterable[str]) -> None:
    if prompt.error:
        console.print(Text(printable(f"It cannot be written: {prompt.error}"), "bold red"))
    elif prompt.text is not None:
        console.print(Padding(_marked(prompt.text, samples), (0, 0, 0, 2), expand=False))
    for role, text in _some(prompt.chat) if prompt.text is None else ():
        if role:
            console.print(Padding(Text(printable(f"[{role}]"), "bold"), (0, 0, 0, 2), expand=False))
        console.print(Padding(_marked(text, samples), (0, 0, 0, 2), expand=False))


def _some(chat: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The chat, or its beginning and its end where it is long."""
    if len(chat) <= _MORE:
        return list(chat)
    return [*chat[:3], ("", f"… {len(chat) - 4} more messages; all of them with --json"), chat[-1]]


def _marked(text: str, samples: Iterable[str]) -> Text:
    """A prompt on its lines, the conversation's texts between « »."""
    shown = "\n".join(printable(line) for line in text.split("\n"))
    for sample in samples:
        shown = shown.replace(sample, f"«{sample}»")
    marked = Text(shown)
    marked.highlight_regex(r"«[^»]*»", "bold")
    return marked


def _print_difference(console: Console, found: Description) -> None:
    gone, come = found.response_differs()
    if not gone and not come:
        console.print(Text("A response is asked about in the same words."))
        return
    console.print()
    console.print(Text("Where a response is judged, these lines differ:"))
    lines = [*(("-", line) for line in gone), *(("+", line) for line in come)]
    for sign, line in lines[:_MORE]:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(sign, _marked(shortened(line, 300), found.sample.values()))
        console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    if len(lines) > _MORE:
        console.print(Text(f"  … {len(lines) - _MORE} more; the whole prompt with --json"))


# What is answered


def _print_answers(console: Console, found: Description) -> None:
    grammar = found.profile.answer
    _heading(console, f"How it answers: {found.how}")
    room = max(20, console.width - 2)
    for line in map(printable, grammar.pattern.split("\n")):
        # A space in a pattern is a character of the answer: a long line is cut at the edge, and at no space.
        for at in range(0, max(1, len(line)), room):
            console.print(Text("  " + line[at : at + room]), soft_wrap=True)
    console.print()
    both = len({example.judged for example in found.examples}) > 1
    examples = Table.grid(padding=(0, 2))
    for example in found.examples:
        of = f" {_JUDGED[example.judged].partition(' ')[2]}" if both else ""
        text = "\n".join(map(printable, example.text.split("\n")))
        examples.add_row(Text(f"{example.side}{of}:"), Text(text, "bold"))
    console.print(Text("The shortest answers of their kind:"))
    console.print(Padding(examples, (0, 0, 0, 2), expand=False))
    console.print()
    table = _table("field", "label: what answers write")
    for field in grammar.fields:
        if field.name not in (grammar.user.category, grammar.assistant.category):
            table.add_row(*_texts((field.name, _labels(field))))
    console.print(table)
    for judged in get_args(Judged):
        if judged == "user" or grammar.user != grammar.assistant:
            _print_readout(console, found.profile, judged)


def _labels(field: Field) -> str:
    told = [
        f"{la.name}: {' or '.join(map(_quoted, la.forms)) or 'no word of its own'}" for la in field.labels[:_LABELS]
    ]
    more = f" and {len(field.labels) - _LABELS} more" if len(field.labels) > _LABELS else ""
    return "; ".join(told) + more


def _quoted(form: str) -> str:
    return '"' + form.replace("\n", "\\n") + '"'


def _print_readout(console: Console, profile: Profile, judged: Judged) -> None:
    """What decides, and what means unsafe, where that is not the plain case."""
    readout = profile.answer.readout(judged)
    if (readout.verdict, readout.unsafe) == ("verdict", (("", ("unsafe",)),)):
        return
    of = "" if profile.answer.user == profile.answer.assistant else f" about {_JUDGED[judged]}"
    meanings = []
    for name, labels in readout.unsafe:
        default = ", the default" if name == readout.default else ""
        meanings.append(", ".join(labels) + (f" ({name}{default})" if name else ""))
    told = f"What decides{of} is {readout.verdict}; unsafe is {'; or '.join(meanings)}."
    console.print(Text(printable(told)))


# Facts


def _print_facts(console: Console, facts: Sequence[Fact]) -> None:
    if not facts:
        return
    _heading(console, "Where this is from")
    for fact in facts:
        line = Table.grid(padding=(0, 1))
        said = VERIFIED[fact.verified][1] + (f": {fact.source}" if fact.source else "")
        line.add_row("·", Text(printable(fact.about)))
        line.add_row("", Text(printable(said), "dim"))
        console.print(line)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(printable(text), "bold"))


def _table(*columns: str) -> Table:
    """Columns, those of numbers with a > before their name; the first is never broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        side: Any = "right" if name.startswith(">") else "left"
        table.add_column(name.lstrip(">"), justify=side, no_wrap=i == 0, overflow="fold")
    return table


def _texts(cells: Iterable[str]) -> list[Text]:
    return [Text(printable(cell)) for cell in cells]
