"""One figure from files: every kind, its size, and what cannot be drawn."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.core.figures import FIGURES
from attnprobe.core.registry import UnknownName
from attnprobe.core.spec import CaptureSpec
from attnprobe.plots.head_atlas import DOWN, TILE
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.figure import draw
from attnprobe.workflows.train import train
from tests import unequal_heads
from tests.plots.letters import watch_letters

TINY = {"epochs": 2, "warmup_epochs": 1, "model_kwargs": {"depth": 3, "embed_dim": 24}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "tiny"
    train("digits_vit_16", folder, settings={**TINY, "probe_every": 1, "probe_budget": 1.0})
    capture_file(CaptureSpec(folder, images=20, untrained=10, batch_size=10))
    return folder


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize("several", [False, True])
def test_every_kind_is_drawn_as_wide_as_asked_and_not_empty(run, tmp_path, kind, several):
    paths = [run, run / "maps.h5"] if several and kind != "similar_fraction" else [run]
    out = draw(paths, kind, tmp_path / "new" / f"{kind}.png", width="text" if several else "column")
    picture = np.asarray(Image.open(out).convert("L"))
    assert picture.shape[1] == round((6.875 if several else 3.25) * 300)
    assert (picture < 250).mean() > 0.01 and picture.std() > 5


@pytest.mark.parametrize("kind", FIGURES)
def test_in_a_column_of_a_paper_no_letter_is_cut_off(run, tmp_path, kind, monkeypatch):
    clipped, sheets = watch_letters(monkeypatch), []
    monkeypatch.setattr(Figure, "savefig", lambda sheet, *_args, **_options: sheets.append(clipped(sheet)))
    draw([run], kind, tmp_path / "figure.pdf", width="column")
    assert sheets == [[]]


@pytest.mark.parametrize("kind", [kind.name for kind in FIGURES.values() if kind.heat])
def test_several_heat_maps_share_one_scale_and_no_letter_is_cut_off(run, tmp_path, kind, monkeypatch):
    clipped, sheets = watch_letters(monkeypatch), []
    monkeypatch.setattr(Figure, "savefig", lambda sheet, *_args, **_options: sheets.append((sheet, clipped(sheet))))
    draw([run, run / "maps.h5"], kind, tmp_path / "figure.pdf", width="column")
    ((sheet, cut),) = sheets
    *panels, bar = sheet.axes
    scales = {(drawn.get_clim(), drawn.get_cmap().name) for ax in panels for drawn in (*ax.images, *ax.collections)}
    assert cut == [] and len(panels) == 2 and len(scales) == 1 and bar.get_xlabel()
    assert all(len(axis.get_ticklabels()) <= 5 for ax in panels for axis in (ax.xaxis, ax.yaxis))


def test_another_metric_and_its_settings_can_be_shown(run, tmp_path):
    usual = draw([run], "depth_curve", tmp_path / "a.svg").read_text()
    other = draw([run], "depth_curve", tmp_path / "b.svg", metric="similar_blocks:tau=0.5").read_text()
    assert "cosine &gt; 0.9" in usual and "cosine &gt; 0.5" in other
    assert "token similarity" in draw([run], "depth_curve", tmp_path / "c.svg", metric="token_similarity").read_text()


def test_of_unequal_heads_a_curve_is_of_all_blocks_and_what_compares_blocks_says_which_it_shows(tmp_path, monkeypatch):
    path, kept = unequal_heads.write(tmp_path / "pruned.h5", heads=(3, 2, 3, 1)), []
    monkeypatch.setattr(Figure, "savefig", lambda sheet, *_, **__: kept.append(sheet))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw([path], "depth_curve", tmp_path / "x.png", metric="row_entropy")
    assert list(kept[0].axes[0].get_lines()[0].get_xdata()) == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match="drawn are blocks 1 and 3, and not blocks 2 and 4, which have other numbers"):
        draw([path], "layer_matrix", tmp_path / "x.png")
    assert [text.get_text() for text in kept[1].axes[0].get_xticklabels()] == ["1", "3"]


def test_several_scatters_stand_below_one_another_each_named_above_its_legend(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda sheet, *_, **__: kept.append(sheet))
    draw([run, run / "maps.h5"], "head_scatter", tmp_path / "x.png")
    sheet = kept[0]
    sheet.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in sheet.axes]
    assert len(boxes) == 2 and boxes[0].y0 > boxes[1].y1 and boxes[0].width == boxes[1].width
    for ax in sheet.axes:
        key = ax.get_legend()
        assert key.get_title().get_text() == run.name and not ax.get_title()
        assert key.get_window_extent().y0 > ax.get_window_extent().y1


def test_several_atlases_are_each_named_above_and_their_letters_fit(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda sheet, *_, **__: kept.append(sheet))
    draw([run, run / "maps.h5"], "head_atlas", tmp_path / "x.png")
    kept[0].draw_without_rendering()
    for ax in kept[0].axes:
        assert ax.get_title() == run.name
        (_, top), (_, bottom) = ax.transData.transform([(0, 0), (0, DOWN - TILE)])
        assert all(text.get_window_extent().height < top - bottom for text in ax.texts)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"figure": "layer_matrx"}, "Did you mean 'layer_matrix'"),
        ({"out": "x.docx"}, "use .pdf, .svg or .png"),
        ({"out": "x"}, "a file without ending"),
        ({"width": "page"}, "must be column, text, or 1 to 40 inches"),
        ({"width": 900}, "must be column, text, or 1 to 40 inches"),
        ({"figure": "layer_matrix", "metric": "row_entropy"}, "layer_matrix draws axes"),
    ],
)
def test_what_cannot_be_drawn_is_named(run, tmp_path, options, said):
    given = {"figure": "layer_matrix", "out": "x.pdf", **options}
    with pytest.raises(InputError, match=said):
        draw([run], given.pop("figure"), tmp_path / given.pop("out"), **given)
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(InputError, match="nothing to draw"):
        draw([], "onset", tmp_path / "x.pdf")


def test_a_file_without_history_or_images_says_what_to_do(run, tmp_path):
    (tmp_path / "alone.h5").symlink_to(run / "maps.h5")
    with pytest.raises(InputError, match="probe_every=1"):
        draw([tmp_path / "alone.h5"], "filmstrip", tmp_path / "x.png")
    with pytest.raises(UnknownName):
        draw([run], "layer_head", tmp_path / "x.png", metric="moon")


@pytest.mark.parametrize(
    ("paths", "said"),
    [(["row_entropy"], "row_entropy is a metric, not a file: .*metric"), (["depth_curve"], "is a figure, not a file")],
)
def test_a_metric_or_figure_where_a_file_belongs_is_called_so(paths, said, tmp_path):
    with pytest.raises(InputError, match=said):
        draw(paths, "layer_matrix", tmp_path / "x.png")
