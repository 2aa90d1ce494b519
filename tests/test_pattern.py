"""The pattern language: what it reads, and what is said of a mistake in it."""

from __future__ import annotations

import re

import pytest
from brute_force import TooManyWays, ways
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from languages import CODES, MOOD, VERDICT, grammar, patterns

from edgeguard.automaton import ambiguity, build
from edgeguard.errors import ProfileError
from edgeguard.grammar import AnswerGrammar
from edgeguard.pattern import Field, Label, parse_pattern
from edgeguard.profile import parse_profile

FIELDS = {"verdict": Field("verdict", (Label("safe", ("s",)), Label("unsafe", ("u", "uu"))))}


def texts(pattern: str, longest: int = 12) -> set[str]:
    """All that a pattern writes."""
    return {t.text.decode() for t in ways(parse_pattern(pattern, FIELDS), lambda *_: (), longest) if not t.cut}


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("safe", {"safe"}),
        ("a|b|", {"a", "b", ""}),
        ("(a|b)c", {"ac", "bc"}),
        ("ab?", {"a", "ab"}),
        ("(ab)?", {"", "ab"}),
        ("a+", {"a" * n for n in range(1, 13)}),
        ("é*", {"é" * n for n in range(7)}),
        (r"\(\|\)\{\}\?\*\+\\", {r"(|){}?*+\\"[:-1]}),
        (r"a\nb\tc", {"a\nb\tc"}),
        ("a\nb", {"a\nb"}),
        ("[.^$]", {"[.^$]"}),
        (r"wait\.\.\.", {"wait..."}),
        ("{verdict}", {"s", "u", "uu"}),
        ("{verdict=unsafe}", {"u", "uu"}),
        ("{verdict=unsafe|safe},", {"s,", "u,", "uu,"}),
        ("x{verdict:=unsafe}y", {"xy"}),
        ("()", {""}),
    ],
)
def test_a_pattern_writes_these_texts(pattern, written):
    assert texts(pattern) == written


PROFILE = r"""name = "team"
taxonomy = "ours"

[answer]
pattern = '''
{verdict}(
Codes: {category}(, {category})*)?'''

[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]

[prompt]
template = "own"
text = "{{ messages[-1].content }}"

[[category]]
code = "S1"
name = "One"

[[category]]
code = "S10"
name = "Ten"
"""
REST = "(\nCodes: {category}(, {category})*)?"
MISTAKES = [
    # (old, new, line:column that the error must name, what it must say)
    ("{verdict}(", "({verdict}(", "6:1", '"(" is not closed'),
    ("*)?'''", "*))?'''", "7:34", '")" closes no "("'),
    ("{verdict}(", "{verdikt}(", "6:1", "there is no field 'verdikt' (did you mean 'verdict'?); known are cat"),
    ("{verdict}(", "{verdict=saf}(", "6:1", "field verdict has no label 'saf' (did you mean 'safe'?); it has"),
    ("{verdict}(", "{verdict=safe|safe}(", "6:1", "has a label twice"),
    ("{verdict}(", "{verdict:=saf}(", "6:1", "no label 'saf'"),
    ("{verdict}(", "{verdict(", "6:1", '"{" begins no field'),
    ("{verdict}(", "{}(", "6:1", "there is no field ''"),
    ("{verdict}(", "verdict}(", "6:8", '"}"'),
    ("(, {category})*", "(, {category})**", "7:33", "repeats nothing"),
    ("Codes: ", "Codes: ?+", "7:9", "repeats nothing"),
    ("(, {category})*", "(*, {category})", "7:19", "nothing stands before it"),
    ("Codes: ", r"Codes\: \d", "7:9", r"\d is no escape"),
    ("Codes: ", "Codes...: ", "7:6", "only the end of an answer can be free"),
    ("*)?'''", "*)?\n'''", "7:35", "ends with a line break"),
    ("*)?'''", "*)?" + "(" * 60 + ")" * 60 + "'''", "7:85", "more than 50 groups"),
    ("\nCodes: ", "\nCodes{x}: ", "7:6", "there is no field 'x'"),
    ("{verdict}(\nCodes: {category}(, {category})*)?", "{category}{verdict=safe}", "10", "unsafe has no place"),
    ("{category}(, {category})*", "{category=S10}", "17", "[[category]] 1: S1 has no place in the pattern"),
    ("{verdict}(", "{verdict}{verdict:=safe}(", "5", "one answer say verdict=safe and verdict=unsafe"),
    ('code = "S10"', 'code = "S1, S1"', "5", '"safe\\nCodes: S1, S1" reads in two ways: it says category=S1'),
    ("(, {category})*)?", "(, {category})*)?...", "5", "free text may follow the answer"),
    ("{verdict}(", "{verdict:=safe}({verdict}|x)(", "5", "pattern says verdict=safe before any text"),
    ("[field.verdict]", "[field.other]", "6:1", "there is no field 'verdict'; known are category, other"),
    ('unsafe = ["unsafe"]', "unsafe = []", "11", "unsafe is an empty list"),
    ('unsafe = ["unsafe"]', 'no = ["unsafe"]', "1", "which field verdict has not; expected some of safe, no"),
    ("pattern = ", 'labels = "list"\npattern = ', "5", "labels: an answer is one pattern now; expected pattern = '"),
    ("pattern = ", 'lead = [""]\npattern = ', "5", "lead: an answer is one pattern now"),
    ("pattern = ", "patern = ", "5", "patern is not a key here (did you mean 'pattern'?)"),
    ("[field.verdict]", '[readout]\nverdict = "verdikt"\n[field.verdict]', "10", "(did you mean 'verdict'?)"),
    ("[field.verdict]", '[readout]\nunsafe = ["no"]\n[field.verdict]', "10", "which field verdict has not"),
    ("[field.verdict]", '[readout]\nunsafe = []\n[field.verdict]', "10", "expected labels of verdict: safe, unsafe"),
    ("[field.verdict]", '[readout]\nunsafe = ["safe", "unsafe"]\n[field.verdict]', "9", "safe is an empty list"),
    ("[field.verdict]", '[readout]\nsafe = ["unsafe"]\n[field.verdict]', "10", "which unsafe has too"),
    ("[field.verdict]", '[readout]\ncategory = "verdict"\n[field.verdict]', "10", "whose labels are the categories"),
    ("[field.verdict]", '[readout]\nstrictness = "loose"\n[field.verdict]', "10", "no place where unsafe is one list"),
    ("[field.verdict]", '[readout.unsafe]\nhigh = ["unsafe"]\n[field.verdict]', "9", "strictness is missing"),
    (
        "[field.verdict]",
        '[readout]\nstrictness = "lo"\nunsafe = { low = ["unsafe"] }\n[field.verdict]',
        "10",
        "did you mean 'low'?",
    ),
    ("[field.verdict]", "[readout.assistent]\n[field.verdict]", "9", "did you mean 'assistant'?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "says"), MISTAKES, ids=[m[3][:40] for m in MISTAKES])
def test_a_mistake_is_named_with_its_line_and_column(old, new, where, says):
    assert PROFILE.count(old) == 1
    with pytest.raises(ProfileError) as caught:
        parse_profile(PROFILE.replace(old, new).encode(), "team.toml")
    assert str(caught.value).startswith(f"team.toml:{where}: "), caught.value
    assert says in str(caught.value)


def test_the_profile_with_the_mistakes_has_none_itself():
    parse_profile(PROFILE.encode(), "team.toml")


def test_a_mistake_in_a_text_of_one_line_is_found_in_its_line():
    for written in ("'{x}'", '"{x}"', "'''{x}'''"):
        text = re.sub(r"(?s)'''.*'''", lambda _, written=written: written, PROFILE)
        with pytest.raises(ProfileError, match=rf"team.toml:5:{11 + written.index('{')}: "):
            parse_profile(text.encode(), "team.toml")
    escaped = re.sub(r"(?s)'''.*'''", lambda _: r'"a\n\n{x}"', PROFILE)
    with pytest.raises(ProfileError, match=r"team\.toml:5:"):
        parse_profile(escaped.encode(), "team.toml")


def test_a_form_may_hold_a_separator_where_nothing_else_reads_so():
    forms = PROFILE.replace('name = "Ten"', 'name = "Ten"\nforms = ["S1, or ten"]')
    parse_profile(forms.encode(), "team.toml")
    with pytest.raises(ProfileError, match=re.escape(r'"safe\nCodes: S1, S2" reads in two ways')):
        more = '\n[[category]]\ncode = "S2"\nname = "Two"\n'
        parse_profile((forms.replace("S1, or ten", "S1, S2") + more).encode(), "team.toml")


@settings(deadline=None, max_examples=200)
@given(patterns)
@example(r"({mood})+({verdict=safe}a|{verdict=unsafe|maybe|n/a}(a|{mood}))")  # twice the same, in two readings
@example(r"{mood:=sad}({verdict=safe}a|{verdict=unsafe|maybe|n/a}(b|{mood}))")
def test_an_answer_says_the_same_in_all_readings_unless_the_pattern_is_refused(pattern):
    """Against all ways through the pattern, as far as one can write them down. What is shown does read in two ways."""
    spec: AnswerGrammar = grammar(pattern, mood=MOOD, verdict=VERDICT)
    labels = [f"{f.name}={la.name}" for f in spec.fields for la in f.labels]
    made = build(spec.parsed, lambda of, label: 1 << labels.index(f"{of.name}={label.name}"))
    found = ambiguity(made)
    longest = len(found.text) if found else 5
    assume(longest < 9)
    try:
        every = ways(spec.parsed, lambda of, label: [f"{of}={label}"], longest, most=3000)
    except TooManyWays:
        assume(False)
    whole = [t for t in every if not t.cut and not t.open]
    if found is None:
        said: dict[bytes, set[frozenset[str]]] = {}
        for t in whole:
            said.setdefault(t.text, set()).add(t.named_within(len(t.text)))
        assert all(len(names) == 1 for names in said.values())
    elif not found.open:
        assert len({t.ends for t in every if t.may_be(found.text)}) > 1
    else:
        assert any(t.open and t.text == found.text for t in every)
        assert sum(t.may_become(found.text) for t in every) > 1


def test_the_codes_of_the_languages_begin_each_other():
    assert "S10".startswith("S1") and {"S1", "S10"} <= set(CODES)


@given(st.text(alphabet="(){}|?*+\\.=:nvx\n", max_size=12))
def test_any_text_is_a_pattern_or_a_mistake_at_a_place_in_it(text):
    from edgeguard.pattern import PatternMistake

    try:
        parse_pattern(text, FIELDS)
    except PatternMistake as mistake:
        assert 0 <= mistake.at <= len(text)
