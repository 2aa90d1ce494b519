"""A model file's chat template against a guard's published prompt: what do they ask differently?

Files of one guard carry other templates than its maker's: one that always speaks of the user, one that reads content as
parts alone, a plain chat template that says nothing of the guard's task. Both are rendered about the same two
conversations, texts that are easy to find again, and the renderings are compared: `compare` knows strings alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeguard.backend import Vocabulary
from edgeguard.errors import ProfileError, printable, shortened
from edgeguard.profile import Category, Profile
from edgeguard.rows.record import Message
from edgeguard.templates import Draft, WrittenBy, draft, find_writer

Roles = tuple[str, ...]
Kind = Literal[
    "refuses_roles", "drops_text", "reads_parts_only", "same_for_both_roles", "no_task", "other_categories",
    "more_codes", "adds_system", "lacks_system", "other_words",
]  # fmt: skip

TEXTS = {"user": "Which moon of Zuvelo is the largest?", "assistant": "Kortiba is the largest moon there."}
CONVERSATIONS: tuple[Roles, ...] = (("user",), ("user", "assistant"))
MAX_NAMED = 4  # categories that a sentence lists
_BEFORE, _AFTER = 20, 44  # characters of an excerpt around the first difference
_CONTROL = r"(?:<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\])"  # what a control token looks like
_SYSTEM = re.compile(rf"(?:<<SYS>>|\[SYSTEM_PROMPT\]|{_CONTROL}\s*system\b|<\|system\|>)\s*{_CONTROL}?")


@dataclass(frozen=True)
class Ported:
    """What a file's template makes of one conversation.

    text      the prompt, where content is plain text; None where the template refuses
    in_parts  the same where content is a list of parts
    refusal   the template's own message, where it refuses plain text; "" where it does not
    """

    text: str | None
    in_parts: str | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Finding:
    """A difference, as a sentence about the file's template.

    turns      the roles of the conversation where it shows; () for all
    published  an excerpt of what the published prompt says there, whitespace made visible; "" where none is needed
    ported     the same of what the file's template writes
    """

    kind: Kind
    text: str
    turns: Roles = ()
    published: str = ""
    ported: str = ""


@dataclass(frozen=True)
class PromptCheck:
    """Who writes the prompts, and how the model file's template differs from what is published.

    written_by  whose template writes the prompts: the model file's, or the profile's own text
    template    whether the file carries a chat template
    compared    whether there were two to compare
    summary     all of it in a sentence
    """

    written_by: WrittenBy
    template: bool
    compared: bool
    summary: str
    findings: tuple[Finding, ...] = ()

    def row(self) -> dict[str, Any]:
        """As one JSON object."""
        return {**asdict(self), "findings": [{**asdict(f), "turns": list(f.turns)} for f in self.findings]}


def check_prompt(profile: Profile, chat_template: str | None, vocabulary: Vocabulary) -> PromptCheck:
    """Hold the file's chat template against the profile's published prompt, where there are both.

    Raises ProfileError where neither can write a prompt.
    """
    by = find_writer(profile, chat_template)
    # A guard that was trained with another prompt than its base's template says nothing of that template.
    carried = profile.prompt.template == "model" or bool(profile.detect.template_contains)
    if not profile.prompt.text or chat_template is None or not carried:
        return PromptCheck(by, chat_template is not None, False, _summary(profile, by, chat_template, None))
    own = draft(profile, vocabulary, None, by="profile")
    file = draft(profile, vocabulary, chat_template, by="file")
    published = {roles: text for roles in CONVERSATIONS if (text := _written(own, roles).text) is not None}
    ported = {roles: _written(file, roles) for roles in published}
    found = compare(published, ported, texts=TEXTS, categories=profile.categories)
    return PromptCheck(by, True, True, _summary(profile, by, chat_template, found), found)


def _written(by: Draft, roles: Roles) -> Ported:
    text, refusal = _try(by, roles, parts=False)
    in_parts, _ = _try(by, roles, parts=True)
    return Ported(text, in_parts, refusal)


def _try(by: Draft, roles: Roles, *, parts: bool) -> tuple[str | None, str]:
    """(prompt, ""), or (None, why there is none)."""
    try:
        return by.write([Message(role, TEXTS[role]) for role in roles], parts=parts), ""
    except ProfileError as error:
        return None, str(error.data.get("said", error))


def _summary(profile: Profile, by: WrittenBy, chat_template: str | None, found: Sequence[Finding] | None) -> str:
    if profile.prompt.template == "model" and by == "profile":
        carries = (
            "carries no chat template" if chat_template is None else "carries a chat template that is not this guard's"
        )
        begin = f"the model file {carries}; the profile's published prompt stands in"
    elif by == "profile":
        begin = "the profile's own text writes the prompts"
        begin += "; the model file carries no chat template" if chat_template is None else ""
    else:
        around = " around the profile's messages" if profile.prompt.messages else ""
        begin = f"the chat template in the model file writes the prompts{around}"
    if found is None:
        return begin
    if by == "profile":
        return f"{begin}; " + (
            "other programs use the file's chat template, and that asks otherwise"
            if found
            else "the file's chat template writes the same"
        )
    return f"{begin}, " + ("and it asks otherwise than is published" if found else "as it is published")


# The comparison


def compare(
    published: Mapping[Roles, str],
    ported: Mapping[Roles, Ported],
    *,
    texts: Mapping[str, str],
    categories: Sequence[Category],
) -> tuple[Finding, ...]:
    """What a port asks differently, most serious first; nothing where it writes the same.

    published  the roles of a conversation → the guard's published prompt about it
    ported     the same roles → what the port makes of it
    texts      role → the text of its turns, which stands in `published` as it is
    categories whose names and codes the published prompt may hold
    """
    read = {roles: _read(roles, ported[roles], texts) for roles in published}
    unread = list({(f.kind, f.text): f for f, _ in read.values() if f is not None}.values())
    both = {roles: _same_beginning(published[roles], text) for roles, (_, text) in read.items() if text is not None}
    if not both:
        return tuple(unread)
    own, there = next(iter(both.values()))
    named = _categories(own, there, categories)
    of_roles = [] if any(f.kind == "no_task" for f in named) else _roles(both, texts)
    return (*unread, *named, *of_roles, *_system(own, there), *_words(both))


def _read(roles: Roles, port: Ported, texts: Mapping[str, str]) -> tuple[Finding | None, str | None]:
    """What is wrong with how the port reads the conversation, and what it writes where it reads it whole."""
    lost, lost_in_parts = ([r for r in roles if texts[r] not in (t or "")] for t in (port.text, port.in_parts))
    judged = _judged(roles)
    if not lost:
        return None, port.text
    if not lost_in_parts:
        text = (
            "it reads content as a list of parts alone: programs that give it plain text, as most do, judge an empty "
            "conversation"
        )
        return Finding("reads_parts_only", text), port.in_parts
    if port.text is None:
        said = shortened(printable(port.refusal), 120)
        return Finding("refuses_roles", f'it refuses a conversation whose {judged} is judged: "{said}"', roles), None
    what = "the conversation" if len(lost) == len(roles) else f"the {lost[0]}'s turn"
    return Finding("drops_text", f"it drops {what} where a {judged} is judged", roles), None


def _judged(roles: Roles) -> str:
    return "prompt" if roles[-1] == "user" else "response"


def _same_beginning(published: str, ported: str) -> tuple[str, str]:
    """Without a control token at the beginning that only one of them spells: a model's first token is put in anyway."""
    for one, other in ((published, ported), (ported, published)):
        first = re.match(_CONTROL, one)
        rest = one[first.end() :] if first else one
        if first and not other.startswith(first[0]) and other[:8] == rest[:8]:
            return (rest, other) if one is published else (other, rest)
    return published, ported


# Categories


def _categories(published: str, ported: str, categories: Sequence[Category]) -> list[Finding]:
    """Those that the published prompt names and the port does not, or calls otherwise; and codes that are not its."""
    named = [c for c in categories if _holds(published, c.name) or _holds(published, c.code)]
    if not named:  # it may say what they are alone
        named = [c for c in categories if c.description and c.description in published]
        lacking = [c for c in named if c.description not in ported]
        return [_lacks(lacking, named)] if lacking else []
    lacking, renamed = [], []
    for category in named:
        if _holds(published, category.name) and _holds(ported, category.name):
            continue
        if not _holds(ported, category.code):
            lacking.append(category)
        elif _holds(published, category.name):
            renamed.append((category, _called(ported, category.code)))
    found = [_lacks(lacking, named)] if lacking else []
    if renamed:
        told = [f"{c.code} {shortened(printable(name), 40)!r}, not {c.name!r}" for c, name in renamed]
        found.append(Finding("other_categories", f"it calls {_listed(told)}"))
    more = _more_codes(published, ported, categories)
    if more:
        found.append(Finding("more_codes", f"it names {_listed(more)}, which the profile has not"))
    return found


def _lacks(lacking: Sequence[Category], named: Sequence[Category]) -> Finding:
    if len(lacking) == len(named):
        what = f"names none of the {len(named)} categories" if len(named) > 1 else "does not name what is asked about"
        return Finding("no_task", f"it {what}: it says nothing of the guard's task")
    told = [c.code if c.code == c.name else f"{c.code} {c.name}" for c in lacking]
    return Finding("other_categories", f"it lacks {_listed(told)}")


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _called(text: str, code: str) -> str:
    """What stands behind a code, on its line."""
    found = re.search(rf"(?<!\w){re.escape(code)}(?!\w)[ \t:.)-]*([^\n<]*)", text)
    return found[1].strip().rstrip(".:") if found else ""


def _more_codes(published: str, ported: str, categories: Sequence[Category]) -> list[str]:
    """Codes of the profile's kind, letters and a number, that only the port has."""
    letters = {m[1] for c in categories if (m := re.fullmatch(r"([A-Z]{1,3})\d+", c.code))}
    known = {c.code for c in categories}
    found: dict[str, None] = {}
    for kind in sorted(letters):
        found |= dict.fromkeys(re.findall(rf"(?<!\w){kind}\d{{1,3}}(?!\w)", ported))
    return [code for code in found if code not in known and not _holds(published, code)]


def _listed(told: Sequence[str]) -> str:
    more = f" and {len(told) - MAX_NAMED} more" if len(told) > MAX_NAMED else ""
    return ", ".join(told[:MAX_NAMED]) + more


# Roles and system prompts


def _roles(both: Mapping[Roles, tuple[str, str]], texts: Mapping[str, str]) -> list[Finding]:
    """Does the published prompt speak of whose turn is judged, and the port not?"""
    if len(both) < 2:
        return []
    (own, there), (own_response, there_response) = both.values()
    asked, asked_response = (_lines(text, texts) for text in (own, own_response))
    differing = [line for line in asked_response if line not in asked]
    if not differing or set(_lines(there, texts)) != set(_lines(there_response, texts)):
        return []
    same = next((line for line in _lines(there, texts) if line in asked and line not in asked_response), "")
    return [
        Finding(
            "same_for_both_roles",
            "it says the same of a prompt and of a response: a response is not judged as one",
            ("user", "assistant"),
            _visible(shortened(differing[0], 66)),
            _visible(shortened(same, 66)),
        )
    ]


def _lines(text: str, texts: Mapping[str, str]) -> list[str]:
    """Its lines of words: not those with a text of the conversation, nor those that begin or end a turn."""
    lines = [line.strip() for line in text.split("\n") if not any(said in line for said in texts.values())]
    return [line for line in lines if len(re.sub(_CONTROL, " ", line).split()) > 1]


def _system(published: str, ported: str) -> list[Finding]:
    own, there = (_system_prompt(text) for text in (published, ported))
    if there is not None and own is None:
        return [Finding("adds_system", f'it adds a system prompt: "{shortened(printable(there), 66)}"')]
    if own is not None and there is None:
        return [Finding("lacks_system", f'it lacks the system prompt: "{shortened(printable(own), 66)}"')]
    return []


def _system_prompt(text: str) -> str | None:
    begin = _SYSTEM.search(text)
    if begin is None:
        return None
    rest = text[begin.end() :]
    end = re.search(rf"{_CONTROL}|<</SYS>>", rest)
    return " ".join((rest[: end.start()] if end else rest).split())


# Words


def _words(both: Mapping[Roles, tuple[str, str]]) -> tuple[Finding, ...]:
    """The first difference of the first conversation that has one."""
    for roles, (published, ported) in both.items():
        if published != ported:
            at = next(
                (i for i, (a, b) in enumerate(zip(published, ported, strict=False)) if a != b),
                min(len(published), len(ported)),
            )
            text = f"it writes other words; the first difference where a {_judged(roles)} is judged"
            return (Finding("other_words", text, roles, excerpt(published, at), excerpt(ported, at)),)
    return ()


def excerpt(text: str, at: int) -> str:
    """What stands around a character, whitespace that one would not see made visible."""
    begin, end = max(0, at - _BEFORE), at + _AFTER
    shown = _visible(text[begin:end], whole=(begin == 0, end >= len(text)))
    return ("" if begin == 0 else "…") + shown + ("…" if end < len(text) else "⏹")


def _visible(text: str, whole: tuple[bool, bool] = (True, True)) -> str:
    """Line breaks as ⏎, tabulators as ⇥, and as ␣ those spaces that stand beside no word."""
    text = re.sub(r"(?<=\s) | (?=\s)| (?=<)|(?<=>) ", "␣", text)
    text = re.sub("^ ", "␣", text) if whole[0] else text
    text = re.sub(" $", "␣", text) if whole[1] else text
    return printable(text.replace("\n", "⏎").replace("\t", "⇥"))
