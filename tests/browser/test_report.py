"""The report in a real browser: drawn, reached by mouse and keyboard, readable by day and night.

Chromium is Debian's; without it these tests are skipped. Screenshots go to NOISESCOPE_ARTEFACTS.
"""

import os
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.diagnoses import whole_diagnosis, with_name
from helpers.hostile import HOSTILE, hostile_sections

from noisescope.report.page.page import page_bytes
from noisescope.report.page.sections import diagnosis_sections, report_files
from noisescope.report.pictures.paint import THEME, contrast

ARTEFACTS = Path(os.environ.get("NOISESCOPE_ARTEFACTS", Path(__file__).parents[2] / ".artefacts"))
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def pictures():
    """Every figure of the report by its name, to know what it should say."""
    return {p.name: p for s in diagnosis_sections(whole_diagnosis()) for p in s.pictures}


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as started:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = started.chromium.launch(executable_path=path, args=root)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a whole diagnosis on disk, of a model with a name that is no word."""
    place = tmp_path_factory.mktemp("report")
    (place / "figures").mkdir()
    files = report_files(with_name(whole_diagnosis(), "my <b>model</b> {{7*7}}"))
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place / "report.html"


@pytest.fixture
def opened(browser, report):
    """Opens pages and, at the end, wants none of them to have complained or fetched anything."""
    contexts, wrong = [], []

    def opened(path=report, media=None, **options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url))
        if media is not None:
            page.emulate_media(media=media)
        page.goto(path.as_uri())
        wrong.remove(path.as_uri())
        return page

    opened.wrong = wrong
    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def shoot(page, name, **options):
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", **options)


def test_every_figure_is_drawn_and_nothing_is_fetched(opened, pictures):
    page = opened()
    boxes = page.eval_on_selector_all(
        "figure svg", "all => all.map(s => { const b = s.getBBox(); return [b.width, b.height]; })"
    )
    assert len(boxes) == len(pictures) >= 9
    assert all(width > 100 and height > 50 for width, height in boxes)
    sizes = page.eval_on_selector_all(
        "figure .mark",
        "all => all.map(m => { const b = m.getBoundingClientRect(); return [b.width, b.height]; })",
    )
    assert len(sizes) == sum(len(p.tips) for p in pictures.values()) > 100
    assert all(width > 2 and height > 2 for width, height in sizes)
    # No text runs out of its figure.
    cut = page.eval_on_selector_all(
        "figure svg text",
        """all => all.filter(t => {
             const b = t.getBoundingClientRect(), s = t.ownerSVGElement.getBoundingClientRect();
             return b.left < s.left - 2 || b.right > s.right + 2
                 || b.top < s.top - 2 || b.bottom > s.bottom + 2;
           }).map(t => t.textContent)""",
    )
    assert cut == []
    shoot(page, "desktop", full_page=True)


def test_a_complaint_of_the_page_is_seen(opened, tmp_path):
    """The checks at the end of every test fail for a page that errs, logs or fetches."""
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.log(1); x.y</script><img src='other.png'>")
    opened(bad)
    assert len(opened.wrong) >= 3
    opened.wrong.clear()


def test_hover_shows_what_the_mark_says(opened, pictures):
    page = opened()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    for name in ("map", "prediction", "dose", "windows"):
        marks = page.locator(f"figure[aria-labelledby='{name}-title'] .mark")
        said = set()
        for mark in (marks.first, marks.last):
            mark.scroll_into_view_if_needed()
            mark.hover()
            said.add(tip.inner_text())
        assert len(said) == 2 and said <= set(pictures[name].tips.values())
    inside = tip.bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= DESKTOP["width"]
    shoot(page, "hover")
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_tab_reaches_every_figure_and_arrows_every_mark(opened):
    page = opened()
    counts = page.eval_on_selector_all(
        "figure svg", "all => all.map(s => s.querySelectorAll('.mark').length)"
    )
    page.evaluate("document.activeElement.blur()")
    reached = Counter()
    for _ in range(400):
        page.keyboard.press("Tab")
        where = page.evaluate(
            """() => { const e = document.activeElement;
                 return e.classList.contains('mark')
                   ? [...document.querySelectorAll('figure svg')].indexOf(e.ownerSVGElement)
                   : e === document.body ? -2 : -1; }"""
        )
        if where == -2:
            break
        reached[where] += 1
    assert sorted(n for n in reached if n >= 0) == [n for n, count in enumerate(counts) if count]
    assert all(times == 1 for where, times in reached.items() if where >= 0)

    for number, count in enumerate(counts):
        seen = page.evaluate(
            """number => {
                 const svg = document.querySelectorAll('figure svg')[number];
                 const marks = [...svg.querySelectorAll('.mark')], seen = new Set();
                 if (!marks.length) return 0;
                 marks[0].focus();
                 for (let n = 0; n < marks.length + 2; n++) {
                   seen.add(document.activeElement);
                   document.activeElement.dispatchEvent(
                     new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
                 }
                 return seen.size; }""",
            number,
        )
        assert seen == count


def test_keys_move_the_focus_and_escape_closes(opened):
    page = opened()
    tip, focused = page.locator("#tip"), page.locator("*:focus")
    page.locator("#map figure .mark[tabindex='0']").first.focus()
    first = tip.inner_text()
    assert tip.is_visible() and focused.get_attribute("aria-label") == first.split("\n")[0]
    page.keyboard.press("ArrowDown")
    below = focused.bounding_box()
    assert tip.inner_text() != first
    said = page.locator("#said")
    assert said.get_attribute("aria-live") == "polite"
    assert said.text_content() == "; ".join(tip.inner_text().split("\n")[1:])
    page.keyboard.press("ArrowUp")
    assert tip.inner_text() == first and focused.bounding_box()["y"] < below["y"]
    page.keyboard.press("End")
    assert tip.inner_text() != first
    page.keyboard.press("Home")
    assert tip.inner_text() == first
    shoot(page, "focus")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    page.keyboard.press("Tab")
    assert tip.is_hidden()


def test_hostile_names_stay_text(opened, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_bytes(page_bytes(HOSTILE[0], HOSTILE, hostile_sections()))
    page = opened(path)
    assert page.title() == HOSTILE[0]
    for tag in ("img", "iframe", "object", "foreignObject", "b"):
        assert page.locator(tag).count() == 0, tag
    assert page.locator("script").count() == page.locator("style").count() == 1
    assert page.locator("figure svg").count() == len(HOSTILE)
    assert "49" not in page.inner_text("#verdict") and "{{7*7}}" in page.inner_text("#verdict")
    first = page.locator("figure .mark").first
    first.hover()
    assert page.locator("#tip").inner_text().startswith(HOSTILE[0])
    assert page.locator("#tip *").count() == 0
    shoot(page, "hostile", full_page=True)


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_scrolls_figures_and_not_the_page(opened, tmp_path, width):
    path = tmp_path / "hostile.html"
    path.write_bytes(page_bytes("a" * 400, HOSTILE, hostile_sections()))
    for page in (opened(viewport={**PHONE, "width": width}),
                 opened(path, viewport={**PHONE, "width": width})):  # fmt: skip
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = opened(viewport={**PHONE, "width": width})
    heights = small.eval_on_selector_all(
        "figure svg text", "all => all.map(t => t.getBoundingClientRect().height)"
    )
    assert min(h for h in heights if h) >= 8
    mark = small.locator("#map figure .mark").first
    mark.focus()
    box = small.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    if width == PHONE["width"]:
        shoot(small, "phone")
        shoot(small, "phone-whole", full_page=True)


COLOURS = """selector => [...document.querySelectorAll(selector)].map(e => {
  const hex = c => '#' + c.match(/[\\d.]+/g).slice(0, 3)
    .map(v => Number(v).toString(16).padStart(2, '0')).join('');
  const style = getComputedStyle(e);
  return hex(e.ownerSVGElement ? style.fill : style.color);
})"""


# The numbers on the map, each with the ground of its cell.
ON_CELLS = """() => {
  const middle = e => { const b = e.getBoundingClientRect();
                        return [b.left + b.width / 2, b.top + b.height / 2]; };
  const marks = [...document.querySelectorAll('figure[aria-labelledby=map-title] .mark')];
  return [...document.querySelectorAll('figure[aria-labelledby=map-title] text')].flatMap(t => {
    const [x, y] = middle(t);
    const cell = marks.map(m => [m, m.getBoundingClientRect()]).find(
      ([, b]) => b.left < x && x < b.right && b.top < y && y < b.bottom);
    return cell ? [[getComputedStyle(t).fill, getComputedStyle(cell[0]).fill]] : [];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, scheme):
    page = opened(color_scheme=scheme)
    number = ["light", "dark"].index(scheme)
    (paper,) = page.evaluate(COLOURS.replace("style.color", "style.backgroundColor"), "body")
    assert paper == THEME["paper"][number]
    for selector in ("p, li, h1, h2, h3, td, th, figcaption, summary, a, code", "#dose svg text"):
        found = set(page.evaluate(COLOURS, selector))
        assert found and all(contrast(colour, paper) >= 4.5 for colour in found), found
    pairs = page.evaluate(ON_CELLS)
    assert len(pairs) > 8
    for pair in pairs:
        fill, ground = ("#" + "".join(f"{int(v):02x}" for v in c[4:-1].split(",")) for c in pair)
        assert contrast(fill, ground) >= 4.5
    if scheme == "dark":
        shoot(page, "dark", full_page=True)


def test_print_is_by_day_and_whole(opened):
    page = opened(media="print", color_scheme="dark", viewport={"width": 794, "height": 1123})
    (ink,) = page.evaluate(COLOURS, "h1")
    assert ink == THEME["ink"][0]
    assert page.locator("nav").is_hidden() and page.locator("#verdict").is_visible()
    wide = page.eval_on_selector_all("figure svg", "all => all.map(s => s.clientWidth)")
    assert max(wide) <= 794
    shoot(page, "print", full_page=True)
    assert page.pdf(path=ARTEFACTS / "print.pdf", format="A4").startswith(b"%PDF")


def test_without_script_all_of_it_can_be_read(opened, pictures):
    page = opened(java_script_enabled=False)
    assert page.locator("#verdict li").count() >= 5
    for name in pictures:
        assert page.locator(f"figure[aria-labelledby='{name}-title'] svg").is_visible()
    details = page.locator("#map details").first
    details.locator("summary").click()
    assert details.locator("tbody tr").first.is_visible()
    assert page.locator("#map figure .mark title").first.text_content().count("\n") >= 1
    assert page.locator("#how pre").inner_text().startswith("noisescope diagnose")


def test_a_screen_reader_finds_its_way(opened):
    page = opened()
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("main", "header", "nav", "footer"):
        assert page.locator(landmark).count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('a, summary, svg, .mark, section, table')]
           .filter(e =>
             !(e.getAttribute('aria-label')
               || (e.getAttribute('aria-labelledby') || '').split(' ').every(
                    id => id && document.getElementById(id)?.textContent.trim())
               || e.querySelector('caption')?.textContent.trim()
               || (['A', 'SUMMARY'].includes(e.tagName) && e.textContent.trim()))).length"""
    )
    assert nameless == 0
    doubled = page.evaluate(
        "() => { const i = [...document.querySelectorAll('[id]')].map(e => e.id);"
        " return i.length - new Set(i).size; }"
    )
    assert doubled == 0
    page.keyboard.press("Tab")
    assert page.locator("*:focus").inner_text() == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_nothing_that_an_automated_checker_knows_is_wrong(opened):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    page = opened()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"][:120] for n in v["nodes"][:2]]) for v in found] == []
