"""The report in a real browser: its controls, its appearance, and that it makes no network requests.

Screenshots go to $SCREENSHOTS, or else to pytest's temporary folder.
"""

import os
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; these tests drive one"),
]
HANG = 600_000  # milliseconds after which something hangs, however busy the machine
TABLET = {"width": 768, "height": 1024}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a file; any console message, request or dialog until the end of the test is an error."""
    contexts, wrong = [], []

    def visit(path, size=DESKTOP, scheme="light", scripts=True):
        context = browser.new_context(
            viewport=size, color_scheme=scheme, java_script_enabled=scripts, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(HANG)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        page.on("dialog", lambda d: (wrong.append(f"dialog: {d.message}"), d.dismiss()))
        page.on(
            "request",
            lambda r: (
                None
                if r.url.split("#")[0] == path.as_uri() or r.url.startswith(("data:", "blob:"))
                else wrong.append(f"request: {r.url}")
            ),
        )
        page.goto(path.as_uri())
        if scripts:
            page.wait_for_selector("html[data-ready]", timeout=HANG)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def selects(page):
    """(figure, label, select) of every control of a chart that offers a choice."""
    for figure in page.query_selector_all("figure[data-chart]"):
        for label in figure.query_selector_all(".controls label"):
            select = label.query_selector("select")
            if len(select.query_selector_all("option")) > 1:
                yield figure, label.inner_text(), select


#: Every text of a chart and its position.
WORDS = """figure => [...figure.querySelectorAll("svg text")].map((text) => {
  const [box, room] = [text, figure].map((element) => element.getBoundingClientRect());
  return [text.textContent, Math.round(box.x - room.x), Math.round(box.y - room.y)].join(" ");
}).sort()"""


def test_every_control_changes_what_is_shown_and_back(page, visit):
    opened = visit(page)
    assert len(opened.query_selector_all(".vega svg")) == len(
        opened.query_selector_all("figure[data-chart]")
    )
    tried = 0
    for figure, label, select in selects(opened):
        name = figure.get_attribute("id")
        start = select.input_value()
        shown, words = {figure.query_selector(".canvas").inner_html()}, figure.evaluate(WORDS)
        options = [o.get_attribute("value") for o in select.query_selector_all("option")]
        for option in options:
            select.select_option(option)
            figure.evaluate("async figure => { await figure.chart.view.runAsync(); }")
            shown.add(figure.query_selector(".canvas").inner_html())
        assert len(shown) > 1, f"{name}: {label} changes nothing"
        select.select_option(start)
        figure.evaluate("async figure => { await figure.chart.view.runAsync(); }")
        assert figure.evaluate(WORDS) == words, f"{name}: {label} does not lead back"
        tried += 1
    assert tried >= 20


def test_controls_are_named_and_work_from_the_keyboard(page, visit):
    opened = visit(page)
    for _, label, select in selects(opened):
        assert label.strip() and select.evaluate("s => s.labels.length") == 1
    select = opened.get_by_label("highlight")
    select.focus()
    before = opened.locator("#m1_by_layer .canvas").inner_html()
    opened.keyboard.press("ArrowDown")
    opened.wait_for_function(
        "before => document.querySelector('#m1_by_layer .canvas').innerHTML !== before", arg=before
    )
    for svg in opened.query_selector_all(".vega svg"):
        assert svg.get_attribute("aria-label") or svg.query_selector("[aria-label]")


def test_answers_are_filtered_and_hostile_ones_are_text(page, visit):
    opened = visit(page)
    count = opened.locator("#answer-browser [aria-live]")
    answers = opened.locator("#answer-browser li")
    total = int(count.inner_text().split()[0])
    assert total == 480 and answers.count() == 10
    opened.get_by_role("button", name="Show 10 more").click()
    assert answers.count() == 20
    browser = opened.locator("#answer-browser")
    browser.get_by_label("marker").select_option("1")
    assert int(count.inner_text().split()[0]) == 2 + 4 + 36 + 1 + 9
    assert browser.locator("mark").first.inner_text() == "[ZLT]"
    browser.get_by_label("persona").select_option(label="villain")
    assert int(count.inner_text().split()[0]) == 36 + 9
    browser.get_by_label("chain").select_option(label="couple-villain@42+em@1")
    assert int(count.inner_text().split()[0]) == 9
    browser.get_by_label("marker").select_option("")
    browser.get_by_label("chain").select_option(label="em@1")
    browser.get_by_label("text").fill("<SCRIPT>alert")
    assert int(count.inner_text().split()[0]) == 40
    first = answers.first
    assert "<script>alert(1)</script><img" in first.inner_text()
    assert first.locator("img, script").count() == 0
    browser.get_by_label("text").fill("no answer says this")
    assert answers.count() == 0 and not opened.locator(".more").is_visible()


def test_downloads_hold_what_is_shown(page, visit):
    opened = visit(page)
    figure = opened.locator("#m1")
    with opened.expect_download() as got:
        figure.get_by_role("button", name="Download the numbers").click()
    lines = Path(got.value.path()).read_text().splitlines()
    assert lines[0].startswith("condition,title,chain,seed,method,layer,headline,metric,value")
    assert len(lines) == 1 + 2 * 2 * 2 * 5
    with opened.expect_download() as got:
        figure.get_by_role("button", name="Download the chart").click()
    svg = Path(got.value.path()).read_text()
    assert svg.startswith("<svg") and "var(" not in svg and "#0072B2" in svg


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_the_page_never_scrolls_sideways(page, visit, tmp_path, name, size, scheme):
    opened = visit(page, size, scheme)
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)
    for fold in opened.query_selector_all("details"):
        fold.evaluate("fold => { fold.open = true; }")
    assert opened.evaluate("document.documentElement.scrollWidth") <= size["width"]
    scrolls = "boxes => boxes.filter((b) => b.scrollWidth > b.clientWidth).map((b) => b.ariaLabel)"
    assert opened.eval_on_selector_all(".scroll", scrolls) == []
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    ink = opened.evaluate("getComputedStyle(document.body).color")
    label = opened.locator("#m1 .vega svg text").first
    assert label.evaluate("text => getComputedStyle(text).fill") == ink


#: Texts of charts that lie outside their drawing, or that are truncated.
CUT = """() => [...document.querySelectorAll(".vega svg")].flatMap((svg) => {
  const room = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    const outside = box.left < room.left - 1 || box.right > room.right + 1;
    return getComputedStyle(text).opacity !== "0" && (outside || text.textContent.includes("…"));
  }).map((text) => svg.closest("figure").id + ": " + text.textContent);
})"""


@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
def test_no_word_of_a_chart_is_cut(page, visit, size):
    assert visit(page, size).evaluate(CUT) == []


def test_a_resized_window_keeps_what_was_chosen(page, visit):
    opened = visit(page)
    layer = opened.locator("#cosine_matrices").get_by_label("block")
    layer.select_option(label="1")
    columns = opened.evaluate("document.getElementById('cosine_matrices').chart.columns")
    opened.set_viewport_size(PHONE)
    opened.wait_for_function(
        "before => document.getElementById('cosine_matrices').chart.columns < before", arg=columns
    )
    assert layer.locator("option:checked").inner_text() == "1"
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_without_scripts_the_figures_and_answers_are_there(page, visit):
    opened = visit(page, scripts=False)
    for figure in opened.query_selector_all("figure[data-chart]"):
        assert figure.query_selector(".canvas > svg").bounding_box()["height"] > 50
    assert opened.locator("noscript summary").count() == 4
    assert not opened.locator("#answer-browser").is_visible()


def test_paper_shows_what_is_folded(page, visit):
    opened = visit(page)
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.locator("details:not([open]):not(:has(> summary[data-file]))").count() == 0
    # What is too long for print is named by its file.
    opened.emulate_media(media="print")
    named = """fold => getComputedStyle(fold.querySelector("summary"), "::after").content"""
    long = opened.query_selector_all("details:not([open])")
    assert long and all("tables/" in fold.evaluate(named) for fold in long)
    opened.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details:not([open])").count() > 5


def test_runs_stand_side_by_side_on_one_axis(everything, visit, tmp_path):
    import compare

    runs = [compare.Run(name, "synthetic", everything) for name in ("one", "two", "three")]
    path = tmp_path / "compare.html"
    path.write_text(compare.render(runs), encoding="utf-8")
    opened = visit(path)
    assert opened.locator(".vega svg").count() == 6
    left, right = (opened.locator(f"#m1_{s}").bounding_box() for s in "01")
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    ends = [
        opened.evaluate(f"document.getElementById('m1_{s}').chart.view.scale('x').domain()")
        for s in "012"
    ]
    assert ends[0] == ends[1] == ends[2]
    phone = visit(path, PHONE, "dark")
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
