"""A report in a real Chromium: what is seen, said aloud, and reached by keys."""

import time
from itertools import pairwise

import numpy as np
import pytest

from kgraft.runs.report import report
from tests.browser.chromium import Chromium, installed
from tests.reports import directories as made

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)<img src=x onerror=alert(2)>"
PLOT = "Bokeh.documents[0].get_model_by_name"
# whatever an open shadow holds, too
DEEP = """(() => {
  const found = [], walk = (root) => root.querySelectorAll("*").forEach((own) => {
    found.push(own); if (own.shadowRoot) walk(own.shadowRoot);
  });
  walk(document); return found;
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    file = installed()
    if file is None:
        pytest.skip("there is no Chromium, and apt-get brings none")
    with Chromium(file, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages of two runs, one of which has a hostile name, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    first = made.write_run(folder / "own", epochs=40, peers=3, teachers=1, groups=5)
    second = made.write_run(folder / HOSTILE.replace("/", ""), epochs=20, peers=2, groups=5)
    pages = {"runs": [first, second], "comparison": [made.write_comparison(folder / "cmp")]}
    for name, runs in pages.items():
        (folder / f"{name}.html").write_text(report(runs, weights=False), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(params=["runs", "comparison"])
def every(request, files):
    return files[request.param]


@pytest.fixture
def page(chromium, files):
    """The page of the runs, just opened on a desktop."""
    chromium.look()
    chromium.open(files["runs"])
    return chromium


def centre(page, selector):
    """Where an element is in the window, once it is in sight."""
    return page.run(f"""(() => {{
      const own = document.querySelector({selector!r});
      own.scrollIntoView({{block: "center"}});
      const box = own.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    }})()""")


def click(page, selector):
    x, y = centre(page, selector)
    page.mouse("mousePressed", x, y, pressed=True)
    page.mouse("mouseReleased", x, y)


def focus_by_tab(page, condition, most=200):
    """Press Tab until the focused element is the one that is meant."""
    page.run("document.activeElement.blur()")
    for _ in range(most):
        page.press("Tab")
        if page.run(f"(() => {{ const own = document.activeElement; return {condition}; }})()"):
            return
    raise AssertionError(f"no Tab leads to {condition}")


def visible(page, plot):
    """Places of the lines that a plot shows."""
    return page.run(
        f"""[...new Set({PLOT}({plot!r}).renderers.filter(own => own.visible)
          .map(own => own.tags[0]))]"""
    )


def view(page, plot, axis="x"):
    return page.run(f"[{PLOT}({plot!r}).{axis}_range.start, {PLOT}({plot!r}).{axis}_range.end]")


@pytest.mark.parametrize(("width", "dark"), [(375, False), (1280, True)])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits(chromium, every, width, dark):
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.look(width=width, phone=width < 600, dark=dark)
    chromium.open(every)
    chromium.run("document.querySelectorAll('details').forEach(own => own.open = true)")
    chromium.run("new Promise(done => setTimeout(done, 300))")
    assert chromium.complaints == []
    assert chromium.requests == [every.resolve().as_uri()]
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("document.documentElement.clientWidth") <= width
    beyond = chromium.run(f"""{DEEP}.filter(own => !own.closest(".wide, pre, svg")
      && own.getRootNode() === document && own.getBoundingClientRect().right > {width} + 1)
      .map(own => own.outerHTML.slice(0, 80))""")
    assert beyond == []
    drawn = chromium.run("""[...document.querySelectorAll(".canvas")].map(own => {
      const box = own.getBoundingClientRect(); return [box.width, box.height]; })""")
    assert all(w > 250 and h > 200 for w, h in drawn) and len(drawn) >= 6


def test_every_text_has_contrast(chromium, every):
    for dark in (False, True):
        chromium.look(dark=dark)
        chromium.open(every)
        chromium.run("document.querySelectorAll('details').forEach(own => own.open = true)")
        ground, ratios = chromium.run("""(() => {
          const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const light = (colour) => numbers(colour).slice(0, 3).map(own => own / 255)
            .map(own => own <= 0.04045 ? own / 12.92 : ((own + 0.055) / 1.055) ** 2.4)
            .reduce((sum, own, k) => sum + own * [0.2126, 0.7152, 0.0722][k], 0);
          const behind = (own) => {
            for (; own; own = own.parentElement) {
              const colour = getComputedStyle(own).backgroundColor;
              if ((numbers(colour)[3] ?? 1) > 0) return colour;
            }
          };
          const found = [];
          for (const own of document.querySelectorAll("body *")) {
            if (![...own.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
            if (own.closest("script, style") || !own.getClientRects().length) continue;
            const [a, b] = [getComputedStyle(own).color, behind(own)].map(light);
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            found.push([ratio, own.outerHTML.slice(0, 80)]);
          }
          return [light(behind(document.body)), found];
        })()""")
        assert (ground < 0.05) == dark and (ground > 0.9) == (not dark)
        assert len(ratios) > 50 and [own for own in ratios if own[0] < 4.5] == []
        axis = chromium.run("Bokeh.documents[0].roots()[0].below[0].major_label_text_color")
        assert (int(axis[1:3], 16) > 128) == dark


def test_everything_that_can_be_focused_has_a_name(chromium, every):
    chromium.look()
    chromium.open(every)
    chromium.run("document.querySelectorAll('details').forEach(own => own.open = true)")
    names = chromium.names()
    assert len(names) > 30 and [role for role, name in names if not name.strip()] == []
    count = chromium.run(f"""{DEEP}.filter(own => own.tabIndex >= 0
      && own.getRootNode() !== document && own.getClientRects().length).length""")
    assert count == 0  # surfaces of bokeh's
    levels = chromium.run(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(own => Number(own.tagName[1]))"
    )
    assert levels[0] == 1 and all(later <= level + 1 for level, later in pairwise(levels))


def test_the_numbers_of_the_plots_are_the_records(page):
    for title, value, times in (
        ("Accuracy on held-out images", made.accuracy, 50),
        ("Loss on training images", made.loss, 1),
    ):
        own = f"""(() => {{
          const box = [...document.querySelectorAll(".canvas")]
            .find(own => own.ariaLabel.startsWith({title!r}));
          return {PLOT}(box.id).renderers.filter(own => own.glyph.type === "Line").map(own =>
            [own.name, ...["x", "y"].map(name => Array.from(own.data_source.get_column(name)))]);
        }})()"""
        found = page.run(own)
        assert [name for name, _, _ in found][:3] == [f"own, peer {k}" for k in (1, 2, 3)]
        for k, (_, x, y) in enumerate(found[:3], start=1):
            assert x == list(range(1, 41))
            np.testing.assert_allclose(y, times * made.curve(value, 40, k))
    assert page.run(f"document.body.innerText.includes({HOSTILE!r})")


def test_a_peer_is_hidden_by_a_click_and_by_a_key(page):
    before = visible(page, "curves-0")
    assert before == [0, 1, 2, 3, 4, 5]
    click(page, "#curves .legend input[value='1']")
    assert visible(page, "curves-0") == visible(page, "curves-3") == [0, 2, 3, 4, 5]
    focus_by_tab(page, "own.type === 'checkbox' && own.value === '2'")
    outline = page.run("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.press("Space")
    assert visible(page, "curves-0") == [0, 3, 4, 5]
    focus_by_tab(page, "own.textContent === 'Hide all'")
    page.press("Enter")
    assert visible(page, "curves-0") == []
    focus_by_tab(page, "own.textContent === 'Show all'")
    page.press("Enter")
    assert visible(page, "curves-0") == before


def test_a_map_shows_the_peer_that_is_chosen(page):
    assert visible(page, "map-0-0") == visible(page, "map-0-1") == [0]
    click(page, "#grafting .legend input[value='2']")
    assert visible(page, "map-0-0") == visible(page, "map-0-1") == [2]
    assert visible(page, "map-1-0") == [0]


def test_plots_are_zoomed_by_keys_and_by_the_mouse(page):
    whole = view(page, "curves-0")
    focus_by_tab(page, "own.dataset.plot === 'curves-0' && own.dataset.act === 'in'")
    page.press("Enter")
    start, end = view(page, "curves-0")
    assert (end - start) * 2 == pytest.approx(whole[1] - whole[0])
    assert view(page, "curves-1") == [start, end]  # epochs are the same everywhere
    focus_by_tab(page, "own.dataset.plot === 'curves-0' && own.dataset.act === 'right'")
    for _ in range(9):
        page.press("Space")
    assert view(page, "curves-0")[1] == pytest.approx(whole[1])
    focus_by_tab(page, "own.dataset.plot === 'curves-0' && own.dataset.act === 'reset'")
    page.press("Enter")
    assert view(page, "curves-0") == whole
    height = view(page, "curves-0", "y")
    x, y = centre(page, "#curves-0")
    page.mouse("mouseMoved", x - 60, y - 40)
    page.mouse("mousePressed", x - 60, y - 40, pressed=True)
    for step in range(1, 7):
        page.mouse("mouseMoved", x - 60 + 20 * step, y - 40 + 12 * step, pressed=True)
    page.mouse("mouseReleased", x + 60, y + 32)
    page.wait(f"{PLOT}('curves-0').x_range.end < {whole[1]} - 1")
    start, end = view(page, "curves-0")
    assert whole[0] < start < end < whole[1]
    click(page, "button[data-plot='curves-0'][data-act='reset']")
    assert view(page, "curves-0") == whole
    page.wait(f"Math.abs({PLOT}('curves-0').y_range.end - {height[1]}) < 1e-6")


def pointed(page, plot, x, y):
    """What is said when the mouse is at a number of a plot."""
    centre(page, f"#{plot}")
    for _ in range(50):  # a plot that has just changed lays itself out anew
        left, top = page.run(f"""(() => {{
          const box = document.getElementById({plot!r}).getBoundingClientRect();
          const frame = Bokeh.index.get_by_id({PLOT}({plot!r}).id).frame.bbox;
          const {{ x_range, y_range }} = {PLOT}({plot!r});
          const map = (range, from, to, value) =>
            from + (to - from) * (value - range.start) / (range.end - range.start);
          return [box.left + map(x_range, frame.left, frame.right, {x}),
                  box.top + map(y_range, frame.bottom, frame.top, {y})];
        }})()""")
        page.mouse("mouseMoved", left - 3, top - 3)
        page.mouse("mouseMoved", left, top)
        time.sleep(0.1)
        said = page.run(f"""{DEEP}.filter(own => own.classList.contains("bk-Tooltip")
          && own.getClientRects().length)
          .flatMap(own => [...own.shadowRoot.querySelectorAll(":not(style)")])
          .flatMap(own => [...own.childNodes].filter(n => n.nodeType === 3).map(n => n.data))
          .join(" ")""")
        if said.strip():
            return " ".join(said.split())
    return ""


def test_the_mouse_is_told_the_numbers(page):
    for other in (0, 2, 3, 4, 5):
        click(page, f"#curves .legend input[value='{other}']")
    value = 100 * made.accuracy(21, 2)
    said = pointed(page, "curves-0", 21, value)
    assert "own, peer 2" in said and f"{value:.2f} %" in said and "21" in said.split()
    alpha = made.coefficient(12, 1, 3)
    said = pointed(page, "map-0-0", 12, 3)
    assert "stage1_block3_conv" in said and "12" in said.split()
    told = float(said.split()[-1])
    assert told == pytest.approx(alpha, abs=1 / 507 + 1e-4)
