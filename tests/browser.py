"""Fixtures that open pages in headless Chromium; without one, their tests are skipped and say so."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium():
    """The system's Chromium; closed with the module, because Playwright's event loop disturbs tests that have one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """`open_page(html or address, **options of the context)`: a page whose console must stay silent.

    It must ask for nothing but itself, and whatever is where it came from.
    """
    contexts, problems = [], []

    def open_(what, **options):
        file = tmp_path / "page.html"
        address = what if what.startswith("http://127.0.0.1:") else file.as_uri()
        if address == file.as_uri():
            Path(file).write_text(what, "utf-8")
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((address, "data:")) or problems.append(asked.url))
        page.goto(address)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("#explorer[data-drawn]")
        return page

    open_.problems = problems
    yield open_
    for context in contexts:
        context.close()
    assert not problems, problems


def drawn(page, action):
    """Do something and wait until its state is drawn to the end."""
    before = int(page.get_attribute("#explorer", "data-drawn"))
    action()
    page.wait_for_function("n => Number(document.getElementById('explorer').dataset.drawn) > n", arg=before)
