"""The page of `edgeguard serve`, in a real browser: what people type, send and read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, picture, problems
from fake_scorer import serve_page

from edgeguard.profile import load_profile

PAGE = files("edgeguard.serve") / "page"
PROFILE = load_profile("edgeguard-135m")
CODES = [category.code for category in PROFILE.categories]
EVIL = '<img src=x onerror="document.title=1"><b>bold</b>'


def place(parent: int | None, text: str, mass: float, *names: str, stop: bool = False) -> dict[str, Any]:
    return {"parent": parent, "text": text, "mass": mass, "names": list(names), "stop": stop, "explored": not stop}


PLACES = [
    place(None, "", 1.0), place(0, "uns", 0.9), place(1, "afe", 0.9, "unsafe"), place(2, "\n", 0.9, "unsafe"),
    place(3, "S2", 0.6, "unsafe", "S2"), place(3, EVIL, 0.3, "unsafe"), place(0, "safe", 0.1, "safe"),
    place(0, "x", 1e-6),
]  # fmt: skip


def row(**other: Any) -> dict[str, Any]:
    scores = dict.fromkeys(CODES, 0.0) | {"S2": 0.6, "S10": 0.31}
    bounds = {code: [p, min(1, p + 0.08)] for code, p in {"unsafe": 0.9, **scores}.items()}
    return {
        "id": None, "flagged": True, "unsafe": 0.9, "margin": 2.2, "categories": ["S2"], "category_scores": scores,
        "bounds": bounds, "fields": {}, "unexplored": 0.004, "off_grammar": 0.0, "estimator": "marginal",
        "calibrated": True, "guard": EVIL, "profile": "edgeguard-135m", "model_sha256": "ab" * 32,
        "tokens": {"prompt": 40, "reused": 12, "answer": 20}, "skipped": 0, "window": None,
        "explanation": {"places": PLACES}, **other,
    }  # fmt: skip


def model(name: str, **meta: Any) -> dict[str, Any]:
    categories = [{"code": c.code, "name": c.name, "description": c.description} for c in PROFILE.categories]
    thresholds = dict.fromkeys(["unsafe", *CODES], 0.5)
    about = {"profile": "edgeguard-135m", "estimator": "marginal", "calibrated": True}
    return {
        "id": name,
        "object": "model",
        "meta": {**about, "categories": categories, "thresholds": thresholds, **meta},
    }


def shown(p: float) -> str:
    """A probability as the page writes it."""
    if 0 < p < 0.0005:
        return "<0.001"
    return ">0.999" if 0.9995 <= p < 1 else f"{p:.3f}"


class Fake:
    """A scorer that answers by what a test has set, and keeps what it was asked."""

    def __init__(self) -> None:
        self.models = [model("edgeguard-135m")]
        self.reply: tuple[int, Any, dict[str, str]] = (200, {"results": [row()]}, {})
        self.key: str | None = None
        self.asked: list[Any] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        if path not in ("/v1/models", "/v1/score"):
            return 404, {"error": {"message": f"there is no {path}"}}, {}
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "a key is needed"}}, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.models}, {}
        self.asked.append(body)
        self.hold.wait(20)
        return self.reply


class Reader:
    """Somebody with the page before them. Things are waited for, some seconds."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def opens(self, width: int = 1280, *, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": [scheme]})
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(self.address)

    def types(self, text: str, kind: str = "text") -> None:
        self.by(f"input[value={kind}]").click()
        self.by("#input").clear()
        self.by("#input").send_keys(text)

    def sends(self) -> None:
        self.by("#send").click()

    def by(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.by(selector).get_property("textContent").strip()

    def waits_for(self, selector: str, words: str) -> str:
        ends = time.monotonic() + 10
        while words not in (found := self.text(selector)):
            assert time.monotonic() < ends, f"{selector} says {found!r}, and not {words!r}"
            time.sleep(0.02)
        return found

    def sets(self, selector: str, value: str) -> None:
        self.driver.execute_script(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            value,
        )


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def reader(browser: Any, fake: Fake) -> Iterator[Reader]:
    with serve_page(fake) as address:
        yield Reader(browser, address)
        fake.hold.set()


def test_a_text_is_typed_and_sent_and_its_result_read(reader: Reader, fake: Fake):
    reader.opens()
    reader.types("How do I pick a lock?")
    reader.sends()
    assert reader.waits_for("#verdict", "Flagged") == "Flagged: S2 Non-Violent Crimes. P(unsafe) 0.900."
    assert fake.asked == [{"model": "edgeguard-135m", "input": {"text": "How do I pick a lock?"}, "explain": True}]
    labels = [item.get_attribute("data-label") for item in reader.all("#bars li")]
    assert labels == ["unsafe", *CODES]
    assert reader.text('[data-label="S2"] .value') == "0.6000.600 … 0.680"
    assert reader.by('[data-label="S2"] .bar b').value_of_css_property("width") != "0px"
    assert reader.driver.get_log("browser") == []  # nothing was refused by the policy, nothing failed


def test_the_verdict_is_told_to_a_screen_reader_and_every_control_has_a_name(reader: Reader):
    reader.opens()
    reader.types("x")
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    tree = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    controls = [(role, name) for role, name in found if role in ("button", "textbox", "slider", "spinbutton", "radio")]
    assert len(controls) > 30
    assert all(name for _, name in controls), controls
    assert ("slider", "threshold of S2, Non-Violent Crimes") in controls
    assert ("image", "probability 0.600, between 0.600 and 0.680") in found
    assert [role for role, _ in found].count("status") == 2
    assert reader.text("#heard") == reader.text("#verdict")
    assert reader.by("#heard").get_attribute("role") == "status"
    assert reader.driver.switch_to.active_element.get_attribute("id") == "result-title"


def test_a_conversation_is_pasted_as_lines_or_as_json(reader: Reader, fake: Fake):
    reader.opens()
    turns = [{"role": "user", "content": "Hi\nthere"}, {"role": "assistant", "content": "Yes: what?"}]
    reader.types("User: Hi\nthere\nassistant: Yes: what?", "chat")
    assert reader.text("#understood") == "2 turns (user, assistant); the last one is judged"
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    reader.types(json.dumps({"messages": turns}), "chat")
    reader.sends()
    reader.waits_for("#status", "")
    reader.types('{"prompt": "a", "response": "b"}', "chat")
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    assert [body["input"] for body in fake.asked] == [
        {"messages": turns}, {"messages": turns}, {"prompt": "a", "response": "b"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "typed", "said"),
    [
        ("text", "", "There is no text to judge"),
        ("chat", "Hello", "The first line needs a role"),
        ("chat", '[{"role"', "This begins as JSON and is none"),
        ("chat", "{}", "has no “messages”"),
        ("chat", "[]", "No turn is there"),
    ],
)
def test_what_cannot_be_sent_is_told_and_not_sent(reader: Reader, fake: Fake, kind: str, typed: str, said: str):
    reader.opens()
    reader.types(typed, kind)
    reader.sends()
    reader.waits_for("#error", said)
    assert fake.asked == []


def test_a_threshold_is_moved_and_nothing_of_it_is_sent(reader: Reader, fake: Fake):
    reader.opens()
    reader.types("x")
    reader.sends()
    reader.waits_for("#verdict", "Flagged: S2")
    reader.sets('[data-label="S10"] input[type=range]', "0.3")
    reader.waits_for("#verdict", "Flagged: S2 Non-Violent Crimes, S10 Hate. P(unsafe) 0.900, by the thresholds on this")
    assert reader.by('[data-label="S10"] .threshold').get_property("value") == "0.3"
    for label, value in (("S2", "0.61"), ("S10", "0.5"), ("unsafe", "0.95")):
        reader.sets(f'[data-label="{label}"] .threshold', value)
    assert reader.waits_for("#verdict", "Not flagged").startswith("Not flagged. P(unsafe) 0.900")
    reader.sets('[data-label="S2"] .threshold', "7")  # none that there is: the last good one stays
    reader.waits_for("#verdict", "Not flagged")
    reader.by("#reset").click()
    assert reader.waits_for("#verdict", "Flagged") == "Flagged: S2 Non-Violent Crimes. P(unsafe) 0.900."
    assert len(fake.asked) == 1


def test_a_threshold_of_many_digits_is_shown_in_short_and_decides_as_it_is(reader: Reader, fake: Fake):
    thresholds = dict.fromkeys(CODES, 0.99) | {"unsafe": 0.8999951}
    fake.models = [model("edgeguard-135m", thresholds=thresholds)]
    fake.reply = (200, {"results": [row(unsafe=0.899999)]}, {})
    reader.opens()
    reader.types("x")
    reader.sends()
    assert reader.waits_for("#verdict", "Flagged") == "Flagged. P(unsafe) 0.900."
    number = reader.by('[data-label="unsafe"] .threshold')
    assert (number.get_property("value"), number.get_attribute("title")) == ("0.9", "0.8999951")
    assert number.get_property("scrollWidth") <= number.get_property("clientWidth")


def test_a_slider_goes_by_keys_and_the_whole_page_by_tab(reader: Reader):
    from selenium.webdriver.common.keys import Keys

    reader.opens()
    reader.by("#input").send_keys("x", Keys.CONTROL, Keys.ENTER)
    reader.waits_for("#verdict", "Flagged")
    seen = []
    for _ in range(6):
        reader.driver.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(reader.driver.switch_to.active_element.get_attribute("aria-label"))
    assert seen[1:4:2] == ["threshold of unsafe, the verdict", "threshold of S1, Violent Crimes"]
    slider = reader.by('[data-label="S10"] input[type=range]')
    slider.send_keys(Keys.HOME)
    reader.waits_for("#verdict", "S10 Hate")


def test_the_tree_of_answers_is_drawn_and_a_strangers_text_stays_text(reader: Reader):
    reader.opens()
    reader.types(EVIL)
    reader.sends()
    reader.waits_for("#answers-note", "Token by token")
    shown = reader.text("#tree")
    assert "unsafe\\n90.00 %names unsafe" in shown.replace("uns" + "afe", "unsafe")
    assert "S260.00 %names unsafe, S2" in shown
    assert EVIL in shown
    assert "x" not in [code.text for code in reader.all("#tree code")]  # too little mass
    assert EVIL in reader.text("#facts")
    assert reader.all("img, main b b") == []
    assert reader.driver.title == "edgeguard"


def test_questions_and_windows_have_their_trees_or_say_that_they_have_none(reader: Reader, fake: Fake):
    fake.reply = (
        200,
        {"results": [row(explanation={"questions": {"S2": {"places": PLACES}, "S9": {"places": []}}})]},
        {},
    )
    reader.opens()
    reader.types("x")
    reader.sends()
    reader.waits_for("#tree", "Question about S2, Non-Violent Crimes")
    assert len(reader.all("#tree details")) == 2
    window = {"number": 2, "of": 3, "begin": 10, "end": 90}
    fake.reply = (200, {"results": [row(explanation=None, window=window)]}, {})
    reader.sends()
    reader.waits_for("#answers-note", "judged in windows")
    assert "number 2 of 3 was the worst" in reader.text("#facts")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((400, {"error": {"message": "the text is too <b>long</b>"}}, {}), "the text is too <b>long</b>"),
        ((429, {"error": {"message": "it is full"}}, {"Retry-After": "3"}), "it is full (try again in 3 s)"),
        ((502, b"<html>bad gateway", {}), "The server answered 502"),
        ((200, {"results": [{"id": None, "error": {"type": "off_grammar", "message": "too little"}}]}, {}),
         "Not scored: too little (off_grammar)"),
        ((200, {"results": []}, {}), "Not scored: the server's reply has no verdict"),
        ((200, {"results": [{**row(), "unsafe": None}]}, {}), "Not scored: the server's reply has no verdict"),
    ],
)  # fmt: skip
def test_an_error_is_told_and_no_verdict_stands_beside_it(reader: Reader, fake: Fake, reply: Any, said: str):
    reader.opens()
    reader.types("x")
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    fake.reply = reply
    reader.sends()
    reader.waits_for("#error", said)
    assert not reader.by("#result").is_displayed()
    assert not reader.by("#answers").is_displayed()


def test_a_server_that_is_gone_is_told(browser: Any, fake: Fake):
    with serve_page(fake) as address:
        reader = Reader(browser, address)
        reader.opens()
        reader.types("x")
        reader.waits_for("#about", "marginal")
    reader.sends()
    reader.waits_for("#error", "The server cannot be reached")


def test_a_key_is_asked_for_sent_and_kept_nowhere(reader: Reader, fake: Fake):
    fake.key = "s3cret"
    reader.opens()
    reader.waits_for("#error", "a key is needed")
    assert reader.by("#key").is_displayed()
    assert reader.by("#key").get_attribute("type") == "password"
    reader.by("#key").send_keys("s3cret\t")
    reader.waits_for("#about", "marginal")
    assert reader.text("#error") == ""
    reader.types("x")
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    kept = reader.driver.execute_script("return [localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 0, ""]
    assert "s3cret" not in reader.driver.page_source
    assert "$EDGEGUARD_KEY" in reader.text("#curl") and 'os.environ["EDGEGUARD_KEY"]' in reader.text("#python")
    reader.opens()
    reader.waits_for("#error", "a key is needed")


def test_a_key_that_no_header_can_hold_is_told(reader: Reader, fake: Fake):
    fake.key = "k"
    reader.opens()
    reader.waits_for("#error", "a key is needed")
    reader.by("#key").send_keys("ключ\t")
    reader.waits_for("#error", "letters, digits and signs of ASCII alone")


def test_a_request_can_be_stopped(reader: Reader, fake: Fake):
    fake.hold.clear()
    reader.opens()
    reader.types("x")
    reader.sends()
    reader.waits_for("#send", "Stop")
    reader.sends()
    reader.waits_for("#status", "Stopped")
    assert reader.text("#send") == "Score"


def test_a_model_is_chosen_with_its_thresholds_and_its_band_for_review(reader: Reader, fake: Fake):
    strict = dict.fromkeys(["unsafe", *CODES], 0.95)
    fake.models.append(model("edgeguard-135m@strict", thresholds=strict, review={"default": 0.3}))
    reader.opens()
    reader.waits_for("#model", "edgeguard-135m@strict")
    reader.by("#model option:nth-child(2)").click()
    reader.types("x")
    reader.sends()
    verdict = reader.waits_for("#verdict", "For review")
    assert verdict == "For review: S2 Non-Violent Crimes, S10 Hate. P(unsafe) 0.900."
    assert fake.asked[-1]["model"] == "edgeguard-135m@strict"


@pytest.mark.parametrize("text", ["it's", 'a "b" \\ $HOME `id` %s \t tab', "äß 😀 \u2028 end", "two\nlines"])
def test_the_request_to_copy_is_the_request(reader: Reader, fake: Fake, text: str, tmp_path: Path):
    """A shell reads the curl command's words, Python runs its code."""
    reader.opens()
    reader.driver.execute_script("document.getElementById('input').value = arguments[0]", text)
    reader.by("#input").send_keys(" ")
    body = {"model": "edgeguard-135m", "input": {"text": text + " "}, "explain": True}
    words = shlex.split(reader.text("#curl"))
    assert words[:2] == ["curl", f"{reader.address}v1/score"]
    assert json.loads(words[words.index("-d") + 1]) == body
    code = tmp_path / "asked.py"
    code.write_text(reader.text("#python"), encoding="utf-8")
    done = subprocess.run([sys.executable, code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True 0.9 {'S1': 0.0")
    assert fake.asked == [body]


def test_a_command_is_copied_or_selected_to_be_copied_by_hand(reader: Reader):
    reader.opens()
    reader.by("#curl").click()
    reader.by("button[data-of=curl]").click()
    if reader.waits_for("#status", "e").startswith("Selected"):
        selected = reader.driver.execute_script("return String(getSelection())")
        assert selected.strip() == reader.text("#curl")
    else:
        assert reader.text("#status") == "Copied."


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_wider_than_the_window(reader: Reader, fake: Fake, width: int, dark: bool, tmp_path: Path):
    fake.models.append(model("a-model-with-a-very-long-name-that-somebody-gave-it@and-a-policy"))
    fake.key = "k"
    reader.opens(width, dark=dark)
    reader.waits_for("#error", "a key is needed")
    reader.by("#key").send_keys("k\t")
    reader.waits_for("#model", "policy")
    reader.types("A text of some length, " * 8)
    reader.sends()
    reader.waits_for("#verdict", "Flagged")
    assert [line for line in problems(reader.driver) if "<textarea>" not in line and "<i>" not in line] == []
    picture(reader.driver, tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
    assert too_pale(reader.driver) == []


def too_pale(driver: Any) -> list[str]:
    """Texts whose contrast with what is behind them is under 4.5, WCAG's least for small text."""
    return list(driver.execute_script(_TOO_PALE))


_TOO_PALE = """
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
function behind(e) {
  for (; e; e = e.parentElement) {
    const color = numbers(getComputedStyle(e).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color;
  }
  return [255, 255, 255];
}
const found = [];
for (const e of document.querySelectorAll("body *:not(option)")) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
  const both = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  const contrast = (both[0] + .05) / (both[1] + .05);
  if (contrast < 4.5) found.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)} ${contrast.toFixed(2)}`);
}
return found;
"""


def test_the_page_asks_nobody_but_its_server_and_has_nothing_inline():
    texts = {name: (PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js")}
    assert {file.name for file in PAGE.iterdir()} == set(texts)
    for name, text in texts.items():
        assert not re.search(r"https?://|//cdn|@import|\burl\(", text), name
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", texts["index.html"])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage|cookie", texts["page.js"]
    )
