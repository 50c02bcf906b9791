"""Places measured by perturbation against grids that are known by construction."""

import itertools

import pytest
import timm
import torch
from torch import nn

import attnprobe as ap
from attnprobe.capturing.places import Responses, changes, contradicts, of_merged, places, responses
from attnprobe.core.maps import TokenGrid


class Tokens(nn.Module):
    """Patches -> linear -> layer norm -> linear, with tokens that depend on no pixel around them."""

    def __init__(self, patch, width=64, channels=3, before=0, after=0):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.before, self.after = torch.randn(before, width), torch.randn(after, width)
        self.value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, images, keep=None):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = tokens if keep is None else tokens[:, keep]
        around = (x.expand(len(tokens), -1, -1) for x in (self.before, self.after))
        first, last = around
        return self.value(torch.cat([first, tokens, last], 1))


def found(model, size, channels=3, guess=None, prefix=(), **options):
    image = torch.randn(channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base, *changed = model(torch.stack([image, *changes(image)]), **options)
    return places(responses(base, *changed), size, guess, prefix)


@pytest.mark.parametrize(
    ("size", "patch", "channels"),
    [((224, 224), 16, 3), ((56, 56), (14, 14), 12), ((64, 256), 16, 3), ((32, 128), (4, 16), 3), ((64, 64), (4, 16), 3),
     ((8, 8), 1, 1), ((96, 32), 32, 3)],
)  # fmt: skip
def test_rows_columns_and_patches_are_measured(size, patch, channels):
    rows, cols = (patch, patch) if isinstance(patch, int) else patch
    grid = found(Tokens(patch, channels=channels, before=1), size, channels, prefix=("cls",))
    assert grid.status == "proved"
    assert grid.grid == TokenGrid(size[0] // rows, size[1] // cols, ("cls",), (rows, cols))


def test_prefix_tokens_are_counted_without_a_name_for_them():
    measured = found(Tokens(8, before=5), (64, 64), prefix=("cls",))
    assert measured.grid == TokenGrid(8, 8, tuple(f"prefix{i}" for i in range(5)), (8, 8))


def test_registers_behind_the_patches_have_no_place_in_a_grid():
    measured = found(Tokens(8, before=1, after=2), (64, 64), prefix=("cls",))
    assert measured.status == "unknown" and "at 0, 65, 66" in measured.reason


def test_scattered_patches_are_no_grid_although_their_number_is_a_square():
    keep = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:16]
    guess = TokenGrid(4, 4, ("cls",), (16, 16))
    measured = found(Tokens(8, before=1), (64, 64), guess=guess, keep=keep)
    assert (measured.status, measured.grid) == ("unknown", None)


def test_patches_in_another_order_refute_a_grid():
    order = torch.arange(64).view(8, 8).T.flatten()
    measured = found(Tokens(8), (64, 64), guess=TokenGrid(8, 8, (), (8, 8)), keep=order)
    assert measured.status == "unknown"


def test_tubes_of_a_video_are_no_grid():
    class Tubes(nn.Module):
        def __init__(self):
            super().__init__()
            self.frames = nn.ModuleList([Tokens(16) for _ in range(4)])

        def forward(self, clips):
            parts = clips.chunk(4, 1)
            return torch.cat([frame(part) for frame, part in zip(self.frames, parts, strict=True)], 1)

    measured = found(Tubes(), (64, 64), channels=12, guess=TokenGrid(8, 8, (), (8, 8)))
    assert measured.status == "unknown"


@pytest.mark.parametrize(("share", "status"), [(0.2, "assumed"), (20, "unknown")])
def test_tokens_that_see_all_of_the_image_are_in_a_grid_if_their_centres_keep_its_order(share, status):
    class Mixed(Tokens):
        def forward(self, images):
            tokens = super().forward(images)
            return tokens + share * torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) @ tokens

    guess = TokenGrid(8, 8, (), (8, 8))
    measured = found(Mixed(8), (64, 64), guess=guess)
    assert (measured.status, measured.grid) == (status, guess if status == "assumed" else None)


def test_a_stem_whose_patches_overlap_is_placed():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            widths, layers = (3, 32, 64, 64), []
            for narrow, wide in itertools.pairwise(widths):
                layers += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.GELU()]
            self.stem, self.value = nn.Sequential(*layers), nn.Linear(64, 64)

        def forward(self, images):
            return self.value(self.stem(images).flatten(2).transpose(1, 2))

    measured = found(Stem(), (64, 64))
    assert measured.status == "proved" and measured.grid == TokenGrid(8, 8, (), (8, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_enough(dtype):
    image = torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(1)).to(dtype)
    model = Tokens(14, width=192, before=1).to(dtype)
    model.before = model.before.to(dtype)
    model.after = model.after.to(dtype)
    with torch.no_grad():
        base, *changed = model(torch.stack([image, *changes(image)]))
    measured = places(responses(base, *changed), (112, 112), None, ("cls",))
    assert measured.grid == TokenGrid(8, 8, ("cls",), (14, 14))


def test_nothing_depends_on_the_pixels():
    base = torch.randn(5, 4)
    assert places(responses(base, base, base, base), (8, 8), None).status == "unknown"


def at(row, col):
    n = len(row)
    return Responses(torch.ones(n, dtype=torch.bool), row, col, torch.full((n,), 0.5), torch.full((n,), 0.5))


def test_tokens_that_drift_by_attention_are_not_said_to_have_moved_and_exchanged_ones_are():
    grid, generator = TokenGrid(4, 4, (), (8, 8)), torch.Generator().manual_seed(0)
    row, col = ((torch.arange(16) // 4 + 0.5) / 4).double(), ((torch.arange(16) % 4 + 0.5) / 4).double()
    alone = []
    for _ in range(12):  # each block adds what a few sharply attended tokens hold
        attended = torch.randint(16, (16,), generator=generator) // 3 * 3
        before, row, col = at(row, col), 0.75 * row + 0.25 * row[attended], 0.75 * col + 0.25 * col[attended]
        row, col = (0.5 + (x - x.mean()) * 0.25 / x.std() for x in (row, col))  # as spread as the grid
        alone.append(contradicts(at(row, col), grid))
        assert not contradicts(at(row, col), grid, before)
        turned = torch.arange(16).flip(0)
        assert contradicts(at(row[turned], col[turned]), grid, before)
    assert any(alone)  # by the grid alone some would be said to have moved


@pytest.mark.parametrize(
    ("size", "patch", "seen", "of_model"),
    [((76, 60), 16, (64, 48), 16), ((60, 60), 14, (56, 56), 14), ((232, 232), 16, (224, 224), 16),
     ((52, 52), 16, (64, 64), 16), ((76, 76), 16, (64, 64), None)],
)  # fmt: skip
def test_patches_that_do_not_fill_the_image_have_the_size_that_they_have(size, patch, seen, of_model):
    """A convolution leaves a rest out, or the model pads: patches do not become larger or smaller by it."""

    class Fitted(Tokens):
        def forward(self, images):
            padded = torch.nn.functional.pad(images, (0, seen[1] - size[1], 0, seen[0] - size[0]))
            return super().forward(padded)

    rows, cols = seen[0] // patch, seen[1] // patch
    guess = None if of_model is None else TokenGrid(rows, cols, (), (of_model, of_model))
    measured = found(Fitted(patch), size, guess=guess)
    assert measured.status == "proved"
    assert measured.grid == TokenGrid(rows, cols, (), (patch, patch))


@pytest.mark.parametrize("seed", range(3))
def test_patches_of_a_later_stage_are_as_large_as_those_of_the_first_that_are_merged_in_them(seed):
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "depths": (2, 2, 2), "embed_dim": 24}
    model = timm.create_model("swin_tiny_patch4_window7_224", **sizes, num_heads=(2, 3, 6)).eval()
    found = ap.capture(model, torch.randn(2, 3, 32, 32))
    assert [(maps.grid.rows, maps.grid.cols, maps.grid.patch) for maps in found] == [
        (16, 16, (2, 2)), (8, 8, (4, 4)), (4, 4, (8, 8)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "measured", "patch"),
    [(7, (28, 33), (32, 32)), (7, (20, 40), (32, 32)), (14, (16, 16), (16, 16)), (7, (14, 32), (14, 32)),
     (6, (30, 30), (30, 30)), (28, (7, 8), (7, 8))],
)  # fmt: skip
def test_a_patch_is_of_merged_ones_where_rows_are_merged_evenly_and_about_so_large(rows, measured, patch):
    finest = TokenGrid(14, 14, (), (16, 16))
    assert of_merged(TokenGrid(rows, rows, (), measured), finest).patch == patch
