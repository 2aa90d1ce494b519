"""Charts and their pages: what is drawn is where it belongs, and nothing of a stranger's is taken for markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from edgeguard.charts import marks, page
from edgeguard.charts.frame import Frame, at_widths, chart
from edgeguard.charts.scale import Scale, around, tick_text
from edgeguard.charts.svg import element

finite = st.floats(-1e6, 1e6)


def frame(x: Scale | None = None, y: Scale | None = None, **more: object) -> Frame:
    unit = Scale(0, 1)
    return Frame("Title", "what it shows", x or unit, y or unit, "across", "up", **more)


@given(finite, st.floats(1e-3, 1e6), st.lists(finite, min_size=2))
def test_a_scale_keeps_order_and_stays_inside(low, width, values):
    scale = Scale(low, low + width, 10, 300)
    pixels = [scale(v) for v in sorted(values)]
    assert pixels == sorted(pixels)
    assert all(10 <= p <= 300.0001 for p in pixels)


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans(), st.integers(2, 9))
def test_ticks_are_inside_rising_and_no_more_than_asked(low, ratio, log, most):
    scale = Scale(low, low * ratio, log=log)
    ticks = scale.ticks(most)
    assert ticks == sorted(set(ticks)) and len(ticks) <= most
    assert all(low * (1 - 1e-6) <= t <= low * ratio * (1 + 1e-6) for t in ticks)


@given(st.lists(finite, min_size=1), st.booleans())
@example([5e-324], False)
@example([0.0, 5e-324], True)
@example([1e-310, 3e-310], False)
@example([1.0, 1.0 + 2**-52], True)
@example([-1.0 - 2**-52, -1.0], False)
def test_a_scale_around_values_holds_them(values, zero):
    scale = around(*values, zero=zero)
    slack = 1e-6 * max(1, *map(abs, values))
    assert all(scale.low - slack <= v <= scale.high + slack for v in values)
    assert not zero or scale.low <= 0
    ticks = scale.ticks(5)
    assert 2 <= len(set(ticks)) == len(ticks)


@pytest.mark.parametrize(("value", "said"), [(0, "0"), (0.05, "0.05"), (1000, "1,000"), (-2, "−2"), (1e8, "1e+08")])
def test_ticks_are_written_short(value, said):
    assert tick_text(value) == said


@given(st.text())
def test_no_text_is_markup(name):
    parts = element("text", name, data_id=name), marks.upright(Scale(0, 1, 0, 99), Scale(0, 1, 99, 0), 0.5, name)
    for part in parts:
        root = ElementTree.fromstring(str(part))
        assert {e.tag for e in root.iter()} <= {"text", "g", "path"}


def test_a_chart_says_what_it_shows_to_who_cannot_see_it():
    drawn = chart(frame(), lambda x, y: marks.points(x, y, [marks.Point(0.5, 0.25, "half", y_low=0.1, y_high=0.4)]))
    root = ElementTree.fromstring(str(drawn))
    assert root.get("role") == "img"
    named = {e.get("id"): e.text for e in root if e.get("id")}
    assert [named[i] for i in root.get("aria-labelledby", "").split()] == ["Title", "what it shows"]
    assert "half" in drawn


def test_a_chart_at_two_widths_has_ids_of_their_own():
    drawn = at_widths(frame(), lambda x, y: marks.diagonal(x, y))
    ids = re.findall(r' id="(\w+)"', drawn)
    assert len(ids) == len(set(ids)) == 4


def test_a_point_is_where_its_numbers_are():
    x, y = Scale(0, 1, 0, 100), Scale(0, 1, 100, 0)
    (circle,) = re.findall(r'<circle cx="(\S+)" cy="(\S+)"', marks.points(x, y, [marks.Point(0.25, 0.75)]))
    assert circle == ("25", "25")


def test_steps_are_level_up_to_each_point():
    x, y = Scale(0, 4, 0, 4), Scale(0, 4, 0, 4)
    (path,) = re.findall(r' d="(\S.*?)"', marks.steps(x, y, [0, 1, 2], [9, 3, 4]))
    assert path == "M0 3L1 3L1 4L2 4"


def test_a_number_that_is_none_breaks_a_line():
    x = Scale(0, 9, 0, 9)
    assert 'd="M0 0L1 1M3 3L4 4"' in marks.line(x, x, [0, 1, 2, 3, 4], [0, 1, math.nan, 3, 4])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60), st.integers(0, 3))
def test_a_curve_of_many_points_is_small_and_keeps_its_ends_and_peaks(n, seed):
    n, x, y = n * 200, Scale(0, 1, 0, 300), Scale(0, 1, 200, 0)
    xs = [i / n for i in range(n + 1)]
    ys = [(i * (7919 + seed) % 1009) / 1009 for i in range(n + 1)]
    drawn = marks.line(x, y, xs, ys)
    places = [tuple(map(float, p.split(" "))) for p in re.findall(r"[ML](\S+ [\d.]+)", drawn)]
    assert len(places) <= 4 * 602
    assert places[0][0] == 0 and places[-1][0] == 300
    assert min(p[1] for p in places) == pytest.approx(y(max(ys)), abs=0.06)  # a tenth of a pixel is written


def test_names_of_points_do_not_cover_one_another():
    x, y = Scale(0, 1, 40, 320), Scale(0, 1, 200, 20)
    near = [(0.5 + i / 100, 0.5 + i / 200, f"variant-{i}") for i in range(5)]
    spots = re.findall(r'<text x="(\S+)" y="(\S+)">', marks.labels(x, y, near))
    boxes = [(float(a), float(b)) for a, b in spots]
    wide = marks.CHARACTER * len("variant-0")
    for i, (a, b) in enumerate(boxes):
        assert all(abs(a - c) >= wide or abs(b - d) >= 12 for c, d in boxes[:i])


class _Outside(HTMLParser):
    """What a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v for k, v in attrs if k in ("src", "srcset", "action") or k.startswith("on")}
        link = dict(attrs).get("href") or "#"
        self.found += [tag] if found or tag in ("script", "link", "iframe") or not link.startswith("#") else []


def test_a_page_needs_nothing_from_the_network_and_runs_nothing():
    rows = [["<b>x</b>", "1"], ["y", Markup("<em>2</em>")]]
    html = page.document("A <page>", page.table([page.Column("name", number=False), page.Column("value")], rows))
    reader = _Outside()
    reader.feed(html)
    assert reader.found == []
    assert "url(" not in html and "@import" not in html
    assert "&lt;b&gt;x" in html and "<em>2</em>" in html and "A &lt;page&gt;" in html
    assert 'data-label="value"' in html


def test_a_row_that_has_too_few_cells_is_no_table():
    with pytest.raises(ValueError, match="other than 1 cells"):
        page.table([page.Column("a")], [["1", "2"]])
