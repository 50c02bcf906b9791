"""Explicit positions of tokens against selections that are known by construction."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import Attention, soft

KEEP = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:16].tolist()
PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A ViT whose patches pass through `select`, with tokens before and behind them."""

    def __init__(self, select, *, patch=(8, 8), before=("cls_token",), behind=(), side=(64, 64), unfold=False):
        super().__init__()
        torch.manual_seed(0)
        self.select, self.patch, self.unfold, self.names = select, patch, unfold, (before, behind)
        if not unfold:
            self.embed = nn.Conv2d(3, 48, patch, patch)
        self.project = nn.Linear(3 * patch[0] * patch[1], 48)
        for name in (*before, *behind):
            setattr(self, name, nn.Parameter(torch.randn(1, 4 if name.startswith("reg") else 1, 48)))
        self.pos = nn.Parameter(0.2 * torch.randn(1, side[0] // patch[0] * (side[1] // patch[1]), 48))
        self.norms = nn.ModuleList([nn.LayerNorm(48) for _ in range(3)])
        self.blocks = nn.ModuleList([Attention(lambda s, q, k, v: soft(q, k) @ v) for _ in range(3)])

    def forward(self, x):
        x = self.project(F.unfold(x, self.patch, stride=self.patch).mT) if self.unfold else self.embed(x).flatten(2).mT
        x = self.select(x + self.pos)
        first, last = ([getattr(self, name).expand(len(x), -1, -1) for name in names] for names in self.names)
        x = torch.cat([*first, x, *last], 1)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x.mean(1)


def place(model, pixels=PIXELS):
    (found,) = set(ap.capture(model.eval(), pixels).certificate.located.places.values())
    return found


def test_tokens_that_survive_a_mask_are_at_the_patches_that_it_kept():
    found = place(Encoder(lambda x: x[:, KEEP]))
    assert found.status == "proved"
    assert found.grid == ap.TokenGrid(8, 8, ("cls",), (8, 8), (-1, *KEEP))


@pytest.mark.parametrize("unfold", [False, True])
def test_rectangular_patches_are_placed_without_a_word_of_the_model(unfold):
    found = place(Encoder(lambda x: x[:, KEEP], patch=(16, 4), side=(64, 64), unfold=unfold))
    assert found.grid == ap.TokenGrid(4, 16, ("cls",), (16, 4), (-1, *KEEP))


@pytest.mark.parametrize(
    ("before", "behind", "names"),
    [
        (("reg_tokens",), (), ("reg0", "reg1", "reg2", "reg3")),
        (("cls_token",), ("reg_tokens",), ("cls", "reg0", "reg1", "reg2", "reg3")),
        ((), ("cls_token",), ("cls",)),
        (("reg_tokens", "cls_token"), (), ("reg0", "reg1", "reg2", "reg3", "cls")),
        (("reg_tokens",), ("cls_token",), ("reg0", "reg1", "reg2", "reg3", "cls")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [KEEP, list(range(64))])
def test_prefix_tokens_are_known_wherever_they_stand(before, behind, names, keep):
    found = place(Encoder(lambda x: x[:, keep], before=before, behind=behind))
    counts = [4 * ("reg_tokens" in some) + ("cls_token" in some) for some in (before, behind)]
    grid = ap.TokenGrid(8, 8, found.grid.prefix, (8, 8), (*[-1] * counts[0], *keep, *[-1] * counts[1]))
    assert found.status == "proved" and found.grid.slots == grid.slots
    assert found.grid.prefix == names


def test_a_grid_column_by_column_has_explicit_positions():
    order = torch.arange(64).view(8, 8).T.flatten().tolist()
    assert place(Encoder(lambda x: x[:, order])).grid.positions == (-1, *order)


def test_one_image_is_enough():
    assert place(Encoder(lambda x: x[:, KEEP]), PIXELS[:1]).grid.positions == (-1, *KEEP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_enough(dtype):
    assert place(Encoder(lambda x: x[:, KEEP]).to(dtype)).grid.positions == (-1, *KEEP)


REASONS = {
    "distant pairs are merged": (lambda x: (x[:, KEEP[:8]] + x[:, KEEP[8:]]) / 2, "no complete grid of patches"),
    "patches are in several tokens": (
        lambda x: torch.stack([x[:, 8 * i + j : 8 * i + 3 + j : 1 + j].mean(1) for i in range(8) for j in (0, 1)], 1),
        "depend on several patches each",
    ),
    "some are merged": (lambda x: torch.cat([x[:, KEEP], x[:, :2].mean(1, keepdim=True)], 1), "1 of its tokens"),
    "the longest are kept": (lambda x: longest(x, 16), "depends on the image"),
    "they are sorted": (lambda x: longest(x, 64), "depends on the image"),
    "one stands twice": (lambda x: x[:, [*KEEP, KEEP[0]]], "several of its tokens stand for one place"),
}


def longest(x, n):
    return x.gather(1, x.norm(dim=-1).topk(n, 1).indices[..., None].expand(-1, -1, 48))


@pytest.mark.parametrize("case", REASONS)
def test_tokens_without_one_patch_each_have_no_place_and_the_reason_is_true(case):
    select, reason = REASONS[case]
    found = place(Encoder(select))
    assert found.status == "unknown" and reason in found.reason


def test_a_mask_that_is_drawn_in_each_pass_is_refused_or_has_no_place():
    model = Encoder(lambda x: x[:, torch.randperm(64)[:16]])
    with pytest.raises(CaptureError, match="deterministic"):
        list(ap.capture(model.eval(), PIXELS))

    class Constant(Encoder):
        def forward(self, x):
            return 0 * super().forward(x)

    found = place(Constant(lambda x: x[:, torch.randperm(64)[:16]]))
    assert (found.status, found.reason) == ("unknown", "its tokens are selected anew in each forward pass")


def test_a_token_of_two_neighbours_stands_for_both():
    pairs = [4, 31, 7, 12, 20]
    found = place(Encoder(lambda x: torch.stack([x[:, 2 * pair : 2 * pair + 2].mean(1) for pair in pairs], 1)))
    assert found.grid == ap.TokenGrid(8, 4, ("cls",), (8, 16), (-1, *pairs))


def test_distances_of_a_masked_encoder_are_between_the_patches_that_it_kept():
    model = Encoder(lambda x: x[:, KEEP], behind=("reg_tokens",)).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    found = ap.measure([maps], ["attention_distance", "own_row_mass", "own_column_mass"])
    distance, row, col = (torch.zeros(3, 3, 3, dtype=torch.float64) for _ in range(3))
    for i, p in enumerate(KEEP, 1):  # after the class token
        mass = maps.values[..., i, 1:17].double().sum(-1)
        for j, q in enumerate(KEEP, 1):
            weight = maps.values[..., i, j].double() / mass / 16
            distance += weight * (((p // 8 - q // 8) * 8) ** 2 + ((p % 8 - q % 8) * 8) ** 2) ** 0.5
            row += weight * (p // 8 == q // 8)
            col += weight * (p % 8 == q % 8)
    for name, values in (("attention_distance", distance), ("own_row_mass", row), ("own_column_mass", col)):
        torch.testing.assert_close(torch.from_numpy(found[name].mean).double(), values.mean(0), rtol=1e-5, atol=1e-6)
