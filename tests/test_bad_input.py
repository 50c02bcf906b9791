"""Input that is broken or too small, from the command line to the page: named or marked, and never NaN."""

import json
import re

import numpy as np
import pytest

from attnprobe.cli import app as cli
from attnprobe.core.maps import AttentionMaps
from attnprobe.store import CapturePlan, MapWriter
from tests.reports.test_html import parsed


@pytest.fixture
def file(tmp_path, make_maps):
    """Write a maps file with block outputs; `spoil` may change the values [image, layer, head, query, key] first."""

    def write(name, *, spoil=None, first=0, data="random", **size):
        maps = make_maps(**{"images": 20, "spread": 2.0, **size})
        if spoil:
            spoil(maps.values)
        tokens = maps.values[:, :, 0, :, :1].expand(-1, -1, -1, 6) + 1  # follow the maps wherever they go
        ids = tuple(f"image{first + i}" for i in range(maps.n_images))
        plan = CapturePlan(image_ids=ids, model=name, variant="vit", checkpoint_sha256="", config={"parameters": 1234},
                           versions={}, data=data, seed=0, device="cpu")  # fmt: skip
        path = tmp_path / f"{name}.h5"
        with MapWriter(path, plan, dtype="float32") as writer:
            for shard in writer.pending():
                at, named = list(shard), tuple(ids[i] for i in shard)
                writer.append([AttentionMaps(maps.values[at], named, maps.grid, tokens=tokens[at])])
            writer.close()
        return path

    return write


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command: exit code, then everything it printed, with single spaces."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments):
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    return run


def words_of(folder):
    """What the files of a report say to a reader: figures and scripts are not read."""
    page = (folder / "report.html").read_text()
    page = re.sub(r"<(script|style)\b.*?</\1>|data:[^\"]*", "", page, flags=re.DOTALL)
    shown = parsed(page)
    texts = {"page": " ".join([*shown.text, *(value or "" for _, name, value in shown.values if name == "alt")])}
    texts["page"] = texts["page"].split("What is each number?")[0]  # explanations may speak of NaN
    document = (folder / "measurements.json").read_text()
    json.loads(document, parse_constant=lambda name: pytest.fail(f"{name} in measurements.json"))
    numbers = (folder / "measurements.csv").read_text()
    return texts | {"csv": numbers, "md": (folder / "report.md").read_text()}


def check_no_nan(folder):
    for name, text in words_of(folder).items():
        found = re.search(r"(?<![a-z])[-+]?(nan|inf|infinity)(?![a-z])", text, flags=re.IGNORECASE)
        assert not found, (name, text[max(0, found.start() - 60) : found.end() + 60])


METRICS = ("--metric", "all", "--metric", "effective_rank")


@pytest.mark.promise("not-finite")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_named_and_left_out(file, call, tmp_path, bad):
    def spoil(values):
        values[3, 1, 0, 2, 2] = bad

    code, printed = call("report", file("spoilt", spoil=spoil), *METRICS, "-o", tmp_path / "page")
    assert code == 0, printed
    assert "not finite, in up to 1 images, were left out" in printed and "image image3, block 2" in printed
    assert "head 1" in printed
    assert "image image3, block 2" in words_of(tmp_path / "page")["page"]
    check_no_nan(tmp_path / "page")


@pytest.mark.promise("not-finite")
def test_maps_of_which_none_is_finite_cannot_be_judged(file, call, tmp_path):
    def spoil(values):
        values[:] = np.nan

    code, printed = call("report", file("gone", spoil=spoil), *METRICS, "-o", tmp_path / "page")
    assert code == 0, printed
    assert "cannot say" in printed and "image image0, block 1" in printed
    check_no_nan(tmp_path / "page")
    code, printed = call("report", tmp_path / "gone.h5", "--fail-on", "row_entropy.mean<1", "-o", tmp_path / "page")
    assert code == 2 and "no finite value" in printed


@pytest.mark.parametrize(
    "size",
    [{"images": 1}, {"layers": 1}, {"heads": 1}, {"images": 1, "layers": 1, "heads": 1}, {"rows": 1, "cols": 1}],
    ids=lambda size: ", ".join(f"one {name}" for name in size),
)
def test_one_of_anything_is_reported_on_without_inventing_a_number(file, call, tmp_path, size):
    code, printed = call("report", file("small", **size), "-o", tmp_path / "page")
    assert code == 0, printed
    check_no_nan(tmp_path / "page")
    if "images" in size:
        assert "only 1 image" in printed and "95% CI" not in printed
    if "layers" in size:
        assert "cannot say" in printed
    document = json.loads((tmp_path / "page" / "measurements.json").read_text())
    if "images" in size:
        assert set(np.ravel(document["runs"][0]["measurements"]["row_entropy"]["ci"])) == {None}


def test_a_block_of_which_no_image_is_known_is_not_counted_as_different(file, call, tmp_path):
    def spoil(values):
        values[:, 1, 0] = np.nan

    code, printed = call("report", file("spoilt", spoil=spoil), *METRICS, "-o", tmp_path / "page")
    assert code == 0 and "cannot say" in printed and "0 of 3 (" not in printed
    check_no_nan(tmp_path / "page")
    code, printed = call("compare", file("whole", seed=1), tmp_path / "spoilt.h5", *METRICS, "-o", tmp_path / "out")
    assert code == 0 and "image image0, block 2" in printed and "nan" not in printed.lower()
    rows = (line.split(" | ") for line in (tmp_path / "out" / "comparison.md").read_text().splitlines())
    told = {cells[0].removeprefix("| ").split(" ")[0]: cells[1] for cells in rows if len(cells) == 4}
    assert "cannot say: no finite value at block 2" in told["similar_blocks"]
    assert all("cannot say" in text for name, text in told.items() if name != "metric"), told


def test_other_images_of_the_same_names_are_not_taken_for_the_same(file, call, tmp_path):
    code, printed = call("compare", file("a", data="folder of A"), file("b", data="of B"), "-o", tmp_path / "out")
    assert code == 0 and "b minus a: images of other data (folder of A and of B)" in printed
    assert 0 < printed.index("**b and a were captured on different images: ") < printed.index("| model")
    assert ": images of other data" in printed and not (tmp_path / "out" / "differences.csv").read_text()[1:]


def test_runs_of_other_images_cannot_be_compared_in_pairs(file, call, tmp_path):
    code, printed = call("compare", file("a"), file("b", first=100, seed=1), "-o", tmp_path / "out")
    assert code == 0 and "0 images that both were measured on" in printed and "Cannot say of" in printed
    assert "no difference of the models can be tested.**" in printed
    assert "nan" not in printed.lower()


def test_runs_of_other_token_counts_are_compared_only_where_that_means_something(file, call, tmp_path):
    wanted = ("--metric", "row_entropy", "--metric", "row_entropy_relative", "--metric", "attention_rollout",
              "--metric", "similar_blocks")  # fmt: skip
    code, printed = call("compare", file("a"), file("b", rows=4, cols=4, seed=1), *wanted, "-o", tmp_path / "out")
    assert code == 0, printed
    rows = (line.split(" | ") for line in (tmp_path / "out" / "comparison.md").read_text().splitlines())
    told = {cells[0].removeprefix("| ").split(" ")[0]: cells[1] for cells in rows if len(cells) > 2}
    assert "17 tokens against 7" in printed and "row_entropy_relative" in printed
    text = (tmp_path / "out" / "comparison.md").read_text().replace("\\", "")
    refused = next(line for line in text.splitlines() if "Cannot say of" in line)
    assert "it depends on the number of tokens, here 17 against 7" in refused
    for metric in ("attention_rollout", "row_entropy"):
        assert metric not in told and metric in refused
    assert "cannot say" not in told["row_entropy_relative"] + told["similar_blocks"]
    assert "nan" not in printed.lower()
