"""The explorer inside the report's page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from axe_core_python.sync_playwright import Axe
from markupsafe import Markup

from attnprobe.core.examined import Examined
from attnprobe.metrics import METRICS, measure
from attnprobe.reports import html
from attnprobe.reports.drawing import Drawing
from attnprobe.reports.figures import Section
from attnprobe.reports.html import PAGE_BYTES, explorer_of, proof_of, to_html
from tests import unequal_heads
from tests.browser import chromium, drawn, open_page
from tests.reports.formulas import examined, picture
from tests.view.arrays import arrays

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><svg onload=alert(1)>",
    "</style><style>*{display:none}</style>",
    "</title><meta http-equiv=refresh content='0;url=http://x'>",
    '"><img src=http://x/y onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "--><b>x</b><!--",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt; &amp;#60;",
    "\x00\x1b\x7f\u2028\ufeff",
    "\u202egpj.exe\u2066\u2069\u200f",
    "\ud800 lone surrogate",
]


class Elements(HTMLParser):
    """Every element with its attributes, all text, and the text in elements that hold raw text."""

    def __init__(self):
        super().__init__()
        self.elements, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values = getattr(self, "values", []) + [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    reader = Elements()
    reader.feed(page)
    reader.close()
    return reader


def dressed(text: str) -> Examined:
    """A model with `text` in every field that takes words."""
    e = examined(text, layers=3, heads=2, pictures=0, effective_similar=())
    measurements = {
        key: replace(m, unit=text, settings={**m.settings, "word": text}) for key, m in e.measurements.items()
    }
    prefix = measurements["prefix_mass"]
    measurements["prefix_mass"] = replace(prefix, metric=text, coords={"prefix": [text]})
    layer = {"layer": text, "route": text, "row_sum_error": 0.0, "value_error": None}
    return replace(
        e,
        measurements=measurements,
        info={"model": text, text: text, "versions": {text: [text]}, "n_images": 40},
        layers=(text,) * 3,
        grid=replace(e.grid, prefix=(text,)),
        certificate={"layers": [layer], "output_equal": False, "fused_difference": 0.0, "n_images": text},
        notes=(text,),
    )


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take seconds and are tested on their own; here one stands in, with words to be escaped."""

    def stand_in(runs):
        word = runs[0].name
        return [Section(word, word, (Drawing(Markup("data:image/png;base64,AA=="), word, word, word),))]

    monkeypatch.setattr(html, "sections", stand_in)


@pytest.mark.promise("names-hostile")
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_hostile_text_in_every_field_adds_no_element_and_no_attribute(payload, no_figures):
    hostile, harmless = (parsed(to_html([dressed(text)])) for text in (payload, "plain words"))
    assert hostile.elements == harmless.elements
    assert not [name for _, names in hostile.elements for name in names if name.startswith("on")]


def test_text_is_shown_as_it_was_written(no_figures):
    text = "".join(parsed(to_html([dressed("<b>\"'&{{ 1 }}</b>")])).text)
    assert "<b>\"'&{{ 1 }}</b>" in text


def test_hidden_characters_are_spelt_out(no_figures):
    page = to_html([dressed("a\u202eb\x07\ud800")])
    page.encode("utf-8")
    assert "a‹U+202E›b‹U+0007›‹U+D800›" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08\x0b-\x1f\x7f]", page)


@pytest.fixture(scope="module")
def page():
    hostile = picture(4, 2, image_id=PAYLOADS[0], label=PAYLOADS[4], prediction=PAYLOADS[5])
    runs = [
        examined("vit_16", layers=4, heads=2, similar=(4,), pictures=0),
        examined(PAYLOADS[1], layers=4, heads=2, effective_similar=(), pictures=0),
    ]
    return to_html([runs[0], replace(runs[1], pictures=(hostile,))])


def test_the_whole_page_with_figures_runs_and_loads_nothing(page):
    reader = parsed(page)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "input", "base", "svg", "video", "audio"}
    loading = [v for _, name, v in reader.values if name in ("src", "href", "srcset", "action", "data", "poster")]
    assert loading and all(value.startswith(("data:image/", "#")) for value in loading)
    assert "url(" not in page and "@import" not in page
    assert not [name for _, name, _ in reader.values if name.startswith("on")]


def test_the_policy_forbids_everything_but_inline_images_and_styles(page):
    metas = [v for tag, name, v in parsed(page).values if tag == "meta" and name == "content"]
    (policy,) = [v for v in metas if "default-src" in v]
    assert "default-src 'none'" in policy and "img-src data:" in policy and "script" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_every_figure_has_words_for_those_who_cannot_see_it(page):
    alts = [v for tag, name, v in parsed(page).values if (tag, name) == ("img", "alt")]
    assert len(alts) == page.count("<img ") > 8
    assert all(len(alt) > 30 for alt in alts)


def test_verdict_kinds_and_their_figure_come_before_all_other_figures_and_the_summary(page):
    order = ["repetition in block 4", "rho=0.9", 'href="#kind-repetition"', 'id="kind-', "The other kinds",
             "Which blocks repeat", "Summary of all numbers", "Is this what the model computed?", "torch"]  # fmt: skip
    positions = [page.index(words) for words in order]
    assert positions == sorted(positions)


def test_the_summary_shows_untrained_networks_beside(page):
    assert "vit_16, untrained" in page


def test_nothing_measured_is_still_a_page(no_figures):
    page = to_html([replace(examined("empty"), measurements={}, info={}, certificate={}, layers=())])
    assert "cannot say" in page and "no certificate" in page


def test_the_proof_is_told_in_a_sentence():
    certificate = examined(layers=3).certificate
    told = proof_of(certificate)
    assert "Checked on 2 images" in told and "all 3 layers" in told and "1.0e-07" in told and "2.0e-07" in told
    assert "equals the output" in told
    assert "is within rounding" in proof_of({**certificate, "output_equal": False})
    unchecked = json.loads(json.dumps(certificate))
    for layer in unchecked["layers"]:
        layer["value_error"] = None
    assert "map times V" not in proof_of(unchecked)
    assert proof_of({}).startswith("no certificate")


def test_every_number_of_the_summary_leads_to_what_it_is(page):
    reader = parsed(page)
    ids = {value for _, name, value in reader.values if name == "id"}
    links = [value.removeprefix("#") for tag, name, value in reader.values if (tag, name) == ("a", "href")]
    assert set(links) <= ids and len([link for link in links if link.startswith("explanation-")]) > 20
    text = "".join(reader.text)
    for name in ("row_entropy", "similar_blocks", "token_similarity"):
        assert METRICS[name].function.__doc__.splitlines()[0] in text
    assert "U+000A" not in text and "\n    E[l, h] = mean over i of" in text


def test_a_metric_without_words_is_linked_to_nothing(no_figures):
    e = examined(layers=3, heads=2, pictures=0)
    e = replace(e, measurements={key: replace(m, explanation="") for key, m in e.measurements.items()})
    assert "explanation-" not in to_html([e])


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


def test_missing_photographs_are_said_to_be_missing(few_figures, runs):
    said = "The maps of plain are shown without the photographs"
    assert said in to_html([replace(runs[0], pictures=())]) and said not in to_html(runs)


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
    page.get_by_role("heading", name="Summary of all numbers").click()
    assert not page.locator("[id^=explanation-]").first.is_visible() and not page.locator("#settings").is_visible()
    link = page.locator("td a[href^='#explanation-']").first
    link.click()
    assert page.locator(link.get_attribute("href")).is_visible()
    page.get_by_role("link", name="below").click()
    assert page.locator("#settings").is_visible()


@pytest.mark.promise("names-hostile")
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
    assert page.get_by_role("heading", name="Summary of all numbers").is_visible()
    assert page.get_by_role("heading", name="Where do the numbers come from?").is_visible()


@pytest.mark.parametrize("width", [390, 1200])
def test_the_kinds_of_collapse_fit_the_screen_and_each_leads_to_its_figure(few_figures, runs, open_page, width):
    page = open_page(to_html(runs), viewport={"width": width, "height": 844})
    for cell in page.locator("table.kinds td, table.kinds th").all():
        if cell.is_visible():
            box = cell.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
    links = page.locator("table.kinds a").all()
    assert links and all(page.locator(link.get_attribute("href")).count() == 1 for link in links)


def test_a_printed_page_leaves_out_what_needs_a_hand_and_keeps_the_rest(few_figures, runs, open_page):
    page = open_page(to_html(runs))
    page.emulate_media(media="print")
    assert not page.locator("#explorer").is_visible() and not page.locator("details").first.is_visible()
    assert page.locator("table.kinds").is_visible() and page.locator("figure").first.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"


def test_in_print_no_heading_is_parted_from_what_it_is_over(few_figures, runs, open_page):
    page = open_page(to_html(runs), java_script_enabled=False)
    page.emulate_media(media="print")
    parted = """elements => elements.filter(e => {
        const header = e.closest("header"), after = x => getComputedStyle(x).breakAfter
        return after(e) !== "avoid" || (header && after(header) !== "avoid")
    }).map(e => e.textContent)"""
    headings = page.locator("main :is(h2, h3)")
    assert headings.count() > 4 and headings.evaluate_all(parted) == []


def test_the_blocks_of_a_model_of_unequal_heads_are_all_counted(no_figures):
    measured = measure(unequal_heads.stages(heads=(3, 2, 3, 1)), ["row_entropy"], bootstrap=0)
    page = to_html([replace(examined(layers=2), measurements=measured)])
    assert '<th scope="row">blocks</th><td>4</td>' in page
