"""The site in a real browser: pages load, formulas and pictures are there, phones show them, the search finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.site

DESKTOP, PHONE = (1400, 900), (390, 844)

FORMULAS = """
const faults = [];
for (const place of document.querySelectorAll(".formula")) {
  if (!place.querySelector(".katex") || place.querySelector(".katex-error") || !place.getBoundingClientRect().width) {
    faults.push("formula: " + place.textContent.slice(0, 80));
  }
}
// what a reader sees as text, outside of code and of what is set
const walker = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data;
  if (!walker.currentNode.parentElement.closest("code, pre, script, style, .formula, .highlight, .sig") &&
      /\\$[^$]+\\$|\\\\(frac|sqrt|alpha|sigma|hat|tilde|bar|left|mathrm|quad)/.test(text)) {
    faults.push("LaTeX in the text: " + text.trim().slice(0, 80));
  }
}
return faults;
"""

PICTURES = """
return [...document.images].filter((image) => !(image.complete && image.naturalWidth > 0)).map((image) => image.src);
"""

WIDE = """
const faults = [], width = document.documentElement.clientWidth;
// the theme lets the whole text scroll sideways on a phone, so that the body itself never does
for (const root of [document.documentElement, document.body, document.querySelector(".content")]) {
  if (root && root.scrollWidth > width) faults.push(root.tagName + " scrolls sideways, over " + root.scrollWidth);
}
const scrolls = (element) => {
  for (let above = element; above && above.tagName !== "ARTICLE"; above = above.parentElement) {
    const style = getComputedStyle(above);
    if (style.overflowX !== "visible" || style.position === "fixed") return true;
  }
  return false;
};
for (const element of document.querySelectorAll("article *")) {
  const box = element.getBoundingClientRect();
  if (box.width && box.right > width + 1 && !scrolls(element)) {
    faults.push(element.tagName + "." + element.className + " ends at " + Math.round(box.right) + ": " +
                element.textContent.trim().slice(0, 50));
  }
}
return faults.slice(0, 5);
"""

AT_ONCE = """
const style = document.createElement("style");
style.textContent = "* { transition: none !important; }";
document.head.append(style);
"""

CONTRAST = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (let above = element; above; above = above.parentElement) {
    const found = channels(getComputedStyle(above).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const faults = new Map();
const walker = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
  const seen = text && element.getBoundingClientRect().width && !element.closest(".headerlink, .katex-mathml");
  if (!seen) continue;
  const pair = [light(channels(getComputedStyle(element).color)), light(behind(element))];
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  if (ratio < (element.closest("pre") ? 3 : 4.5)) {
    faults.set(element.tagName + "." + element.className, ratio.toFixed(2) + ": " + text.slice(0, 40));
  }
}
return [...faults].map(([where, what]) => where + " " + what);
"""


def look(browser: Any, size: tuple[int, int], scheme: str = "light") -> None:
    """Gives the browser a window of this size, and the reader's wish for a light or a dark page."""
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    wish = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wish]})


def complaints(browser: Any) -> list[str]:
    """What the console has got since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def asked_for(browser: Any) -> list[str]:
    """All addresses that were asked for since."""
    told = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [event["params"]["request"]["url"] for event in told if event["method"] == "Network.requestWillBeSent"]


def documents(site: Path) -> list[str]:
    """Every page, the sources of all modules apart: of these one."""
    found = [str(page.relative_to(site)) for page in sorted(site.rglob("*.html"))]
    return [page for page in found if not page.startswith("_modules/")] + ["_modules/scoresde/sde/members.html"]


def test_every_page(site: Path, address: str, browser: Any) -> None:
    """Each is opened once, looked at on a desk, in the dark, and on a phone; all faults are told together."""
    faults: list[str] = []
    browser.get("about:blank")
    complaints(browser), asked_for(browser)  # of the browser's own first page
    for page in documents(site):
        look(browser, DESKTOP)
        browser.get(f"{address}/{page}")
        found = [f"console: {told}" for told in complaints(browser)]
        found += [f"asks for {url}" for url in asked_for(browser) if not url.startswith((address, "data:", "blob:"))]
        found += [f"picture is not there: {picture}" for picture in browser.execute_script(PICTURES)]
        found += browser.execute_script(FORMULAS)
        found += [f"on a desk: {told}" for told in browser.execute_script(WIDE)]
        found += [f"in the light: {told}" for told in browser.execute_script(CONTRAST)]
        browser.execute_script(AT_ONCE)
        look(browser, DESKTOP, "dark")
        found += [f"in the dark: {told}" for told in browser.execute_script(CONTRAST)]
        look(browser, PHONE)
        found += [f"on a phone: {told}" for told in browser.execute_script(WIDE)]
        faults += [f"{page}: {told}" for told in found]
    assert not faults, "\n".join(faults)


def test_formulas_are_found(address: str, browser: Any) -> None:
    """So that a change of their class does not silence the test above."""
    look(browser, DESKTOP)
    browser.get(f"{address}/equations.html")
    assert browser.execute_script("return document.querySelectorAll('.formula .katex').length") > 500
    browser.get(f"{address}/reference/sde.html")
    assert browser.execute_script("return document.querySelectorAll('.equation-rows .formula .katex').length") > 30


def test_an_address_leads_to_its_place(address: str, browser: Any) -> None:
    """Also below hundreds of formulas, which are taller than their source: the heading is at the top of the window."""
    look(browser, DESKTOP)
    browser.get(f"{address}/equations.html#exact-problems")
    top = "return document.getElementById('exact-problems').getBoundingClientRect().top"
    wait(browser, lambda: 0 <= browser.execute_script(top) < 200)


@pytest.mark.parametrize(
    ("query", "expected"),
    [("DPMSolverPP", "DPMSolverPP"), ("effective sample size", "article"), ("marginal", "scoresde.sde.SDE.marginal")],
)
def test_the_search_finds(query: str, expected: str, address: str, browser: Any) -> None:
    """By this machine alone: names, words, and members of classes."""
    look(browser, DESKTOP)
    browser.get(f"{address}/search.html?q={query.replace(' ', '+')}")
    results = "return [...document.querySelectorAll('#search-results ul.search li')].map((found) => found.textContent)"
    wait(browser, lambda: browser.execute_script(results))
    assert expected == "article" or any(expected in found for found in browser.execute_script(results))
    browser.find_element("css selector", "#search-results ul.search li a").click()
    wait(browser, lambda: query.split()[0].lower() in browser.find_element("css selector", "article").text.lower())
    assert not complaints(browser)


def test_the_menu_of_a_phone_opens(address: str, browser: Any) -> None:
    look(browser, PHONE)
    browser.get(f"{address}/index.html")
    left = "return document.querySelector('.sidebar-drawer').getBoundingClientRect().left"
    assert browser.execute_script(left) < 0
    browser.find_element("css selector", ".nav-overlay-icon, .mobile-header label[for='__navigation']").click()
    wait(browser, lambda: browser.execute_script(left) >= 0)


def wait(browser: Any, ready: Any, seconds: float = 20.0) -> None:
    """Until ``ready()``; what it raises on the way, as where an element is not there yet, is only late."""
    support = pytest.importorskip("selenium.webdriver.support.ui")
    common = pytest.importorskip("selenium.common.exceptions")
    support.WebDriverWait(browser, seconds, ignored_exceptions=(common.WebDriverException,)).until(lambda _: ready())
