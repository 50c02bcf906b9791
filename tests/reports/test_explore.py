"""The explorer inside the report's page."""

from dataclasses import replace

import pytest
from axe_core_python.sync_playwright import Axe

from attnprobe.reports import html
from attnprobe.reports.explore import explorer_of
from attnprobe.reports.html import PAGE_BYTES, to_html
from tests.browser import chromium, drawn, open_page
from tests.reports.formulas import examined, picture
from tests.view.arrays import arrays

__all__ = ["chromium", "open_page"]


@pytest.fixture
def few_figures(monkeypatch):
    monkeypatch.setattr(html, "sections", lambda runs: [])


@pytest.fixture
def runs():
    """Two runs that share two of their images."""
    a, b = arrays(ids=["a", "b", "c"]), arrays(ids=["c", "b", "d"], layers=6, seed=1)
    shown = [tuple(picture(4, 2, image_id=i) for i in ids) for ids in ("ac", "bd")]
    names = "plain", "</script><b>deep</b>"
    return [
        replace(examined(name, layers=3, heads=2), maps=maps, pictures=p, class_names=("one", "two"))
        for name, maps, p in zip(names, (a, b), shown, strict=True)
    ]


def test_images_that_both_runs_have_come_first(runs):
    embedded = explorer_of(runs, 10**6)
    assert [image["id"] for image in embedded.index["images"]] == ["c", "b", "a", "d"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in embedded.index["images"])


def test_images_without_pixels_are_explored_too(runs):
    embedded = explorer_of([replace(runs[0], pictures=())], 10**6)
    assert [(image["id"], image["src"]) for image in embedded.index["images"]] == [("a", ""), ("b", ""), ("c", "")]


def test_maps_that_cannot_be_explored_are_said_to_be_so(few_figures, runs, monkeypatch):
    windows = to_html([replace(runs[0], maps=arrays(kind="window"))])
    assert "<script" not in windows and "Not shown: stage trunk of plain; its maps are of kind" in windows
    monkeypatch.setattr(html, "PAGE_BYTES", 100_000)
    full = to_html([replace(runs[0], maps=arrays(layers=4, heads=12, rows=16, cols=16, ids=["a", "b", "c"]))])
    assert "<script" not in full and "fit into this page" in full


def test_a_page_without_maps_has_no_script(few_figures):
    page = to_html([examined("vit")])
    assert "<script" not in page and "script-src" not in page and 'id="explorer"' not in page


@pytest.mark.parametrize(("layers", "every_head"), [(6, True), (9, False)])
def test_the_page_stays_small_whatever_the_maps(few_figures, runs, layers, every_head):
    big = arrays(images=2, layers=layers, heads=12, rows=12, cols=12, ids=["a", "c"])
    page = to_html([replace(runs[0], maps=big)])
    assert len(page.encode()) < PAGE_BYTES and ("only the mean of the heads" in page) != every_head


def test_the_page_in_a_browser(few_figures, runs, open_page):
    page = open_page(to_html(runs))
    assert page.locator(".panel").count() == 2 and page.locator(".images button").count() == 4
    drawn(page, lambda: page.locator(".picture").first.click())
    assert page.locator(".panel h3 bdi").all_inner_texts() == ["plain", "</script><b>deep</b>"]
    page.wait_for_selector(".picture img.small")
    assert "plain, block 4 of 4" in page.inner_text(".words")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not [(v["id"], [node["html"] for node in v["nodes"]]) for v in Axe().run(page)["violations"]]


def test_what_a_number_means_is_folded_away_until_it_is_asked_for(few_figures, runs, open_page):
    page = open_page(to_html(runs), java_script_enabled=False)
    assert not page.locator("[id^=explanation-]").first.is_visible() and not page.locator("#settings").is_visible()
    link = page.locator("td a[href^='#explanation-']").first
    link.click()
    assert page.locator(link.get_attribute("href")).is_visible()
    page.get_by_role("link", name="below").click()
    assert page.locator("#settings").is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_long_hostile_names_are_text_and_stay_inside_the_page(few_figures, runs, open_page, width):
    name = "<script>alert(1)</script>'\"&\u202e" + 270 * "x"
    hostile = [
        replace(run, name=f"{name}{n}", class_names=(name, "two"), info={**run.info, "model": name, "data": name})
        for n, run in enumerate(runs)
    ]
    page = open_page(to_html(hostile), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.inner_text(".card h2").startswith("<script>alert(1)</script>'\"&")
    assert "alert(1)" in page.inner_text(".words")


@pytest.mark.parametrize("width", [360, 1280])
def test_without_scripts_the_page_shows_all_the_rest(few_figures, runs, open_page, width):
    page = open_page(to_html(runs), java_script_enabled=False, viewport={"width": width, "height": 800})
    assert not page.locator("#explorer").is_visible()
    assert page.get_by_role("heading", name="Summary").is_visible()
    assert page.get_by_role("heading", name="Where do the numbers come from?").is_visible()
