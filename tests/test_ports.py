"""What a model file's chat template asks differently from a guard's published prompt, on templates that users met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prompt import byte_vocabulary, llama3, show
from tiny_gguf import CHATML, write_tiny_llama

from edgeguard import Guard
from edgeguard.backend import RuntimeOptions
from edgeguard.ports import CONVERSATIONS, TEXTS, Ported, PromptCheck, check_prompt, compare, excerpt
from edgeguard.profile import Detect, Profile, load_profile
from edgeguard.prompt import compile_prompt
from edgeguard.rows.record import Message
from edgeguard.selftest import self_test
from edgeguard.templates import draft

GUARD = load_profile("llama-guard-3")
FULL = GUARD.prompt.text.replace("{{ last }}", "{{ who }}").replace(
    "{% set last = roles[messages[-1].role] %}",
    "{% set who = 'Agent' if messages[-1].role == 'assistant' else 'User' %}",
)
HF = "{% set roles = {'user': 'User', 'assistant': 'Agent'} %}" + FULL


def hf(template: str = HF) -> str:
    """A template that needs nothing of the profile, its categories spelled out, as files carry them."""
    listed = "".join(f"{c.code}: {c.name}.\n" for c in GUARD.categories)
    loop = "{% for c in categories %}\n{{ c.code }}: {{ c.name }}.\n{% endfor %}\n"
    assert loop in template
    return template.replace(loop, listed)


OLLAMA = hf(HF.replace("{{ who }}", "User"))  # says the user whoever is judged
PARTS = hf(HF.replace("m.content |", "(m.content | selectattr('type', 'equalto', 'text') | first).text |"))
ALTERNATING = (
    "{% if messages[-1].role != 'user' %}{{ raise_exception('After the optional system message, conversation roles "
    "must alternate user/assistant') }}{% endif %}" + hf()
)
MANY = (
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}<|im_start|>assistant\n"
)


def checked(template: str | None, profile: Profile = GUARD) -> PromptCheck:
    return check_prompt(profile, template, llama3)


def kinds(found: PromptCheck) -> list[str]:
    return [finding.kind for finding in found.findings]


def test_a_file_whose_template_writes_the_published_prompt_differs_in_nothing() -> None:
    found = checked(hf())
    assert (found.findings, found.compared, found.written_by) == ((), True, "profile")
    assert found.summary.endswith("the file's chat template writes the same")


def test_a_template_that_always_says_user_does_not_judge_a_response() -> None:
    found = checked(OLLAMA)
    assert kinds(found) == ["same_for_both_roles", "other_words"]
    role, words = found.findings
    assert "a response is not judged as one" in role.text
    assert "'Agent' messages" in role.published and "'User' messages" in role.ported
    assert words.turns == ("user", "assistant")  # where a prompt is judged they agree
    assert "in 'Agent'" in words.published and "in 'User'" in words.ported


def test_a_plain_chat_template_says_nothing_of_the_task() -> None:
    found = checked(CHATML)
    assert kinds(found) == ["no_task", "other_words"]
    assert "none of the 14 categories" in found.findings[0].text
    assert "the file's chat template, and that asks otherwise" in found.summary
    assert kinds(checked(MANY)) == ["no_task", "adds_system", "other_words"]
    assert '"You are a helpful assistant."' in checked(MANY).findings[1].text


def test_a_template_that_reads_parts_alone_drops_the_conversation_of_most_programs() -> None:
    found = checked(PARTS)
    assert kinds(found) == ["reads_parts_only"]
    assert "judge an empty conversation" in found.findings[0].text


def test_a_file_without_a_template_leaves_the_prompt_to_the_profile() -> None:
    found = checked(None)
    assert (found.template, found.compared, found.findings) == (False, False, ())
    assert "carries no chat template" in found.summary
    standing_in = replace(GUARD, prompt=replace(GUARD.prompt, template="model"))
    assert checked(None, standing_in).summary.endswith("the profile's published prompt stands in")
    strange = replace(standing_in, detect=replace(GUARD.detect, template_contains=("S1: Violent",)))
    assert "a chat template that is not this guard's" in checked(CHATML, strange).summary
    through_file = checked(hf(), standing_in)
    assert (through_file.written_by, through_file.summary) == (
        "file",
        "the chat template in the model file writes the prompts, as it is published",
    )


def test_a_template_that_refuses_roles_is_quoted() -> None:
    found = checked(ALTERNATING)
    assert kinds(found) == ["refuses_roles"]
    assert (
        'whose response is judged: "After the optional system message, conversation roles must'
        in found.findings[0].text
    )
    assert found.findings[0].turns == ("user", "assistant")
    broken = checked("{{ messages[0].nothing.at_all }}")
    assert kinds(broken) == ["refuses_roles", "refuses_roles"] and "has no attribute" in broken.findings[0].text


def test_a_template_that_drops_a_turn_is_told_from_one_that_drops_all() -> None:
    last = hf().replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
    assert [f.text for f in checked(last).findings] == ["it drops the user's turn where a response is judged"]
    assert [f.text for f in checked("Task: none").findings] == [
        "it drops the conversation where a prompt is judged",
        "it drops the conversation where a response is judged",
    ]


def test_another_taxonomy_is_told_code_by_code() -> None:
    def told(template: str) -> dict[str, str]:
        return {f.kind: f.text for f in checked(template).findings}

    shorter = told(hf().replace("S14: Code Interpreter Abuse.\n", "").replace("S13: Elections.\n", ""))
    assert shorter["other_categories"] == "it lacks S13 Elections, S14 Code Interpreter Abuse"
    older = told(hf().replace("S5: Defamation.", "S5: Specialized Advice."))
    assert older["other_categories"] == "it calls S5 'Specialized Advice', not 'Defamation'"
    longer = told(hf().replace("<END UNSAFE", "S15: Spam.\n<END UNSAFE"))
    assert longer["more_codes"] == "it names S15, which the profile has not"
    few = hf()
    for category in GUARD.categories[3:]:
        few = few.replace(f"{category.code}: {category.name}.\n", "")
    assert told(few)["other_categories"].endswith("S6 Specialized Advice, S7 Privacy and 7 more")


def test_the_first_difference_shows_whitespace_that_one_would_not_see() -> None:
    (finding,) = checked(hf().replace("violated categories.<|eot_id|>", "violated categories. <|eot_id|>")).findings
    assert finding.kind == "other_words"
    assert finding.published.startswith("…") and "categories.<|eot_id|>" in finding.published
    assert "categories.␣<|eot_id|>" in finding.ported
    (finding,) = checked(hf() + "{{ '\\n\\n' }}").findings
    assert finding.published.endswith("<|end_header_id|>⏹") and finding.ported.endswith("<|end_header_id|>⏎⏎⏹")


def test_a_first_token_that_only_one_of_them_spells_is_no_difference() -> None:
    assert checked(hf().replace("<|begin_of_text|>", "{{ bos_token }}")).findings == ()
    assert checked(hf().replace("<|begin_of_text|>", "")).findings == ()


def test_a_profile_without_a_published_prompt_is_not_compared() -> None:
    found = checked(MANY, load_profile("instruct"))
    assert (found.compared, found.written_by) == (False, "file")
    assert found.summary == "the chat template in the model file writes the prompts around the profile's messages"


def test_a_prompt_that_holds_no_taxonomy_lacks_none() -> None:
    vocabulary = byte_vocabulary(("<|im_start|>", "<|im_end|>"), eog="<|im_end|>")
    own = replace(load_profile("edgeguard-135m"), detect=Detect(template_contains=("assistant",)))
    assert kinds(check_prompt(own, MANY, vocabulary)) == ["adds_system", "other_words"]


def test_a_base_s_template_is_not_held_against_a_guard_that_was_trained_without_it() -> None:
    vocabulary = byte_vocabulary(("<|im_start|>", "<|im_end|>"), eog="<|im_end|>")
    assert not check_prompt(load_profile("edgeguard-135m"), MANY, vocabulary).compared


def test_a_hostile_template_ends_as_a_refusal() -> None:
    for hostile in (
        "{% for a in range(99999) %}{% for b in range(999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "\ue000",
    ):
        found = checked(hostile)
        assert {f.kind for f in found.findings} <= {"refuses_roles", "drops_text"} and found.findings
        assert all(len(f.text) < 250 and f.text.isprintable() for f in found.findings)


@pytest.mark.parametrize("roles", CONVERSATIONS)
def test_a_draft_is_the_prompt_that_the_guard_is_asked_as_text(roles: tuple[str, ...]) -> None:
    turns = [Message(role, TEXTS[role]) for role in roles]
    own = draft(GUARD, llama3, None, by="profile").write(turns)
    assert own == show(compile_prompt(GUARD, None, llama3).encode(turns), llama3)
    through_file = replace(GUARD, prompt=replace(GUARD.prompt, template="model"))
    written = draft(through_file, llama3, hf(), by="file").write(turns)
    assert written == own == show(compile_prompt(through_file, hf(), llama3).encode(turns), llama3)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (OLLAMA, ["same_for_both_roles", "other_words"]),
        (CHATML, ["no_task", "other_words"]),
        (PARTS, ["reads_parts_only"]),
        (None, []),
        (ALTERNATING, ["refuses_roles"]),
    ],
    ids=["always the user", "ChatML", "parts", "none", "refusing"],
)
def test_a_file_of_the_guard_with_a_strange_template_is_asked_the_published_prompt_and_told(
    tmp_path: Path, template: str | None, expected: list[str]
) -> None:
    path = write_tiny_llama(tmp_path / "port.gguf", n_layer=1, n_ctx=4096, chat_template=template, add_bos=True)
    with Guard.load(path, profile="llama-guard-3", runtime=RuntimeOptions(threads=1)) as guard:
        found = self_test(guard).prompt
        assert (kinds(found), found.written_by, found.template) == (expected, "profile", template is not None)
        assert "<BEGIN UNSAFE CONTENT CATEGORIES>" in show(guard.prompt_ids("Hi"), guard.backend.vocabulary)


texts = st.text("aS1 \n\t<>|:.é\x1b", max_size=60)


@given(st.lists(texts, min_size=4, max_size=4), st.booleans())
def test_a_comparison_never_fails_and_shows_nothing_that_styles_a_terminal(parts: list[str], reads: bool) -> None:
    own = {roles: parts[0] + "".join(TEXTS[r] for r in roles) + parts[1] for roles in CONVERSATIONS}
    there = {
        roles: Ported(parts[2] + ("".join(TEXTS[r] for r in roles) if reads else "") + parts[3])
        for roles in CONVERSATIONS
    }
    for finding in compare(own, there, texts=TEXTS, categories=GUARD.categories):
        assert (finding.text + finding.published + finding.ported).isprintable()
    same = {roles: Ported(text) for roles, text in own.items()}
    assert compare(own, same, texts=TEXTS, categories=GUARD.categories) == ()


@given(texts, st.integers(0, 80))
def test_an_excerpt_is_short_and_on_one_line(text: str, at: int) -> None:
    shown = excerpt(text, min(at, len(text)))
    assert shown.isprintable() and len(shown) < 300


@pytest.mark.parametrize("name", ["llama-guard-1", "llama-guard-2"])
def test_a_guard_that_is_asked_through_its_file_alone_has_nothing_to_compare(name: str) -> None:
    profile = load_profile(name)
    if not profile.prompt.text:
        template = " ".join(profile.detect.template_contains)
        assert checked(template, profile).summary == "the chat template in the model file writes the prompts"
