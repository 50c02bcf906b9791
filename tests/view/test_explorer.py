"""The explorer as a reader meets it, in a browser: what it shows is what was stored, and every hand can use it."""

import itertools
import re

import numpy as np
import pytest
from axe_core_python.sync_playwright import Axe
from matplotlib import colormaps

from attnprobe.view import page as page_module
from attnprobe.view.embedded import embed
from attnprobe.view.packing import pack
from attnprobe.view.page import section, template
from tests.browser import drawn
from tests.view.arrays import Arrays, unpack, viewed

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="
HOSTILE = "\"'><script>alert(1)</script></script><img src=x onerror=alert(2)>\u202egpj.exe\u200f&lt;b&gt; ${1} "
LONG = HOSTILE + "x" * (300 - len(HOSTILE))


def html(runs, ids=None, budget=10**7, pictures=None):
    ids = ids or list(runs[0].maps.image_ids)
    embedded = embed(runs, ids, pictures if pictures is not None else dict.fromkeys(ids, PIXEL), budget)
    css, body = template("theme.css") + template("explorer.css"), section(embedded.index, embedded.maps)
    policy = f"default-src 'none'; img-src data:; script-src {page_module.script_hash()}; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{css}</style></head><body><main><h1>Explore</h1>{body}</main></body></html>"
    )


def shown(page, panel=0):
    """What the panel says it shows."""
    return page.locator(".panel").nth(panel).evaluate("element => ({...element.dataset})")


def colours(page, panel=0):
    """[row, col, 3] of the map over the picture."""
    canvas = page.locator(".panel").nth(panel).locator(".heat")
    pixels = canvas.evaluate(
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    rows, cols, *rgba = pixels
    return np.array(rgba).reshape(rows, cols, 4)[..., :3]


def expected_colours(patches, low, high, palette="viridis"):
    at = np.clip(np.round(255 * (patches - low) / (high - low)), 0, 255).astype(int)
    return 255 * colormaps[palette](at)[..., :3]


def assert_shows(page, run, image, layer, head, query, site="weights", panel=0):
    """The canvas has the colours of the stored map, as bytes keep it (see test_embedded for how well)."""
    signed = site == "effective"
    shape = run.maps.shapes()[0]
    n = shape.grid.n_prefix
    stored = unpack(*pack(run.maps.values["trunk", site][image, layer], n, signed), n, signed)
    values = stored.mean(0)[query] if head is None else stored[head, query]
    patches = values[n:].reshape(shape.grid.rows, shape.grid.cols)
    high = abs(patches).max()
    expected = expected_colours(patches, -high if signed else 0, high, "RdBu_r" if signed else "viridis")
    assert abs(colours(page, panel) - expected).max() <= 4  # a step of viridis, and two of its stops
    told = shown(page, panel)
    assert (told["block"], told["site"], told["query"]) == (str(layer + 1), site, str(query))
    assert told["head"] == str(-1 if head is None else head)


def press(page, *keys, on=".picture"):
    page.locator(on).first.focus()
    for key in keys:
        drawn(page, lambda key=key: page.keyboard.press(key))


def test_clicks_show_the_stored_maps(open_page):
    run = viewed(effective=True)
    page = open_page(html([run]))
    assert_shows(page, run, 0, 3, None, 0)
    box = page.locator(".picture").bounding_box()

    def click(row, col):
        place = {"x": (col + 0.5) * box["width"] / 4, "y": (row + 0.5) * box["height"] / 3}
        drawn(page, lambda: page.locator(".picture").click(position=place))

    for row, col in ((0, 0), (2, 3), (1, 2)):
        click(row, col)
        assert_shows(page, run, 0, 3, None, 1 + 4 * row + col)
    drawn(page, lambda: page.locator(".tiles canvas").click(position=tile(page, column=2, line=1)))
    assert_shows(page, run, 0, 1, 1, 7)
    drawn(page, lambda: page.locator(".tokens button").click())
    assert_shows(page, run, 0, 1, 1, 0)
    drawn(page, lambda: page.locator(".images button").nth(2).click())
    assert_shows(page, run, 2, 1, 1, 0)
    drawn(page, lambda: page.select_option("[name=site]", label="effective"))
    assert_shows(page, run, 2, 1, 1, 0, "effective")
    drawn(page, lambda: page.select_option("[name=head]", label="mean of 2"))
    assert_shows(page, run, 2, 1, None, 0, "effective")


def tile(page, column, line, columns=3, lines=4):
    box = page.locator(".tiles canvas").bounding_box()
    return {"x": (column + 0.5) * box["width"] / columns, "y": (line + 0.5) * box["height"] / lines}


def test_keys_do_what_clicks_do(open_page):
    run = viewed(effective=True)
    page = open_page(html([run]))
    press(page, "ArrowDown")
    assert_shows(page, run, 0, 3, None, 3)  # from the class token to the middle of the first row
    press(page, "ArrowDown", "ArrowRight", "-", "PageDown", "]", "]", "n")
    assert_shows(page, run, 1, 1, 1, 8)
    press(page, "+", "[", "p", "s", "ArrowLeft", "ArrowUp")
    assert_shows(page, run, 0, 2, 0, 3, "effective")
    press(page, "ArrowUp", "Home")
    assert_shows(page, run, 0, 0, 0, 0, "effective")
    press(page, "End", "PageUp", "[", "[")
    assert_shows(page, run, 0, 3, None, 0, "effective")
    press(page, "ArrowUp", "ArrowRight", on=".atlas")
    assert_shows(page, run, 0, 2, 0, 0, "effective")


def test_focus_is_visible_and_every_control_is_reached_by_tab(open_page):
    page = open_page(html([viewed()]))
    reached = set()
    page.locator("h1").click()
    for _ in range(24):
        page.keyboard.press("Tab")
        active = "document.activeElement"
        reached.add(page.evaluate(f"{active}.name || {active}.className || {active}.tagName"))
        if page.evaluate(f"{active} !== document.body"):
            assert page.evaluate(f"getComputedStyle({active}).outlineStyle") == "solid"
    assert {"head", "scale", "strength", "play", "layer", "picture", "atlas", "SUMMARY"} <= reached


def test_all_images_are_one_tab_stop_and_arrows_move_among_them(open_page):
    run = viewed()
    page = open_page(html([run]))
    buttons = page.locator(".images button")
    last = buttons.count() - 1
    focused = "[...document.querySelectorAll('.images button')].indexOf(document.activeElement)"

    def stops():
        return [n for n in range(last + 1) if buttons.nth(n).get_attribute("tabindex") == "0"]

    assert last > 0 and stops() == [0]
    buttons.nth(0).focus()
    for key, at in (
        ("ArrowRight", 1),
        ("End", last),
        ("ArrowRight", last),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", last),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == at
    drawn(page, lambda: page.keyboard.press("Enter"))
    assert_shows(page, run, last, 3, None, 0)
    assert stops() == [last]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == -1


def test_the_words_say_what_is_shown(open_page):
    run = viewed(heads=2)
    page = open_page(html([run]))
    press(page, "ArrowDown", "ArrowDown", "]", "-")
    row = run.maps.values["trunk", "weights"][0, 2, 0, 7]
    most = int(row[1:].argmax())
    words = page.inner_text(".words")
    assert words.startswith("vit, block 3 of 4, head 1, softmax, from query row 2 column 3: ")
    assert f"among patches most on row {most // 4 + 1} column {most % 4 + 1}" in words
    itself, token = (float(x) for x in re.findall(r"([\d.e-]+) % on", words))
    assert itself == pytest.approx(100 * row[7], abs=0.6) and token == pytest.approx(100 * row[0], abs=0.6)
    assert page.get_attribute(".words", "aria-live") == "polite"


def test_the_numbers_are_a_table_for_whoever_wants_them(open_page):
    run = viewed()
    page = open_page(html([run]))
    drawn(page, lambda: (page.click(".numbers summary"), page.keyboard.press("Tab"), press(page, "Home")))
    cells = page.locator(".numbers th + td, .numbers td + td").all_inner_texts()
    row = run.maps.values["trunk", "weights"][0, 0].mean(0)[0]
    np.testing.assert_allclose([float(cell) for cell in cells], row, rtol=0.06, atol=0.004)


def test_two_runs_are_shown_on_the_same_image_and_at_the_same_place(open_page):
    runs = [viewed("plain"), viewed("other", layers=6, heads=3, rows=6, cols=8, prefix=("cls", "reg0"), seed=1)]
    page = open_page(html(runs))
    assert page.locator(".panel").count() == 2 and page.input_value("[name=other]") == "1"
    press(page, "ArrowDown", "ArrowDown", "]", "-")
    assert_shows(page, runs[0], 0, 2, 0, 1 + 4 * 1 + 2)
    assert_shows(page, runs[1], 0, 2, 0, 2 + 8 * 3 + 5, panel=1)
    heads = page.locator(".panel h3").all_inner_texts()
    assert heads[0].startswith("plain") and heads[1].startswith("other")
    drawn(page, lambda: page.select_option("[name=run]", label="other"))
    assert page.locator(".panel").count() == 1
    assert_shows(page, runs[1], 0, 2, 0, 2 + 8 * 3 + 5)


def test_one_scale_for_all_is_one_scale(open_page):
    runs = [viewed("sharp", spread=4.0), viewed("flat", spread=0.5, seed=1)]
    page = open_page(html(runs))
    assert shown(page, 0)["scale"] != shown(page, 1)["scale"]
    drawn(page, lambda: page.select_option("[name=scale]", "shared"))
    scales = [float(shown(page, panel)["scale"].split()[1]) for panel in (0, 1)]
    largest = max(run.maps.values["trunk", "weights"][0, :, :, 0, 1:].max() for run in runs)
    assert scales[0] == scales[1] == pytest.approx(largest, rel=0.01)
    drawn(page, lambda: page.select_option("[name=scale]", "stretched"))
    low, high = map(float, shown(page, 1)["scale"].split())
    patches = runs[1].maps.values["trunk", "weights"][0, 3].mean(0)[0, 1:]
    assert (low, high) == (pytest.approx(patches.min(), rel=0.05), pytest.approx(patches.max(), rel=0.05))


def test_playing_goes_through_the_blocks_once_and_can_be_stopped(open_page):
    page = open_page(html([viewed(layers=3)]))
    page.click("[name=play]")
    page.wait_for_selector(".panel[data-block='1']")
    assert page.inner_text("[name=play]") == "Stop" and page.get_attribute(".words", "aria-live") == "off"
    page.wait_for_selector(".panel[data-block='3']")
    page.wait_for_function("document.querySelector('[name=play]').textContent === 'Play'")
    assert page.get_attribute(".words", "aria-live") == "polite"
    page.click("[name=play]")
    page.wait_for_selector(".panel[data-block='1']")
    page.click("[name=play]")
    assert page.inner_text("[name=play]") == "Play"


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": (), "rows": 2, "cols": 5},
        {"prefix": ("cls", "reg0", "reg1", "reg2", "reg3"), "rows": 4, "cols": 3},
        {"layers": 1, "heads": 1, "rows": 1, "cols": 1},
    ],
)
def test_any_number_of_tokens_beside_and_any_grid(open_page, options):
    run = viewed(**options)
    page = open_page(html([run]))
    n = len(options.get("prefix", ("cls",)))
    assert page.locator(".tokens button").count() == n
    press(page, "ArrowUp")
    press(page, "ArrowDown")
    told = shown(page)
    layers, heads = run.maps.values["trunk", "weights"].shape[1:3]
    assert told["head"] == "-1" and heads
    assert_shows(page, run, 0, layers - 1, None, int(told["query"]))


def test_what_is_no_number_is_grey_and_called_so(open_page):
    run = viewed(layers=1, heads=1)
    run.maps.values["trunk", "weights"][0, 0, 0, 0, 5:] = np.nan
    page = open_page(html([run], ids=["val/0"]))
    assert (colours(page)[1:, 1:] == 154).all() and not (colours(page)[0] == 154).all()
    run.maps.values["trunk", "weights"][:] = np.nan
    page = open_page(html([run], ids=["val/0"]))
    assert "not a number % on itself" in page.inner_text(".words")


def test_where_single_heads_are_left_out_the_mean_is_shown(open_page):
    run = viewed(images=2, layers=10, heads=4, rows=5, cols=5)
    size = len(html([run]))
    page = open_page(html([run], budget=int(0.4 * (size - len(html([run], budget=20_000))))))
    press(page, "ArrowDown", "]")
    assert "mean of 4 heads" in page.inner_text(".where")
    assert "only the mean of the heads" in page.inner_text(".notes")
    means = run.maps.values["trunk", "weights"][0, 9].mean(0)
    row = unpack(*pack(means, 1, False), 1, False)[3, 1:].reshape(5, 5)
    assert abs(colours(page) - expected_colours(row, 0, row.max())).max() <= 4
    press(page, "ArrowUp")
    assert "head 1" in page.inner_text(".where")


@pytest.mark.promise("names-hostile")
def test_hostile_names_are_text(open_page):
    ids = [f"{LONG}{i}" for i in range(3)]
    runs = [viewed(LONG, [HOSTILE, LONG], prefix=(HOSTILE,), ids=ids), viewed(f"{LONG}2", ids=ids, seed=1)]
    page = open_page(html(runs), viewport={"width": 360, "height": 740})
    plain = open_page(html([viewed("a"), viewed("b")]), viewport={"width": 360, "height": 740})
    count = "[...document.querySelectorAll('*')].map(e => e.tagName).sort().join()"
    assert page.evaluate(count) == plain.evaluate(count)
    visible = LONG.replace("\u202e", "‹U+202E›").replace("\u200f", "‹U+200F›")
    assert page.locator(".panel h3 bdi").first.inner_text() == visible.strip()
    assert "<script>alert(1)</script>" in page.inner_text(".words") and "‹U+202E›" in page.inner_text(".told >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize(("width", "columns"), [(360, 1), (768, 2), (1600, 2)])
def test_no_width_needs_scrolling_sideways(open_page, width, columns):
    runs = [viewed("a", layers=48, heads=24), viewed("b", layers=4, heads=3)]
    page = open_page(html(runs, ids=["val/0"]), viewport={"width": 1000, "height": 800})
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tops = {round(panel.bounding_box()["y"]) for panel in page.locator(".panel").all()}
    assert len(tops) == 3 - columns
    page.wait_for_timeout(100)
    labels = page.locator(".panel").first.locator(".labels .head").all()
    boxes = [label.bounding_box() for label in labels]
    assert all(a["x"] + a["width"] <= b["x"] for a, b in itertools.pairwise(boxes))


def test_dark_and_light_follow_the_reader(open_page):
    backgrounds = [
        open_page(html([viewed()]), color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert backgrounds == ["rgb(246, 247, 249)", "rgb(17, 20, 24)"]


def test_without_a_script_nothing_of_it_is_there(open_page):
    page = open_page(html([viewed()]), java_script_enabled=False)
    assert not page.locator("#explorer").is_visible() and page.locator("h1").is_visible()


def test_missing_images_are_said_to_be_missing(open_page):
    runs = [viewed("all"), viewed("few", images=1)]
    page = open_page(html(runs, pictures={}))
    press(page, "n")
    assert "no maps of the image" in page.locator(".panel").nth(1).inner_text()
    assert not page.locator(".panel").nth(1).locator(".picture").is_visible()
    press(page, "p")
    assert_shows(page, runs[1], 0, 3, None, 0, panel=1)


def test_some_of_the_queries_are_better_than_none(open_page):
    run = viewed(kind="class")
    full = run.maps
    (shape,) = full.shapes()
    values = {key: maps[:, :, :, :1] for key, maps in full.values.items()}
    shapes = (type(shape)(*(getattr(shape, n) if n != "queries" else (0,) for n in shape.__slots__)),)
    run = type(run)("cait", Arrays(shapes, values, full.image_ids, full._told))
    page = open_page(html([run]))
    drawn(page, lambda: page.locator(".picture").click())
    assert shown(page)["query"] == "0"
    press(page, "-")
    assert_shows(page, run, 0, 2, None, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(open_page, scheme):
    page = open_page(html([viewed("a", effective=True), viewed("b", seed=1)]), color_scheme=scheme)
    page.click(".numbers summary")
    found = Axe().run(page)["violations"]
    assert not [(v["id"], [node["html"] for node in v["nodes"]]) for v in found]
