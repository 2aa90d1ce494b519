"""Pages in a real browser: how wide they get, what is cut, what covers what."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 768, 1280)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip


@contextmanager
def open_browser(folder: Path) -> Iterator[Any]:
    """A driver of Chromium with a profile of its own in `folder`."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        pytest.fail(
            f"the tests of pages need {missing}, which is not on PATH: apt-get install chromium chromium-driver"
        )
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        pytest.fail("the tests of pages need selenium, which is not installed: pip install --group test")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, path: Path, width: int, *, dark: bool = False, media: str = "screen") -> None:
    """Open a page in a window so many pixels wide."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    driver.get(path.resolve().as_uri())


def picture(driver: Any, path: Path) -> None:
    """The whole page as PNG, for people who change it."""
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    path.write_bytes(base64.b64decode(taken["data"]))


def problems(driver: Any) -> list[str]:
    """What is wrong with the page that is shown: wider than its window, words that are cut or cover each other."""
    found: list[str] = driver.execute_script(_PROBLEMS)
    return found


def printed(driver: Any) -> bytes:
    """The page as PDF."""
    done: Mapping[str, str] = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    return base64.b64decode(done["data"])


_PROBLEMS = """
const found = [];
document.querySelectorAll("details").forEach(d => d.open = true);
const wide = document.documentElement;
if (wide.scrollWidth > wide.clientWidth) found.push(`the page is ${wide.scrollWidth} wide in ${wide.clientWidth}`);
const named = e => `<${e.tagName.toLowerCase()}> "${e.textContent.trim().slice(0, 40)}"`;
for (const e of document.querySelectorAll("main *:not(svg):not(svg *)")) {
  const box = e.getBoundingClientRect();
  if (box.width < 2 || getComputedStyle(e).clipPath !== "none" || e.closest("thead")?.offsetWidth === 1) continue;
  if (box.right > wide.clientWidth + 1 || box.left < -1) found.push(`${named(e)} ends at ${box.right}`);
  if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
    found.push(`${named(e)} needs ${e.scrollWidth} and has ${e.clientWidth}`);
}
for (const svg of document.querySelectorAll("svg.chart")) {
  const whole = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map(t => [t, t.getBoundingClientRect()]);
  texts.forEach(([t, a], i) => {
    if (a.left < whole.left - 1 || a.right > whole.right + 1 || a.top < whole.top - 1 || a.bottom > whole.bottom + 1)
      found.push(`${named(t)} is cut: ${a.left}…${a.right} in ${whole.left}…${whole.right}`);
    for (const [u, b] of texts.slice(i + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
        found.push(`${named(t)} covers ${named(u)}`);
  });
}
return found;
"""
