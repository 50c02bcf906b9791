"""The explorer with a server behind it, in a browser."""

import threading

import numpy as np
import pytest

from attnprobe.core.errors import MapsFileError
from attnprobe.view.answers import Answers
from attnprobe.view.page import as_file
from attnprobe.view.server import Viewer
from tests.browser import drawn
from tests.view.arrays import viewed
from tests.view.test_explorer import LONG, colours, expected_colours, press, shown


@pytest.fixture
def serve():
    """The address of a viewer of these runs."""
    started = []

    def start(runs, pixels=lambda _: None):
        server = Viewer(Answers(runs, pixels))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server.url

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def photo(image_id):
    return as_file(np.full((8, 8, 3), 200, np.uint8))[0]


@pytest.fixture
def run():
    return viewed(images=40, effective=True, ids=[f"val/{i:02}" for i in range(40)])


def test_colours_and_numbers_are_those_of_the_file(open_page, serve, run):
    page = open_page(serve([run], photo))
    drawn(page, lambda: (page.click(".numbers summary"), press(page, "ArrowDown", "ArrowDown", "]", "-")))
    row = run.maps.values["trunk", "weights"][0, 2, 0, 7]
    expected = expected_colours(row[1:].reshape(3, 4), 0, row[1:].max())
    assert abs(colours(page) - expected).max() <= 4
    cells = page.locator(".numbers th + td, .numbers td + td").all_inner_texts()
    assert [float(cell) for cell in cells] == [float(f"{value:.2g}") for value in row]
    page.wait_for_selector(".picture img.small")
    assert page.locator(".picture img").evaluate("image => image.naturalWidth") == 8


def test_every_image_is_reached_by_paging_by_keys_and_by_searching(open_page, serve, run):
    page = open_page(serve([run], photo))
    page.locator(".picture").focus()
    for _ in range(13):
        drawn(page, lambda: page.keyboard.press("n"))
    assert shown(page)["image"] == "val/13" and "13–24 of 40" in page.inner_text(".count")
    press(page, "p", "p")
    assert shown(page)["image"] == "val/11"
    drawn(page, lambda: page.get_by_role("button", name="Next").click())
    assert shown(page)["image"] == "val/12"
    page.fill("[type=search]", "val/3")
    page.get_by_text("1–10 of 10").wait_for()
    drawn(page, lambda: page.get_by_role("button", name="val/37").click())
    assert shown(page)["image"] == "val/37"
    page.fill("[type=search]", "nowhere")
    page.get_by_text("no image matches").wait_for()


@pytest.mark.promise("names-hostile")
def test_hostile_names_and_missing_pictures(open_page, serve):
    runs = [viewed(LONG, ids=[f"{LONG}{i}" for i in range(3)]), viewed("other", seed=1)]
    page = open_page(serve(runs, photo), viewport={"width": 360, "height": 740})
    assert "‹U+202E›" in page.inner_text("h1") and "<script>alert(1)" in page.inner_text(".words")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_troubles_are_told_in_words(open_page, serve, run, monkeypatch):
    page = open_page(serve([run], photo))

    def damaged(*_):
        raise MapsFileError("maps.h5 is damaged: restore it")

    monkeypatch.setattr(run.maps, "layer", damaged)
    page.locator(".picture").focus()
    page.keyboard.press("n")
    page.wait_for_selector(".words.error")
    assert page.inner_text(".words") == "maps.h5 is damaged: restore it"
    assert any("400" in problem for problem in open_page.problems)
    open_page.problems.clear()
