"""Pages as people see them: in a real browser, narrow and wide, light and dark, printed, by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, open_browser, printed, problems, show
from made_studies import NINE, Made, made_study

from edgeguard.quant.answer import answer
from edgeguard.quant.page import page

LIMIT = {"max_flip_rate": 0.02}
LONG = Made("A-Guard-with-a-long-name-8B-Instruct.Q4_K_M", 4900, 1, 2, 2.1)


def nine(n: int) -> list[Made]:
    """The nine variants with as many changes as so few records can have."""
    fewer = [(v, v.to_safe * n // 1000, v.to_unsafe * n // 1000) for v in NINE]
    return [Made(v.name, v.megabytes, safe, unsafe, v.speed, v.noise) for v, safe, unsafe in fewer]


STUDIES: dict[str, tuple[list[Made], dict[str, Any]]] = {
    "12 records": (nine(12), {"n": 12}),
    "60 records": (nine(60), {"n": 60}),
    "700 records": (nine(700), {"n": 700, "texts": {i: f"Text {i} " * 30 for i in range(700)}}),
    "one class": ([Made("q8_0", 145, 2), Made("q4_0", 92, 9)], {"n": 120, "unsafe": 1.0}),
    "no labels": (nine(120), {"n": 120, "labels": False}),
    "one variant with a long name": ([LONG], {"n": 400}),
    "no limits": ([Made("q8_0", 145, 1)], {"n": 300, "choices": None}),
    "none keeps": ([Made("q4_0", 92, 60, 20), Made("q4_1", 98, 50, 22)], {"n": 1000}),
    "14 labels": (nine(60)[:4], {"n": 60, "n_labels": 14}),
    "40 labels": (nine(40)[:2], {"n": 40, "n_labels": 40}),
}


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory) -> tuple[Path, str]:
    """A page, and its first sentence."""
    variants, options = STUDIES[request.param]
    folder = tmp_path_factory.mktemp("study")
    data = made_study(folder, variants, **{"choices": LIMIT, **options}).data
    file = folder / "report.html"
    file.write_text(page(data), encoding="utf-8")
    return file, answer(data).first


def test_a_study_s_page_fits_every_width_and_begins_with_its_answer(study, browser):
    file, first = study
    for width in WIDTHS:
        show(browser, file, width)
        heading = browser.find_element("tag name", "h1")
        assert heading.text.replace("\N{NO-BREAK SPACE}", " ") == first
        assert heading.rect["y"] + heading.rect["height"] < 420  # in sight before anything is scrolled
        assert problems(browser) == [], width


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    file = folder / "report.html"
    file.write_text(page(made_study(folder, NINE, choices=LIMIT).data), encoding="utf-8")
    return file


_COLOURS = """
const seen = e => getComputedStyle(e);
const paper = seen(document.documentElement).backgroundColor, body = seen(document.body).backgroundColor;
const texts = [...document.querySelectorAll("h1, p, td, th, figcaption, dd, span.no-finding")].map(e => seen(e).color);
const inside = [...document.querySelectorAll("svg.chart text")].map(e => seen(e).fill);
return [paper === "rgba(0, 0, 0, 0)" ? body : paper, [...new Set([...texts, ...inside])]];
"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_can_be_read_on_its_ground(one, browser, dark):
    """WCAG's contrast of 4.5 to 1."""
    show(browser, one, 1280, dark=dark)
    ground, inks = browser.execute_script(_COLOURS)
    assert (luminance(ground) < 0.1) == dark
    for ink in inks:
        light, low = sorted((luminance(ground), luminance(ink)), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, (ground, ink)


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of rgb(…)."""
    parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_what_is_folded_is_opened_by_keyboard(one, browser):
    from selenium.webdriver.common.keys import Keys

    show(browser, one, 768)
    folded = [e for e in browser.find_elements("css selector", "details") if e.get_attribute("open") is None]
    body = browser.find_element("tag name", "body")
    opened = 0
    for _ in range(40):
        body.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        if active.tag_name != "summary":
            break
        outline = active.value_of_css_property("outline-style")
        assert outline != "none"
        parent = active.find_element("xpath", "..")
        if parent.get_attribute("open") is None:
            active.send_keys(Keys.ENTER)
            opened += parent.get_attribute("open") is not None
    assert opened == len(folded) > 0


def test_print_shows_all_of_it_in_black_on_white(one, browser):
    show(browser, one, 768, dark=True, media="print")
    ground, _ = browser.execute_script(_COLOURS)
    assert luminance(ground) == 1
    hidden = (
        "return [...document.querySelectorAll('details:not([open]) table')].filter(e => !e.checkVisibility()).length"
    )
    assert browser.execute_script(hidden) == 0
    assert printed(browser).startswith(b"%PDF")


def test_without_chromium_the_tests_fail_and_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"), open_browser(tmp_path):
        pass


def test_the_tree_of_answers_fits_every_width(run, tiny, tmp_path, browser):
    file = tmp_path / "why.html"
    for least in (0.3, 0.0001):
        assert run("explain", "Hurt the dog", *tiny, "--html", file, "--least", least).exit_code == 0
        for width in WIDTHS:
            show(browser, file, width)
            assert "lagged" in browser.find_element("tag name", "h1").text
            assert problems(browser) == [], width
