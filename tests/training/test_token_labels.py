"""Label maps as TokenLabeling's script writes them, against loops."""

import pytest
import torch
from torch.nn.functional import softmax

from attnprobe.core.errors import InputError
from attnprobe.training.token_labels import LabelMaps, token_targets

WHOLE = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def released(logits, k=5):
    """[row, col, class] -> what the release holds: values and classes as float16, [2, k, row, col]."""
    values, classes = logits.topk(k)
    return torch.stack([values.half(), classes.half()]).permute(0, 3, 1, 2)


def logits_of(n, rows, cols, classes, seed=0):
    return torch.randn(n, rows, cols, classes, generator=torch.Generator().manual_seed(seed)).mul(3).half().float()


def test_a_map_is_found_by_class_and_name(tmp_path):
    maps = released(logits_of(1, 3, 3, 1000)[0])
    (tmp_path / "n01").mkdir()
    torch.save(maps, tmp_path / "n01/n01_7.pt")
    labels = LabelMaps(tmp_path, ["train/n01/n01_7.JPEG"], 1000)
    assert torch.equal(labels(0), maps)


def test_whole_pictures_at_the_maps_own_grid_have_the_softmax_of_the_kept_logits():
    logits = logits_of(2, 4, 3, 20)
    maps = torch.stack([released(picture) for picture in logits])
    whole, patches = token_targets(maps, torch.tensor([WHOLE, WHOLE]), 20, (4, 3))
    assert whole.shape == (2, 20) and patches.shape == (2, 12, 20)
    for image in range(2):
        for row in range(4):
            for col in range(3):
                kept = torch.zeros(20)
                for k in range(5):
                    kept[int(maps[image, 1, k, row, col])] = maps[image, 0, k, row, col]
                torch.testing.assert_close(patches[image, 3 * row + col], softmax(kept, 0))
    full = torch.zeros(2, 20, 4, 3).scatter_(1, maps[:, 1].long(), maps[:, 0].float())
    torch.testing.assert_close(whole, softmax(full.mean((2, 3)), 1))


@pytest.mark.parametrize(("mirrored", "upside_down"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_crop_of_whole_cells_has_their_labels_mirrored_as_the_picture(mirrored, upside_down):
    maps = released(logits_of(1, 4, 8, 20)[0])[None]
    place = torch.tensor([[2 / 8, 1 / 4, 5 / 8, 3 / 4, mirrored, upside_down]])
    _whole, patches = token_targets(maps, place, 20, (2, 3))
    _, everything = token_targets(maps, torch.tensor([WHOLE]), 20, (4, 8))
    expected = everything.view(4, 8, 20)[1:3, 2:5]
    expected = expected.flip([axis for axis, did in ((1, mirrored), (0, upside_down)) if did])
    torch.testing.assert_close(patches.view(2, 3, 20), expected)


def test_labels_are_probabilities_wherever_the_crop_lies():
    maps = torch.stack([released(picture) for picture in logits_of(3, 18, 18, 50)])
    corners = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) * 0.6
    places = torch.cat([corners, corners + 0.37, torch.zeros(3, 2)], 1)
    for targets in token_targets(maps, places, 50, (14, 14)):
        torch.testing.assert_close(targets.sum(-1), torch.ones(targets.shape[:-1]))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(5, 3, 3), r"expected a tensor \[2, k, row, col\], got shape \(5, 3, 3\)"),
        ({"a": 1}, "got dict"),
        (torch.full((2, 5, 3, 3), 10.0), "names class 10; the model has 10"),
        (Evil(), "cannot be read"),
    ],
)
def test_what_is_no_label_map_is_refused_and_nothing_in_it_runs(tmp_path, capsys, content, said):
    (tmp_path / "a").mkdir()
    torch.save(content, tmp_path / "a/b.pt")
    labels = LabelMaps(tmp_path, ["a/b.png"], 10)
    with pytest.raises(InputError, match=said) as caught:
        labels(0)
    assert "\n" not in str(caught.value) and "code ran" not in capsys.readouterr().out


def test_a_folder_without_maps_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"no label map n01/x.pt of the first training image"):
        LabelMaps(tmp_path, ["train/n01/x.JPEG"], 10)
