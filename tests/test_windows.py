"""Windows of a text: what they hold, where they end, what they share."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard.windows import LEAST, OVERLAP, split

WORDS = ["a", "rain", "falls", "on", "the", "unbreakable", "hill", "3.14", "well,"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(lambda words: f"{' '.join(words)}. ")
UNBROKEN = st.text(st.sampled_from("ab漢字e\u0301👨\u200d"), min_size=1, max_size=400)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
SPACE = st.sampled_from([" ", "\n", "\n\n", "\t \n  ", "。", "!? ", "…", " " * 300])
TEXTS = st.lists(SENTENCES | UNBROKEN | ANY | SPACE, min_size=1, max_size=12).map("".join).filter(str.strip)
BUDGETS = st.integers(LEAST, 200)


def by_words(text: str) -> int:
    """Tokens as a tokenizer's: one a word of up to four letters, more of a longer one; and of much space."""
    return sum(-(-len(part) // 4) for part in re.findall(r"\S+|\s{9,}", text))


def by_bytes(text: str) -> int:
    return len(text.encode())


def parts(text: str, budget: int, tokens=by_words) -> list[str]:
    return [text[w.begin : w.end] for w in split(text, budget, tokens)]


@given(TEXTS, BUDGETS, st.sampled_from([by_words, by_bytes]))
@example("aaa\u200d👨rain.          000   000000000000a. ", 32, by_bytes)  # much space behind a word that is cut
@example("aaa\u200d👨rain.          00000000          a. ", 32, by_bytes)
@settings(deadline=None)
def test_windows_hold_all_of_a_text_but_space_between_them_in_order(text, budget, tokens):
    windows = split(text, budget, tokens)
    assert [(w.number, w.of) for w in windows] == [(i, len(windows)) for i in range(1, len(windows) + 1)]
    assert not text[: windows[0].begin].strip() and not text[windows[-1].end :].strip()
    for one, next_ in pairwise(windows):
        assert one.begin < next_.begin and one.end < next_.end
        assert not text[one.end : next_.begin].strip()
    for w in windows:
        assert text[w.begin : w.end] == text[w.begin : w.end].strip() != ""


@given(TEXTS, BUDGETS, st.sampled_from([by_words, by_bytes]))
@settings(deadline=None)
def test_no_window_has_more_tokens_than_its_budget(text, budget, tokens):
    assert all(tokens(part) <= budget for part in parts(text, budget, tokens))


@given(TEXTS, BUDGETS)
@settings(deadline=None)
def test_a_text_that_fits_is_one_window(text, budget):
    found = parts(text, budget)
    assert (found == [text.strip()]) == (by_words(text.strip()) <= budget)


@given(st.lists(SENTENCES, min_size=1, max_size=30), BUDGETS)
@settings(deadline=None)
def test_a_sentence_of_up_to_seven_sixteenths_is_whole_in_a_window(sentences, budget):
    found = parts("".join(sentences), budget)
    longest = (budget - budget // OVERLAP) // 2
    for sentence in map(str.strip, sentences):
        assert by_words(sentence) > longest or any(sentence in part for part in found)


@given(st.lists(SENTENCES, min_size=1, max_size=30), BUDGETS)
@settings(deadline=None)
def test_windows_in_a_row_share_an_eighth_of_the_budget(sentences, budget):
    text = "".join(sentences)
    for one, next_ in pairwise(split(text, budget, by_words)):
        assert by_words(text[next_.begin : one.end]) >= budget // OVERLAP


@given(st.lists(SENTENCES, min_size=2, max_size=30), BUDGETS)
@settings(deadline=None)
def test_windows_begin_and_end_with_sentences_where_these_are_short(sentences, budget):
    longest = (budget - budget // OVERLAP) // 2
    text = "".join(sentence for sentence in sentences if by_words(sentence) <= longest) or "a. b."
    for w in split(text, budget, by_words):
        assert w.begin == 0 or re.search(r"[.?]\s+$", text[: w.begin])
        assert text[w.end - 1] in ".?"


@given(TEXTS, BUDGETS)
@settings(deadline=None)
def test_the_same_text_gives_the_same_windows(text, budget):
    assert split(text, budget, by_words) == split(text, budget, by_words)


@given(SENTENCES.map(lambda s: s * 20), BUDGETS)
@settings(deadline=None)
def test_a_window_that_does_not_fit_is_made_smaller(text, budget):
    """A tokenizer reads a text in its prompt otherwise than alone, by a token or two."""
    fits = lambda part: by_words(part) <= budget - 3  # noqa: E731
    windows = split(text, budget, by_words, fits)
    assert all(fits(text[w.begin : w.end]) for w in windows)
    assert not text[windows[-1].end :].strip()


def test_where_nothing_fits_there_are_windows_all_the_same():
    assert len(split("One. Two. Three. " * 20, LEAST, by_words, lambda part: False)) == 60


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('He came. She "went." (They stayed!) Then… nothing', ["came.", 'went."', "stayed!)", "Then…", "nothing"]),
        ("今日は雨。明日は「晴れ。」です！終わり", ["雨。", "晴れ。」", "です！", "終わり"]),
        ("वह आया। वह गया॥ अब", ["आया।", "गया॥", "अब"]),
        ("هل جاء؟ نعم۔ لا", ["جاء؟", "نعم۔", "لا"]),
        ("a list\n\n- of things\n   \nand 3.14 e.g.,", ["list", "things", "e.g.,"]),
    ],
)
def test_sentences_end_where_their_writing_ends_them(text, ends):
    from edgeguard.windows import _SENTENCES

    cuts = [0, *(m.end() for m in _SENTENCES.finditer(text)), len(text)]
    pieces = [text[a:b].strip() for a, b in pairwise(cuts) if a < b]
    assert len(pieces) == len(ends) and all(p.endswith(e) for p, e in zip(pieces, ends, strict=True))


def test_what_has_no_sentences_is_cut_at_lines_and_then_at_words():
    log = "".join(f"line {i} of a log\n" for i in range(40))
    assert all(re.fullmatch(r"(line \d+ of a log\n?)+", part) for part in parts(log, LEAST))
    words = "never a stop in all of this " * 30
    assert all(set(part.split()) <= set(words.split()) for part in parts(words, LEAST))


def test_no_accent_and_no_joined_emoji_is_torn_where_nothing_else_parts_a_text():
    for letter in ("e\u0301", "👨\u200d👩\u200d👧"):
        found = parts(letter * 100, 2 * LEAST, by_bytes)
        assert len(found) > 3 and all(len(part) % len(letter) == 0 for part in found)
    assert parts("\u0301" * 100, LEAST, by_bytes)  # nothing but accents


@pytest.mark.parametrize("text", ["." * 10**6, '."' * 10**5, " " * 10**6 + "a", "a" + "\n " * 10**5 + "b", "a" * 10**5])
def test_no_text_takes_more_than_about_its_length_to_cut(text):
    """A million full stops in a row took a million steps each, by a pattern that tried anew at every one."""
    calls = 0

    def counted(part: str) -> int:
        nonlocal calls
        calls += len(part)
        return by_bytes(part)

    assert split(text, 10**5, counted)
    assert calls < 40 * len(text)


def test_a_budget_too_small_to_judge_in_is_refused():
    with pytest.raises(ValueError, match="a window of 31 tokens was asked for; expected at least 32"):
        split("a", 31, by_words)
