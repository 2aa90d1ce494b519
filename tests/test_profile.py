from __future__ import annotations

from pathlib import Path

import pytest

from edgeguard.errors import ProfileError
from edgeguard.grammar import Readout
from edgeguard.profile import (
    MAX_CATEGORIES,
    Category,
    detect_profile,
    list_profiles,
    load_profile,
    parse_profile,
)
from edgeguard.tomlfile import MAX_BYTES

GOOD = r'''
name = "team"
version = "2"
taxonomy = "ours"
min_grammar_mass = 0.25
stop = ["<end>"]

[answer]
pattern = '({verdict=safe}|{verdict=unsafe}(\n{category}(,{category})*)?)(\nMood: {mood})?'

[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]

[field.mood]
glad = ["happy", "glad"]
sad = ["sad"]

[prompt]
template = "own"
control = ["<s>", "<end>"]
text = """
<s>Judge:
{% for m in messages %}
{{ m.content }}
{% endfor %}
<end>"""

[roles]
user = "Customer"

[self_test]
safe = "Hello."
unsafe = "I will hurt you."

[[category]]
code = "S1"
name = "Violence"

[[category]]
code = "S10"
name = "Hate"
description = "Insults"
forms = ["S10", "hate"]
'''


def parse(text: str) -> object:
    return parse_profile(text.encode(), "team.toml")


def mistake(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    with pytest.raises(ProfileError) as caught:
        parse(GOOD.replace(old, new))
    return str(caught.value)


def line_of(text: str, part: str) -> int:
    return next(i for i, line in enumerate(text.split("\n"), 1) if part in line)


def test_a_profile_is_read_with_its_defaults() -> None:
    profile = parse_profile(GOOD.encode(), "team.toml")
    assert (profile.name, profile.version, profile.taxonomy, profile.taxonomy_version) == ("team", "2", "ours", "1")
    assert profile.categories == (
        Category("S1", "Violence", forms=("S1",)),
        Category("S10", "Hate", "Insults", ("S10", "hate")),
    )
    assert [f.name for f in profile.answer.fields] == ["category", "verdict", "mood"]
    assert (
        profile.answer.user
        == profile.answer.assistant
        == Readout("verdict", "category", unsafe=(("", ("unsafe",)),), safe=("safe",))
    )
    assert profile.prompt.text.startswith("<s>Judge:\n")
    assert (profile.prompt.user, profile.prompt.assistant) == ("Customer", "Agent")
    assert profile.prompt.judges == ("user", "assistant")
    assert profile.stop == ("<end>",)
    assert profile.min_grammar_mass == 0.25
    assert profile.self_test is not None and profile.self_test.safe == "Hello."
    assert hash(profile) == hash(parse_profile(GOOD.encode(), "team.toml"))


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    windows = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert parse_profile(windows, "team.toml") == parse(GOOD)


MISTAKES = [
    # (old, new, the text of the line that the error must name, what it must say)
    ("[field.mood]", "[field]", "glad = [", "[field] glad is"),
    ("[field.mood]", '[field."my mood"]', '[field."my mood"]', "no name of a field"),
    ("[field.mood]", "[field.category]", "[field.category]", "the taxonomy's own field"),
    ("[field.mood]", "[fields.mood]", "[fields.mood]", "did you mean 'field'?"),
    ('sad = ["sad"]', 'sad = "sad"', 'sad = "sad"', "[field.mood] sad is \"sad\"; expected a list of texts"),
    ('sad = ["sad"]', "sad = []", "sad = []", "expected the forms that {mood} stands for"),
    ('sad = ["sad"]', 'sad = [""]', 'sad = [""]', "empty text"),
    ('sad = ["sad"]', 'sad = ["sad", "sad"]', 'sad = ["sad"', '"sad" twice'),
    ('sad = ["sad"]', 'sad = ["glad"]', 'sad = ["glad"]', 'sad has "glad", which is also a form of glad'),
    ('sad = ["sad"]', '"a=b" = ["sad"]', '"a=b"', "no name of a label"),
    ('sad = ["sad"]', 'sad = ["sad"]\n[field.more]\nx = ["x"]', "x = [", "[field.more] x has no place in the pattern"),
    ('sad = ["sad"]', 'sad = ["sad"]\n[field.more]', "[field.more]", "there are no labels"),
    ('unsafe = ["unsafe"]', 'unsafe = ["unsafe"]\nmaybe = ["perhaps"]', "maybe", "maybe has no place in the pattern"),
    ("min_grammar_mass = 0.25", "min_grammar_mass = 1.5", "min_grammar_mass", "from 0 to 1"),
    ("min_grammar_mass = 0.25", "min_grammar_mass = nan", "min_grammar_mass", "from 0 to 1"),
    ("min_grammar_mass = 0.25", "min_grammar_mass = true", "min_grammar_mass", "is true; expected a number"),
    ('name = "team"', 'name = " "', "name =", "name is empty"),
    ('name = "team"', "name = 1", "name =", "expected a text"),
    ('taxonomy = "ours"', "", "", "taxonomy is missing"),
    ('stop = ["<end>"]', 'stop = "<end>"', "stop", "expected a list of texts"),
    ('code = "S10"', 'code = "S1"', 'code = "S1"\nname = "Hate"', "which an earlier category has"),
    ('code = "S10"', 'code = "S10 "', 'code = "S10 "', "without spaces at its ends"),
    ('code = "S10"', 'code = "S\\u0007"', 'code = "S\\u0007"', "printable"),
    ('code = "S10"', 'code = "unsafe"', 'code = "unsafe"', "every taxonomy has already"),
    ('name = "Hate"', 'nam = "Hate"', 'nam = "Hate"', "[[category]] 2: nam is not a key here (did you mean 'name'?)"),
    ('forms = ["S10", "hate"]', 'forms = ["hate", "S1"]', "forms", "also a form of S1"),
    ('code = "S10"', 'code = "S=10"', 'code = "S=10"', 'a code has no "="'),
    ('forms = ["S10", "hate"]', "forms = []", "forms", "empty list"),
    ('forms = ["S10", "hate"]', 'forms = [""]', "forms", "empty text"),
    ('template = "own"', 'template = "mine"', "template", 'expected "own" or "model"'),
    ('template = "own"', 'template = "own"\nvariables = { a = 1 }', "variables", 'no place where template is "own"'),
    ('template = "own"', 'template = "own"\njudges = ["system"]', "judges", 'judges is ["system"]; expected "user'),
    ('template = "own"', 'template = "own"\njudges = []', "judges", "judges is []; expected"),
    ("[[category]]\ncode = \"S1\"", '[questions]\numbrella = "S9"\n[[category]]\ncode = "S1"', "umbrella", "S9"),
    ('control = ["<s>", "<end>"]', 'control = ["<s>", "<ned>"]', "control", "which text does not spell"),
    ("{{ m.content }}", "{{ m.content }", "{{ m.content }", "unexpected '}'"),
    ("{% endfor %}", "", "{{ m.content }}", "'endfor'"),  # where Jinja last saw code
    ('user = "Customer"', 'usr = "Customer"', "usr", "did you mean 'user'?"),
    ("[self_test]", "[self_tset]", "[self_tset]", "did you mean 'self_test'?"),
    ('unsafe = "I will hurt you."', "", "[self_test]", "unsafe is missing"),
    ("[self_test]\nsafe", "[self_test\nsafe", "[self_test", "not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "where", "says"), MISTAKES, ids=[f"{m[1][:24]}-{i}" for i, m in enumerate(MISTAKES)]
)
def test_a_mistake_is_named_with_its_line_and_key(old: str, new: str, where: str, says: str) -> None:
    message = mistake(old, new)
    text = GOOD.replace(old, new)
    line = text[: text.index(where)].count("\n") + 1 if where else 1
    assert message.startswith(f"team.toml:{line}: "), message
    assert says in message


def test_a_key_inside_a_long_text_is_not_taken_for_the_mistaken_one() -> None:
    text = GOOD.replace("Judge:", "pattern = 1\n[answer]\n# pattern").replace("pattern = '", "patern = '")
    with pytest.raises(ProfileError, match=rf"team.toml:{line_of(text, 'patern')}: \[answer\] patern is not a key"):
        parse(text)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ('role = "conversation"\ntext = "Hi"', "text has no place where the role is the conversation"),
        ('role = "user"', "text is missing"),
        ('role = "conversatoin"', "did you mean 'conversation'?"),
    ],
)
def test_a_message_has_a_text_and_the_place_of_the_conversation_none(message: str, says: str) -> None:
    text = GOOD[: GOOD.index("[prompt]")] + f'[prompt]\ntemplate = "model"\n[[prompt.message]]\n{message}\n'
    codes = '[[category]]\ncode = "S1"\nname = "One"\n'
    with pytest.raises(ProfileError) as caught:
        parse(text + codes)
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", ["answer", "prompt"])
def test_a_missing_table_is_named(missing: str) -> None:
    begin = GOOD.index(f"[{missing}]")
    end = GOOD.index("\n[", begin)
    with pytest.raises(ProfileError, match=rf"team.toml:1: \[{missing}\] is missing"):
        parse(GOOD[:begin] + GOOD[end:])


def test_hostile_files_are_refused() -> None:
    with pytest.raises(ProfileError, match="1 MiB"):
        parse("#" * (MAX_BYTES + 1))
    many = "".join(f'[[category]]\ncode = "C{i}"\nname = "n"\n' for i in range(MAX_CATEGORIES + 1))
    with pytest.raises(ProfileError, match="more than 1000 categories"):
        parse(GOOD + many)
    with pytest.raises(ProfileError):
        parse("x = " + "[" * 100_000)
    with pytest.raises(ProfileError, match=r"team.toml:2: byte 0xff is not UTF-8"):
        parse_profile(b'name = "x"\n# \xff', "team.toml")
    with pytest.raises(ProfileError):
        parse(GOOD.replace("{{ m.content }}", "{{" + "(" * 5000))


@pytest.mark.parametrize(
    "junk", ["", "\x00", "[[", "a.b.c = 1\n[a]\nb = 2", 'category = "x"', "answer = 3", "prompt = []"]
)
def test_junk_is_a_profile_error(junk: str) -> None:
    with pytest.raises(ProfileError, match=r"^team.toml"):
        parse(junk)


def test_a_profile_is_loaded_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "team.toml"
    path.write_text(GOOD)
    assert load_profile(path).source == str(path)
    assert load_profile(str(path)).name == "team"
    assert load_profile("llama-guard-3").name == "llama-guard-3"
    with pytest.raises(ProfileError, match="did you mean 'llama-guard-3'"):
        load_profile("lama-guard-3")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path)
    with pytest.raises(ProfileError):
        load_profile("a\0b")


def test_built_in_profiles_have_their_file_s_name_a_taxonomy_and_a_self_test() -> None:
    profiles = {p.name: p for p in list_profiles()}
    assert {"instruct", "llama-guard-1", "llama-guard-2", "llama-guard-3", "llama-guard-3-1b"} <= profiles.keys()
    for name, profile in profiles.items():
        assert profile.source == f"edgeguard/profiles/{name}.toml"
        assert profile.self_test is not None or "user" not in profile.prompt.judges  # both texts are prompts
        assert profile.description
    assert [c.code for c in profiles["llama-guard-3"].categories] == [f"S{i}" for i in range(1, 15)]
    assert [c.code for c in profiles["llama-guard-3-1b"].categories] == [f"S{i}" for i in range(1, 14)]
    assert [c.code for c in profiles["llama-guard-2"].categories] == [f"S{i}" for i in range(1, 12)]
    assert [c.code for c in profiles["llama-guard-1"].categories] == [f"O{i}" for i in range(1, 7)]
    named = {
        name: next(c.name for c in profiles[name].categories if c.code == "S5")
        for name in ("llama-guard-2", "llama-guard-3")
    }
    assert named == {"llama-guard-2": "Specialized Advice", "llama-guard-3": "Defamation"}


POLICY = "<BEGIN UNSAFE CONTENT CATEGORIES>\n"


@pytest.mark.parametrize(
    ("architecture", "name", "template", "expected"),
    [
        ("llama", "Llama Guard 3 8B", None, "llama-guard-3"),
        ("llama", "meta-llama_Llama-Guard-3-8B", None, "llama-guard-3"),
        ("llama", "llama_guard_3_1b", None, "llama-guard-3-1b"),
        ("llama", "Llama-Guard-3-1B-INT4", None, "llama-guard-3-1b"),
        ("llama", "Meta Llama Guard 2 8B", None, "llama-guard-2"),
        ("llama", "LlamaGuard-7b", None, "llama-guard-1"),
        ("llama", "model", POLICY + "S5: Defamation.\n", "llama-guard-3"),
        ("llama", "model", POLICY + '"S5": "Defamation."', "llama-guard-3-1b"),
        ("llama", "model", POLICY + "S5: Specialized Advice.\n", "llama-guard-2"),
        ("llama", "model", POLICY + "O1: Violence and Hate.\n", "llama-guard-1"),
        ("llama", "Llama Guard 3 8B", POLICY + "S5: Defamation.\n", "llama-guard-3"),
        # Contradicting evidence, another architecture, no evidence: not certain.
        ("llama", "Llama Guard 3 8B", POLICY + "S5: Specialized Advice.\n", None),
        ("mllama", "Llama-Guard-3-11B-Vision", None, None),
        ("llama", "Llama-Guard-3-11B-Vision", None, None),
        ("llama", "Llama-Guard-3-11B-Vision", POLICY + "S5: Defamation.\n", None),
        ("llama", "Smollm2 135M", "{{ messages }}", None),
        ("llama", "", "", None),
    ],
)
def test_a_guard_is_detected_only_when_one_profile_fits(
    architecture: str, name: str, template: str | None, expected: str | None
) -> None:
    assert detect_profile(architecture=architecture, name=name, chat_template=template) == expected
