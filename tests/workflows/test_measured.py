"""A folder of --stats-only is reported on and compared like maps, folded values too."""

import json
import shutil

import numpy as np
import pytest

from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.core.spec import CaptureSpec
from attnprobe.workflows.capture import measure_live
from attnprobe.workflows.compare import compare
from attnprobe.workflows.measure import examine

METRICS = ("row_entropy", "layer_similarity", "similar_blocks", "map_cka")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two initialisations of a small model measured on 60 digits: `a` and `b` keep 25, `whole` keeps all of `a`."""
    root, found = tmp_path_factory.mktemp("measured"), {}
    for name, seed, keep in (("a", 0, 25), ("b", 1, 25), ("whole", 0, 100)):
        spec = CaptureSpec("vit_16_digits", data="digits", images=60, seed=seed, initial=True, device="cpu")
        how = {"metrics": METRICS, "formats": ("json",), "keep_values": keep}
        ((found[name],), _) = measure_live(spec, out=root / name, **how)
    return root, found


@pytest.mark.parametrize("name", ["a", "whole"])
def test_what_is_read_again_is_what_was_measured(folders, name):
    root, measured = folders
    found = examine(root / name)
    assert found.measurements.keys() == measured[name].measurements.keys()
    for key, m in measured[name].measurements.items():
        for field in ("mean", "ci", "per_image", "replicates"):
            np.testing.assert_array_equal(getattr(found.measurements[key], field), getattr(m, field))
        assert found.measurements[key].settings == m.settings
    assert (
        found.certificate == json.loads(json.dumps(measured[name].certificate))
        and found.layers == measured[name].layers
    )
    assert found.info["n_images"] == 60 and found.grid == measured[name].grid


def test_runs_are_compared_on_the_images_whose_values_were_kept(folders, tmp_path):
    root, measured = folders
    comparison, _ = compare([root / "a", root / "b"], out=tmp_path)
    note = "25 images that both were measured on, those of up to 60 whose values were kept one by one"
    assert note in comparison.notes[0]
    row = next(row for row in comparison.differences if row.metric == "row_entropy")
    one, two = (measured[name].measurements["row_entropy"].per_image for name in "ab")
    np.testing.assert_allclose(row.cells.mean, (two - one).mean(0, dtype=np.float64), atol=1e-6)
    assert row.cells.n_images == 25
    comparison, _ = compare([root / "whole", root / "b"], out=tmp_path)
    assert "25 images" in comparison.notes[0], "of all images of one and the kept ones of the other"


def test_what_was_not_measured_or_not_finished_is_refused(folders, tmp_path):
    root, _ = folders
    with pytest.raises(InputError, match="has no head_similarity, only layer_similarity"):
        examine(root / "a", metrics=["head_similarity"])
    with pytest.raises(InputError, match="by which its values were folded"):
        examine(root / "a", group="(.)")
    assert set(examine(root / "a", metrics=["default"]).measurements) <= set(METRICS)
    folder = tmp_path / "part" / "slices"
    folder.mkdir(parents=True)
    for path in (root / "a" / "slices").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "n_images": 70}))
    with pytest.raises(MapsFileError, match="is unfinished: 60 of 70 images"):
        examine(tmp_path / "part")
    (folder / "plan.json").write_text("{}")
    with pytest.raises(MapsFileError, match="is damaged"):
        examine(tmp_path / "part")


@pytest.mark.parametrize("said", ['{"n_right": 9}', '{"n_labels": "many"}', '{"n_odd": 1}', "[1]", "{"])
def test_a_slice_whose_count_of_answers_is_impossible_is_refused(folders, tmp_path, said):
    shutil.copytree(folders[0] / "whole", tmp_path / "whole")
    path = min((tmp_path / "whole" / "slices").glob("s*.npz"))
    with np.load(path) as stored:
        arrays = dict(stored) | {"answers": np.frombuffer(said.encode(), np.uint8)}
    np.savez(path, **arrays)
    with pytest.raises((InputError, MapsFileError), match="answers|is damaged"):
        examine(tmp_path / "whole")
