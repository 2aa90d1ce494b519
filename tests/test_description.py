"""`edgeguard profiles` for a person: what is asked, example answers that are read, how sure it is. Golden screens:
EDGEGUARD_GOLDEN=write pytest tests/test_description.py -k golden."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Run
from languages import CODES, GRAMMARS, SHAPES
from test_prompt import show
from test_shapes import CONTROL, shape
from tiny_gguf import CHATML, write_tiny_llama

from edgeguard import Guard
from edgeguard.answers import Answers
from edgeguard.backend import RuntimeOptions
from edgeguard.cli.screen.profiles import short
from edgeguard.description import SAMPLE, describe, how_it_answers, least_sure
from edgeguard.errors import ModelError
from edgeguard.example_answers import example_answer
from edgeguard.formats.chat import Chat, read_chat
from edgeguard.formats.gguf import read_header
from edgeguard.formats.tokenizer import tokenizer_files
from edgeguard.grammar import AnswerGrammar
from edgeguard.profile import Profile, Refused, list_profiles, load_profile, parse_profile
from edgeguard.testing import vocabulary

GOLDEN = Path(__file__).parent / "golden"
QUESTIONS = """
name = "yard"
description = "A guard of a yard: a question for each rule. Unsafe: a rule is broken"
taxonomy = "yard"
[questions]
umbrella = "any"
[answer]
pattern = '{verdict}(\\n...)?'
[field.verdict]
unsafe = ["Yes"]
safe = ["No"]
[prompt]
template = "model"
control = ["<|im_start|>", "<|im_end|>"]
text = '''
{% set what = "reply" if messages[-1].role == "assistant" else "post" %}
<|im_start|>user
{{ messages[-1].content }}
Does the {{ what }} break this rule: {{ category.description }}<|im_end|>
<|im_start|>assistant
'''
[self_test]
safe = "tulips"
unsafe = "poison"
[detect]
template_contains = ["break this rule"]
[[category]]
code = "any"
name = "Any rule"
description = "all of the yard's rules"
[[category]]
code = "ads"
name = "Advertising"
description = "no advertising"
response_description = "a reply advertises nothing"
[[fact]]
about = "the prompt"
source = "the yard's own board"
verified = "maker"
[[fact]]
about = "the rules"
source = "a photograph of it"
verified = "copy"
"""
PLAIN = """
name = "mine"
taxonomy = "mine"
[answer]
pattern = '{verdict}'
[field.verdict]
safe = ["fine"]
unsafe = ["foul"]
[prompt]
template = "model"
"""


def profile_of(toml: str) -> Profile:
    return parse_profile(toml.encode(), "yard.toml")


def read(compiled: Answers, text: str) -> set[str] | None:
    """What a whole answer names; None where the pattern cannot read it."""
    got = compiled.run(text.encode())
    if got is None or (ending := compiled.stop_names(got[0])) is None:
        return None
    return {label for i, label in enumerate(compiled.labels) if (got[1] | ending) >> i & 1}


# ------------------------------------------------------------ example answers

KNOWN = {
    **{profile.name: profile.answer for profile in list_profiles()},
    **{f"shape {path.stem}": shape(path.stem).answer for path in (Path(__file__).parent / "shapes").glob("*.toml")},
    **{f"language {name}": spec for name, spec in GRAMMARS.items()},
    **{f"language {name}": spec for name, (spec, _) in SHAPES.items()},
}


@pytest.mark.parametrize("name", KNOWN)
def test_example_answers_are_read_as_what_they_are_examples_of(name: str) -> None:
    grammar: AnswerGrammar = KNOWN[name]
    for judged in ("user", "assistant"):
        field = next((f for f in grammar.fields if f.name == grammar.readout(judged).category), None)
        codes = [label.name for label in field.labels[:2]] if field else []
        compiled = Answers(
            grammar, vocabulary([bytes([i]) for i in range(256)], control=CONTROL), frozenset({256}), judged=judged
        )
        decision = {"safe", "unsafe", *(label.name for label in field.labels if field)} if field else {"safe", "unsafe"}
        for side, wanted in (("safe", []), *(("unsafe", codes[:n]) for n in range(3))):
            text = example_answer(grammar, side, wanted, judged)
            if text is not None:
                said = read(compiled, text)
                assert said is not None and said & {"safe", "unsafe"} == {side}, text
                assert set(wanted) <= said & decision, text
        assert example_answer(grammar, "safe", (), judged) and example_answer(grammar, "unsafe", (), judged)


@pytest.mark.parametrize(
    ("name", "side", "codes", "expected"),
    [
        ("llama-guard-3", "safe", (), "safe"),
        ("llama-guard-3", "unsafe", ("S1", "S10"), "unsafe\nS1,S10"),
        ("shape qwen3guard", "safe", (), "Safety: Safe\nCategories: None"),  # a code would be shorter
        ("shape qwen3guard", "unsafe", ("PII", "Violent"), "Safety: Unsafe\nCategories: PII, Violent"),
        ("shape kanana", "unsafe", ("S2",), "<UNSAFE-S2>"),
        ("shape kanana", "unsafe", ("S1", "S2"), None),  # one at most
        ("language one", "unsafe", (), "u"),
        ("language verdict", "unsafe", CODES[:1], "S1"),
    ],
)
def test_an_example_is_the_shortest_answer_of_its_kind(
    name: str, side: str, codes: tuple[str, ...], expected: str | None
) -> None:
    found = example_answer(KNOWN[name], side, codes)
    if expected is None:
        assert found is None
    elif len(codes) < 2:
        assert found == expected
    else:  # codes may stand in either order
        assert found is not None and sorted(found) == sorted(expected)


# ------------------------------------------------------------ descriptions


def test_how_a_profile_answers_in_a_word() -> None:
    assert how_it_answers(load_profile("llama-guard-3")) == "one list"
    assert how_it_answers(shape("wildguard")) == "fields"
    assert how_it_answers(profile_of(QUESTIONS)) == "questions"
    assert how_it_answers(profile_of(PLAIN)) == "verdict"


def test_a_profile_is_as_sure_as_the_least_sure_of_its_facts() -> None:
    assert least_sure(profile_of(QUESTIONS)) == "copy"
    assert least_sure(profile_of(PLAIN)) is None
    assert all(least_sure(profile) for profile in list_profiles())


def test_every_description_begins_with_something_short() -> None:
    assert short("A guard: of much") == "A guard" and short("A guard. It guards") == "A guard"
    assert all(0 < len(short(profile.description)) < 60 for profile in list_profiles())


def test_the_prompt_of_one_question_is_shown_and_the_others_are_named() -> None:
    found = describe(profile_of(QUESTIONS))
    assert (found.question, found.written_by) == ("any", "profile")
    text = found.prompts["user"].text or ""
    assert "break this rule: all of the yard's rules<|im_end|>" in text and SAMPLE["user"] in text
    gone, come = found.response_differs()
    assert len(gone) == len(come) == 2 and SAMPLE["assistant"] in come


def test_a_profile_that_leaves_the_prompt_to_the_file_says_so_and_shows_it_with_one() -> None:
    alone = describe(profile_of(PLAIN))
    assert (alone.written_by, alone.prompts["user"].text) == (None, None)
    with_file = describe(profile_of(PLAIN), Chat(CHATML, "<s>", "</s>"))
    assert with_file.prompts["user"].text == f"<|im_start|>user\n{SAMPLE['user']}<|im_end|>\n<|im_start|>assistant\n"
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + CHATML
    refused = describe(profile_of(PLAIN), Chat(refusing, "", ""))
    assert refused.prompts["user"].text and refused.prompts["assistant"].error == "one message"
    parts = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    assert describe(profile_of(PLAIN), Chat(parts, "", "")).prompts["user"].text == SAMPLE["user"]
    standing_in = describe(profile_of(QUESTIONS), Chat(CHATML, "", ""))
    assert standing_in.written_by == "profile" and "not this guard's" in standing_in.source


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("vocab", ["bpe", "spm"])
def test_the_prompt_through_a_file_is_the_one_that_the_guard_gets(tmp_path: Path, vocab: str, add_bos: bool) -> None:
    template = "{{ bos_token }}" + "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}A:"
    path = write_tiny_llama(tmp_path / "m.gguf", vocab=vocab, chat_template=template, add_bos=add_bos)
    profile = profile_of(PLAIN.replace('name = "mine"', 'name = "mine"\nmin_grammar_mass = 0.0'))
    found = describe(profile, read_chat(path)).prompts["user"].text
    with Guard.load(path, profile=profile, runtime=RuntimeOptions(threads=1)) as guard:
        ids = guard.prompt_ids(SAMPLE["user"])
        asked = show(ids, guard.backend.vocabulary)
    assert found == asked.replace("s> ", "s>").lstrip()  # SentencePiece puts a space before a text


def test_what_a_file_says_of_chats_is_read_without_its_weights(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", chat_template=None)
    assert read_chat(path) == Chat(None, "", "<|endoftext|>")
    head = path.read_bytes()
    (tmp_path / "broken.gguf").write_bytes(head[:100])
    with pytest.raises(ModelError, match="truncated or damaged"):
        read_chat(tmp_path / "broken.gguf")
    with pytest.raises(ModelError, match="does not exist"):
        read_chat(tmp_path / "none.gguf")


@pytest.mark.parametrize("vocab", ["bpe", "spm"])
def test_a_folder_says_of_chats_what_the_file_says_that_it_was_made_from(tmp_path: Path, vocab: str) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", vocab=vocab, add_bos=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in tokenizer_files(read_header(path)).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text("{}")
    assert read_chat(folder) == read_chat(path) and read_chat(folder).template == CHATML


# ------------------------------------------------------------ the command

SCREENS = {"questions": QUESTIONS, "plain": PLAIN}


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    if os.environ.get("EDGEGUARD_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", SCREENS)
def test_a_profile_is_shown_as_the_golden_screen(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "yard.toml"
    path.write_text(SCREENS[name], encoding="utf-8")
    golden(f"profile-{name}.txt", run("profiles", path, env={"COLUMNS": "80"}).stdout)
    (row,) = json.loads(run("profiles", path, "--json").stdout)
    assert row["described"]["examples"] and set(row["described"]["prompts"]) == {"user", "assistant"}
    assert row["refused"] is None and row["answer"]["pattern"]


@pytest.mark.parametrize("name", ["wildguard", "polyguard", "qwen3guard"])
def test_fields_are_shown_as_the_golden_screen(run: Run, name: str) -> None:
    path = Path(__file__).parent / "shapes" / f"{name}.toml"
    golden(f"profile-{name}.txt", run("profiles", path, env={"COLUMNS": "80"}).stdout)


REFUSED = Refused("thinker", "A guard that thinks", "it reasons before it answers", load_profile("instruct").detect, ())


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = [profile_of(QUESTIONS), shape("wildguard"), load_profile("instruct"), profile_of(PLAIN)]
    monkeypatch.setattr("edgeguard.profile.list_profiles", lambda: profiles)
    monkeypatch.setattr("edgeguard.profile.list_refused", lambda: [REFUSED])


def test_the_list_is_the_golden_screen_with_the_refused_below(run: Run, known: None) -> None:
    golden("profiles.txt", run("profiles", env={"COLUMNS": "80"}).stdout)
    rows = json.loads(run("profiles", "--json").stdout)
    assert [row["refused"] for row in rows] == [None] * 4 + ["it reasons before it answers"]


def test_a_refused_guard_is_told_with_its_reason(run: Run, known: None) -> None:
    shown = run("profiles", "thinker")
    assert shown.exit_code == 0 and "It gets no scores: it reasons before it answers" in shown.stdout
    (row,) = json.loads(run("profiles", "thinker", "--json").stdout)
    assert row == {**row, "name": "thinker", "refused": "it reasons before it answers", "facts": []}


def test_the_real_list_and_every_profile_fit_80_columns(run: Run) -> None:
    for args in ((), *((profile.name,) for profile in list_profiles())):
        result = run("profiles", *args, env={"COLUMNS": "80"})
        assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80, args


def test_a_model_file_is_only_for_a_named_profile_and_excludes_its_toml(run: Run, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf")
    shown = run("profiles", "instruct", "--model", path)
    assert "  <|im_start|>system\n" in "".join(line.rstrip() + "\n" for line in shown.stdout.splitlines())
    assert (
        run("profiles", "--model", path).exit_code == run("profiles", "instruct", "-m", path, "--toml").exit_code == 2
    )
    other = run("profiles", "llama-guard-2", "--model", path)
    assert other.exit_code == 1 and "not this guard's" in other.stderr
