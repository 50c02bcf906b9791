"""Maps that other programs saved become a maps file with the same numbers, or are refused; nothing in them is run."""

import os
import pickle
import signal

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from attnprobe.core.errors import InputError
from attnprobe.core.spec import ImportOptions
from attnprobe.io import fs
from attnprobe.store import open_maps
from attnprobe.workflows.import_maps import import_maps
from tests.store.capturing import forked, shrink_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*is read as")

MAPS = torch.randn(5, 3, 2, 17, 17, generator=torch.Generator().manual_seed(0)).softmax(-1)
OTHER = torch.randn(5, 2, 17, 8, generator=torch.Generator().manual_seed(1))

FILES = {
    "five_axes.npy": lambda path: np.save(path, MAPS.numpy()),
    "layers.npz": lambda path: np.savez(path, **{f"block{i}": MAPS[:, i].numpy() for i in range(3)}),
    "list.pt": lambda path: torch.save([MAPS[:, i] for i in range(3)], path),
    "layers.safetensors": lambda path: save_file({f"b{i}": MAPS[:, i].contiguous() for i in range(3)}, path),
    "tuples_of_tensors.pkl": lambda path: dump([(OTHER, OTHER, OTHER, MAPS[:, i]) for i in range(3)], path),
    "tuples_of_arrays.pkl": lambda path: dump([(OTHER.numpy(), MAPS[:, i].numpy()) for i in range(3)], path),
}


def dump(tree, path):
    path.write_bytes(pickle.dumps(tree))


@pytest.mark.promise("commands-killed")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside threads
@pytest.mark.parametrize("operation", ["link:3", "unlink:2"])
def test_an_import_that_was_killed_after_a_shard_goes_on(tmp_path, monkeypatch, operation):
    shrink_shards(monkeypatch, 4 * MAPS[0].numel())
    np.save(tmp_path / "maps.npy", MAPS.numpy())
    options, out = ImportOptions(grid="4x4", patch=8), tmp_path / "maps.h5"
    monkeypatch.setattr(fs, "matched", 0)
    monkeypatch.setenv("ATTNPROBE_FAULT", f"{operation}:kill")
    status, _ = forked(lambda: import_maps(tmp_path / "maps.npy", out, options))
    monkeypatch.setenv("ATTNPROBE_FAULT", "")
    assert status == signal.SIGKILL and list((out.with_suffix(".parts") / "shards").glob("s*.h5"))
    import_maps(tmp_path / "maps.npy", out, options)
    assert torch.equal(open_maps(out).maps().values, MAPS)
    assert not out.with_suffix(".parts").exists()


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_maps(tmp_path, name):
    FILES[name](tmp_path / name)
    options = ImportOptions(grid="4x4", patch=8)
    maps = open_maps(import_maps(tmp_path / name, tmp_path / "maps.h5", options)).maps()
    torch.testing.assert_close(maps.values, MAPS)
    assert (maps.site, maps.stochastic, maps.grid.rows, maps.grid.prefix) == ("weights", True, 4, ("cls",))
    assert maps.grid.patch == (8, 8) and len(maps.layers) == 3


@pytest.mark.parametrize(
    ("axes", "order"), [("LIHQK", (1, 0, 2, 3, 4)), ("image,layer,head,key,query", (0, 1, 2, 4, 3))]
)
def test_axes_are_put_in_order(tmp_path, axes, order):
    np.save(tmp_path / "x.npy", MAPS.permute(order).numpy())
    path = import_maps(tmp_path / "x.npy", tmp_path / "maps.h5", ImportOptions(axes=axes))
    torch.testing.assert_close(open_maps(path).maps().values, MAPS)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_layers_are_sorted_by_the_numbers_in_their_names(tmp_path, ending):
    """Also of files that keep an order, which is often that of names as text: block 10 before block 2."""
    layers = torch.rand(12, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2)).softmax(-1)
    arrays = {f"block.{i}.attn": layers[i] for i in sorted(range(12), key=str)}
    path = tmp_path / f"x{ending}"
    if ending == ".npz":
        np.savez(path, **{name: layer.numpy() for name, layer in arrays.items()})
    else:
        {".pt": torch.save, ".safetensors": save_file}[ending](arrays, path)
    maps = open_maps(import_maps(path, tmp_path / "maps.h5")).maps()
    assert maps.layers == tuple(f"block.{i}.attn" for i in range(12))
    torch.testing.assert_close(maps.values, layers.transpose(0, 1))


def test_layers_of_names_that_tell_no_order_stay_as_in_the_file(tmp_path):
    layers = {name: MAPS[:, i].numpy() for i, name in enumerate(("stem", "body2", "body1"))}
    np.savez(tmp_path / "x.npz", **layers)
    maps = open_maps(import_maps(tmp_path / "x.npz", tmp_path / "maps.h5")).maps()
    assert maps.layers == tuple(layers)


def test_a_missing_axis_counts_as_one(tmp_path):
    np.save(tmp_path / "x.npy", MAPS.mean(2).numpy())
    maps = open_maps(import_maps(tmp_path / "x.npy", tmp_path / "maps.h5", ImportOptions(axes="ILQK"))).maps()
    torch.testing.assert_close(maps.values, MAPS.mean(2, keepdim=True))


def test_without_a_grid_no_position_is_claimed(tmp_path):
    np.save(tmp_path / "x.npy", MAPS.numpy())
    grid = open_maps(import_maps(tmp_path / "x.npy", tmp_path / "maps.h5")).maps().grid
    assert (grid.rows, grid.cols, grid.n_tokens) == (0, 0, 17)


def test_maps_of_other_row_sums_are_imported_only_as_what_they_are_said_to_be(tmp_path):
    np.save(tmp_path / "x.npy", (2 * MAPS - 0.1).numpy())
    effective = import_maps(tmp_path / "x.npy", tmp_path / "maps.h5", ImportOptions(site="effective"))
    assert not open_maps(effective).maps(site="effective").stochastic
    with pytest.raises(InputError, match="do not sum to 1.* --site effective"):
        import_maps(tmp_path / "x.npy", tmp_path / "y.h5")
    assert not (tmp_path / "y.h5").exists()


def test_the_weights_of_a_network_are_not_taken_for_maps(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="patch_embed.proj.weight .*no attention weights"):
        import_maps(tmp_path / "x.pth", tmp_path / "maps.h5")


class Harmful:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("ending", ["pkl", "pt", "npy", "npz"])
def test_nothing_in_a_file_is_run(tmp_path, ending):
    path, canary = tmp_path / f"x.{ending}", tmp_path / "canary"
    if ending == "pkl":
        dump([Harmful(canary)], path)
    elif ending == "pt":
        torch.save([Harmful(canary)], path)
    else:
        save = np.save if ending == "npy" else np.savez
        save(path, np.array([Harmful(canary)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        import_maps(path, tmp_path / "maps.h5")
    assert not canary.exists() and not (tmp_path / "maps.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "5x5"}, "make 26 tokens, and the maps have 17"),
        ({"grid": "4 by 4"}, "must be rows and columns"),
        ({"axes": "IHQ"}, "must name query and key"),
        ({"axes": "IIHQK"}, "once each"),
        ({"axes": "HQK"}, "no array has 3 axes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, message):
    np.save(tmp_path / "x.npy", MAPS.numpy())
    with pytest.raises(InputError, match=message):
        import_maps(tmp_path / "x.npy", tmp_path / "maps.h5", ImportOptions(**options))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x80\x04}"])
@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "safetensors", "pkl", "txt"])
def test_a_damaged_file_is_one_line(tmp_path, ending, content):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError):
        import_maps(path, tmp_path / "maps.h5")


def test_the_command_says_how_it_read_the_axes(call_command, tmp_path):
    np.save(tmp_path / "x.npy", MAPS.numpy())
    code, out, err = call_command("import", "x.npy", "-o", "maps.h5", "--grid", "4x4")
    assert (code, out) == (0, "maps.h5\n")
    assert "5 image, 3 layer, 2 head, 17 query, 17 key" in err
