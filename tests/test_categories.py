"""A guard's categories under other names: the table, the mapping, and what a mistake in a file is told as."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import ProfileError
from edgeguard.profile import list_profiles, load_profile
from edgeguard.serve.categories import CategoryMap, Target, load_categories, parse_categories

OPENAI = (  # of the official package's response type, in its order
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
CODES = tuple(f"S{n}" for n in range(1, 15))
HEAD = 'name = "x"\n'
GOOD = '[[category]]\nname = "a"\nsources = ["S1"]\nmatch = "same"\n'

probabilities = st.floats(0, 1)
tables = st.dictionaries(
    st.text("abc/", min_size=1, max_size=4),
    st.lists(st.sampled_from(CODES), min_size=1, max_size=4, unique=True),
    max_size=6,
).map(lambda found: CategoryMap("x", (), tuple(Target(name, tuple(s), "same") for name, s in found.items()), {}))


@st.composite
def bounded(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, float]]:
    """Scores, bounds, and true values inside the bounds."""
    codes = draw(st.sets(st.sampled_from(CODES), min_size=1))
    scores, bounds, truth = {}, {}, {}
    for code in codes:
        low, true, high = sorted(draw(st.tuples(probabilities, probabilities, probabilities)))
        scores[code], bounds[code], truth[code] = low, (low, high), true
    return scores, bounds, truth


@given(tables, bounded())
def test_the_largest_true_value_lies_inside_the_mapped_bounds(table, record):
    scores, bounds, truth = record
    mapped = table.apply(scores, bounds)
    by_name = {target.name: target.sources for target in table.targets}
    for name, (low, high) in mapped.bounds.items():
        assert low <= max(truth[code] for code in by_name[name]) <= high
        assert low <= mapped.scores[name] <= high
        assert mapped.scores[name] == max(scores[code] for code in by_name[name]) == scores[mapped.sources[name]]


@given(tables, bounded())
def test_a_name_gets_a_score_where_all_its_sources_have_one_and_is_never_made_up(table, record):
    scores, bounds, _ = record
    there = [t.name for t in table.targets if set(t.sources) <= set(scores)]
    mapped = table.apply(scores, bounds)
    assert list(mapped.scores) == list(mapped.bounds) == there == list(table.flags((), scores))
    narrowed = table.of(scores)
    assert [t.name for t in narrowed.targets] == there
    assert set(narrowed.absent) == {t.name for t in table.targets} - set(there)
    assert narrowed.apply(scores, bounds) == mapped


@given(tables, st.sets(st.sampled_from(CODES)))
def test_a_name_is_flagged_where_one_of_its_sources_is(table, flagged):
    for target in table.targets:
        assert table.flags(flagged, CODES)[target.name] == bool(set(target.sources) & flagged)


def test_the_table_for_openai_says_something_of_each_of_its_names_and_of_no_other():
    table = load_categories("openai")
    mapped = [target.name for target in table.targets]
    assert sorted([*mapped, *table.absent]) == sorted(OPENAI)
    assert mapped == [name for name in OPENAI if name in mapped]
    assert set(table.absent) == {"harassment"}


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda p: p.name)
def test_the_table_for_openai_is_for_the_hazards_of_mlcommons_alone(profile):
    table = load_categories("openai")
    if profile.taxonomy in ("mlcommons-s1-s14", "mlcommons-s1-s13"):
        table.check(profile)
    else:
        with pytest.raises(ProfileError, match="is for the taxonomies mlcommons"):
            table.check(profile)


def test_more_of_a_hate_that_threatens_is_hate_too():
    """A name that is part of another one has no score above it, by the table for OpenAI, but where codes differ."""
    table = {target.name: set(target.sources) for target in load_categories("openai").targets}
    for part, whole in (
        *(("hate/threatening", "hate"), ("violence/graphic", "violence")),
        *(("self-harm/intent", "self-harm"), ("self-harm/instructions", "self-harm")),
    ):
        assert table[part] <= table[whole]


def test_an_edited_copy_is_a_table(tmp_path: Path):
    text = (files("edgeguard.serve") / "openai.toml").read_text(encoding="utf-8")
    copy = tmp_path / "ours.toml"
    copy.write_text(text.replace('name = "openai"', 'name = "ours"'), encoding="utf-8")
    ours, theirs = load_categories(copy), load_categories("openai")
    assert (ours.name, ours.source) == ("ours", str(copy))
    assert replace(ours, name=theirs.name, source=theirs.source) == theirs


def test_what_is_told_of_a_table_is_what_it_does():
    row = load_categories("openai").row()
    assert row["categories"]["sexual"] == {"sources": ["S3", "S12"], "match": "wider"}
    assert "harassment" in row["absent"] and "harassment" not in row["categories"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, r"x\.toml:1: \[\[category\]\] is missing"),
        (GOOD, r"x\.toml:1: name is missing"),
        (HEAD + GOOD + GOOD, r'x\.toml:7: \[\[category\]\] 2: name is "a", which an earlier category has'),
        (HEAD + GOOD.replace('["S1"]', "[]"), r"x\.toml:4: .*sources is an empty list; .*\[\[absent\]\]"),
        (HEAD + GOOD.replace('["S1"]', '["S1", "S1"]'), r'x\.toml:4: .*"S1" twice'),
        (HEAD + GOOD.replace('["S1"]', '"S1"'), r"x\.toml:4: .*expected a list of texts"),
        (HEAD + GOOD.replace('"same"', '"exact"'), r'x\.toml:5: .*match is "exact".*"same" or "wider" or "near"'),
        (HEAD + GOOD.replace("match", "matches"), r"x\.toml:5: .*matches is not a key here \(did you mean 'match'\?\)"),
        (HEAD + GOOD + '[[absent]]\nname = "a"', r'x\.toml:7: .*name is "a", which stands above already'),
        (HEAD + "category = 3", r"x\.toml:2: category is 3; expected tables"),
        (HEAD + "[[category", r"x\.toml:2: this is not TOML"),
    ],
)
def test_a_mistake_in_a_table_is_told_with_its_line(text, message):
    with pytest.raises(ProfileError, match=message):
        parse_categories(text.encode(), "x.toml")


def test_a_code_that_the_guard_has_not_is_told_with_its_line():
    table = parse_categories((HEAD + GOOD.replace("S1", "S01")).encode(), "x.toml")
    with pytest.raises(ProfileError, match=r"x\.toml:4: a is read from \"S01\", which profile edgeguard-135m has not"):
        table.check(load_profile("edgeguard-135m"))


@pytest.mark.parametrize("path", ["opnai", "no\0path"])
def test_a_table_that_is_not_there_is_an_error(path):
    with pytest.raises(ProfileError, match=r"did you mean 'openai'|is no path"):
        load_categories(path)


def test_a_folder_is_no_table(tmp_path: Path):
    with pytest.raises(ProfileError, match="cannot be read"):
        load_categories(tmp_path)
