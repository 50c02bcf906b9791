"""Places of a layer's tokens in the image, measured by small changes of the pixels.

Question: how is a token's place known? Choice: by what moves it. Change an image by a little noise d, once weighted by
the row coordinate r, once by 1 - r, once by the column coordinate c. To first order, V of token t responds linearly,
and a token that depends on one patch responds to r d as r(patch) times as strongly as to d. The regression of the
one response on the other is the centre of all pixels the token depends on, and what it leaves over is their spread.
A token that does not respond at all is no patch: a class token, a register. So three changed images give row, column
and extent of every token, and nothing is inferred from a square root or from what divides a number.

Source: ours. Checked against known grids in tests/capturing/test_places.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from attnprobe.core.devices import in_float64
from attnprobe.core.grid import TokenGrid

Status = Literal["proved", "assumed", "unknown"]

SIZE = {torch.bfloat16: 0.3, torch.float16: 0.1}
"""Standard deviation of the noise in a precision: small, so that responses are linear, and well above rounding."""

SEED = 0xA77E
"""Of the noise. A seed that nobody else takes: noise equal to the image, which may be noise of seed 0 itself, only
scales it, and a layer norm removes that."""

FIT, FIT_MEAN = 0.75, 0.35
"""Largest and root mean square distance, in patches, of tokens from the patches of a grid that is proved. Tokens in any
other order are off by one patch or more."""

IN_CELL = 0.4
"""Largest distance, in cells, of a token from the middle of the cell that several share; of tokens everywhere it is
half a cell."""

PITCH = (0.3, 0.05)
"""Share by which the distance of neighbouring patches may differ from a size that the model states or that fills the
image: of fewer than four rows, which are all at an edge, and of more."""

UNMOVED = 1e-10
"""Share of the largest squared response below which a token does not respond: rounding is at 1e-12."""

FAR, FAR_MEDIAN = 2.0, 0.5
"""Largest and median distance of tokens from an assumed place, in their own extents, above which it is refuted."""

IN_ORDER = 0.4
"""Least correlation of the centres of tokens with the rows and the columns of a grid that is assumed; stages of timm's
models that are one have 0.48 to 1, and learnt queries about 0."""

SPREAD, ALIKE = 0.5, 0.5
"""Where the centres of tokens spread over more than this share of what a grid does, they are local enough to refute it;
and they do so if their correlation with the rows or the columns of the grid, and with where they were in the previous
layer, is below this."""


@dataclass(frozen=True, slots=True)
class Places:
    """Places of the tokens of a stage, and how they are known.

    Attributes:
        status: "proved" by perturbation; "assumed" from the geometry of the model, which perturbation neither proves
            nor refutes; "unknown".
        reason: why it is not proved; "" where it is.
        grid: None where unknown.
    """

    status: Status
    reason: str = ""
    grid: TokenGrid | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """Findings of perturbation about a model's layers.

    Attributes:
        places: of the key tokens of each layer, by its name.
        image_axes: axis of the image in the output [?, ?, width] of each block, by its name; None where neither is.
        images_proved: whether there was a second image to compare with.
        parallel: layers that are given the same tokens as the layer before them, in one list of modules.
        passes: forward passes of up to two images that it took.
        kinds: of layers whose shapes say another kind than their responses: channels that are as many as tokens.
        windows: of layers of windows that all respond, by name: [row or column, token of all windows], where they do.
    """

    places: Mapping[str, Places] = field(default_factory=dict)
    image_axes: Mapping[str, int | None] = field(default_factory=dict)
    images_proved: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)
    parallel: tuple[str, ...] = ()
    passes: int = 0
    windows: Mapping[str, Tensor] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Response of tokens to the changes, in fractions of the image's sides; all [token].

    Attributes:
        moved: whether a token depends on the pixels at all.
        row, col: the centre of what it depends on; NaN where it does not move.
        height, width: the extent of that, such as that of a patch.
    """

    moved: Tensor
    row: Tensor
    col: Tensor
    height: Tensor
    width: Tensor


def changes(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The image [channel, ..., row, col] changed by noise that grows downwards, upwards, and to the right."""
    rows, cols = image.shape[-2:]
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(image.shape, generator=generator).to(image) * SIZE.get(image.dtype, 0.02)
    down = ((torch.arange(rows) + 0.5) / rows).to(image)[:, None]
    right = ((torch.arange(cols) + 0.5) / cols).to(image)
    return image + down * noise, image + (1 - down) * noise, image + right * noise


def responses(base: Tensor, down: Tensor, up: Tensor, right: Tensor) -> Responses:
    """Responses of tokens from what they were, [token, feature], for the image and its three `changes`."""
    base = in_float64(base)
    by_row, by_rest, by_col = (in_float64(changed) - base for changed in (down, up, right))
    whole = by_row + by_rest  # of the noise as it is
    power = whole.square().sum(-1)
    moved = power > UNMOVED * power.max()

    def centre(part: Tensor) -> tuple[Tensor, Tensor]:
        at = (part * whole).sum(-1) / power
        rest = (part - at[:, None] * whole).square().sum(-1) / power
        return at.where(moved, torch.nan), (12 * rest).sqrt().where(moved, torch.nan)  # variance of a side: side^2 / 12

    (row, height), (col, width) = centre(by_row), centre(by_col)
    return Responses(moved, row, col, height, width)


def places(
    found: Responses,
    size: tuple[int, int],
    guess: TokenGrid | None,
    prefix: tuple[str, ...] = (),
    overlapping: bool = False,
) -> Places:
    """The grid that the responses prove, or what they leave of the `guess`.

    Args:
        size: rows and columns of the image in pixels.
        guess: from the geometry of the model; None for none.
        prefix: names of prefix tokens that the model may have, in order.
        overlapping: its patches see more than their own pixels, and less at the edges of the image, where they seem to
            lie nearer to the middle.
    """
    moved = found.moved
    n_prefix = int((~moved).sum())
    if not moved.any():
        return Places("unknown", "no token of its first layer depends on the pixels")
    if bool((~moved[n_prefix:]).any()):
        at = (~moved).nonzero().flatten().tolist()
        return Places("unknown", f"tokens without a place stand among the patches, at {_listed(at)}")
    row, col = found.row[moved], found.col[moved]
    n = len(row)
    grids = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
    errors = {grid: _distances(row, col, grid) for grid in grids}
    best = min(grids, key=lambda grid: errors[grid].square().mean().item())
    if errors[best].max() <= FIT and errors[best].square().mean().sqrt() <= FIT_MEAN:
        return Places(
            "proved", "", _grid(best, _patch(row, col, best, size, guess, overlapping), guess, n_prefix, prefix)
        )
    if (other := next((grid for grid in grids if _in_another_order(row, col, grid)), None)) is not None:
        rows, cols = other
        return Places("unknown", f"its tokens fill a grid of {rows} x {cols} patches in another order than row by row")
    if guess is None or guess.n_tokens != len(moved) or not guess.rows:
        return Places("unknown", "its tokens form no complete grid of patches, row by row")
    if bool(moved[guess.patches].all()):  # in later layers a class token moves, too
        grid, row, col = (guess.rows, guess.cols), found.row[guess.patches], found.col[guess.patches]
        extent = torch.maximum(found.height, found.width)[guess.patches]
        off = _distances(row, col, grid, unit=False) / extent
        if off.max() > FAR or off.median() > FAR_MEDIAN or contradicts(found, guess):
            return Places(
                "unknown", f"its tokens are not where a grid of {grid[0]} x {grid[1]} patches would have them"
            )
        if not _in_order(row, col, grid):
            return Places("unknown", "its tokens depend on all of the image alike, as learnt queries do")
    return Places("assumed", "its tokens already depend on much of the image, so their places do not show", guess)


def contradicts(found: Responses, grid: TokenGrid, before: Responses | None = None) -> bool:
    """True if tokens are elsewhere than the patches of a grid; tokens that depend on much of the image do not say.

    Args:
        before: responses of the same tokens in the previous layer. Through attention a token comes to depend on other
            places little by little, since it keeps what it was, so one that follows the previous layer has not moved.
            Tokens that are sorted or exchanged follow neither it nor the grid.
    """
    if min(grid.rows, grid.cols) < 2 or len(found.row) != grid.n_tokens:
        return False
    chosen = grid.patches  # in later layers a class token moves, too
    seen = [found] if before is None or len(before.row) != len(found.row) else [found, before]
    if not all(bool(each.moved[chosen].all()) for each in seen):
        return False
    patch = torch.tensor(grid.patch_positions, device=found.row.device)
    expected = torch.stack([(patch // grid.cols + 0.5) / grid.rows, (patch % grid.cols + 0.5) / grid.cols])
    measured, *previous = (torch.stack([each.row[chosen], each.col[chosen]]) for each in seen)
    if (measured.std(1) / expected.std(1)).mean() <= SPREAD:
        return False
    return all(_correlation(measured, other) < ALIKE for other in (expected, *previous))


def _correlation(a: Tensor, b: Tensor) -> float:
    """Mean over the two axes of the correlation of the centres [axis, token]; one axis alone may be so by chance."""
    pairs = zip(a, b.to(a), strict=True)
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())


def _in_order(row: Tensor, col: Tensor, grid: tuple[int, int]) -> bool:
    """True if the centres of tokens follow the rows and the columns of a grid, however little they differ."""
    patch = torch.arange(len(row), device=row.device)
    pairs = ((row, patch // grid[1]), (col, patch % grid[1]))
    several = [pair for pair, side in zip(pairs, grid, strict=True) if side > 1]
    least = max(IN_ORDER, 1.6 * len(row) ** -0.5)  # of few tokens chance gives more
    return all(torch.corrcoef(torch.stack([at, of.double()]))[0, 1] >= least for at, of in several)


def _in_another_order(row: Tensor, col: Tensor, grid: tuple[int, int]) -> bool:
    """True if each token is nearest to a patch of its own, and within half a patch of it; both sides have several."""
    rows, cols = grid
    at_row, at_col = row * rows - 0.5, col * cols - 0.5
    patch = at_row.round() * cols + at_col.round()
    inside = (at_row.round() >= 0) & (at_row.round() < rows) & (at_col.round() >= 0) & (at_col.round() < cols)
    return min(grid) > 1 and bool(inside.all()) and len(patch.unique()) == len(patch)


def share_places(row: Tensor, col: Tensor) -> bool:
    """True if tokens stand in the middle of the cells of a grid, the same number of them, two or more, in each."""
    n = len(row)
    for cells in (n // several for several in range(2, n // 2 + 1) if n % several == 0):
        for rows in (rows for rows in range(2, cells // 2 + 1) if cells % rows == 0):
            cols = cells // rows
            at_row, at_col = row * rows - 0.5, col * cols - 0.5
            off = torch.maximum((at_row - at_row.round()).abs(), (at_col - at_col.round()).abs())
            counts = (at_row.round() * cols + at_col.round()).unique(return_counts=True)[1]
            if off.max() <= IN_CELL and len(counts) == cells and bool((counts == n // cells).all()):
                return True
    return False


def _distances(row: Tensor, col: Tensor, grid: tuple[int, int], unit: bool = True) -> Tensor:
    """Distance of each token from its patch of a grid, row by row: in patches, or in fractions of the image.

    A shift of all tokens by less than half a patch is no distance: strided convolutions with padding have one.
    """
    rows, cols = grid
    token = torch.arange(len(row), device=row.device)
    by_row, by_col = row - (token // cols + 0.5) / rows, col - (token % cols + 0.5) / cols
    by_row = by_row - by_row.median().clamp(-0.5 / rows, 0.5 / rows)
    by_col = by_col - by_col.median().clamp(-0.5 / cols, 0.5 / cols)
    return torch.maximum((by_row * (rows if unit else 1)).abs(), (by_col * (cols if unit else 1)).abs())


def _grid(
    shape: tuple[int, int], patch: tuple[int, int], guess: TokenGrid | None, n_prefix: int, prefix: tuple[str, ...]
) -> TokenGrid:
    """The proved grid, with names of prefix tokens as the model has them."""
    rows, cols = shape
    if guess is not None and (guess.rows, guess.cols, guess.n_prefix) == (rows, cols, n_prefix):
        return replace(guess, patch=patch)
    names = prefix[:n_prefix] if n_prefix <= len(prefix) else tuple(f"prefix{i}" for i in range(n_prefix))
    return TokenGrid(rows, cols, names, patch)


def _patch(
    row: Tensor, col: Tensor, shape: tuple[int, int], size: tuple[int, int], guess: TokenGrid | None, overlapping: bool
) -> tuple[int, int]:
    """Height and width of a patch in pixels: those of the model or of a grid that fills the image, if the tokens lie so
    far apart, else as far apart as they lie: of images that are padded, cropped or resized on the way."""
    of_model = (0, 0) if guess is None else guess.patch
    centres = row.view(shape).mean(1), col.view(shape).mean(0)
    rows, cols = (_side(*each, overlapping) for each in zip(centres, size, of_model, strict=True))
    return rows, cols


def _side(centres: Tensor, size: int, of_model: int, overlapping: bool) -> int:
    """One side of a patch in pixels, from the centres of the rows or columns of patches in fractions of the image."""
    n = len(centres)
    filling = max(1, round(size / n))
    if n == 1:
        return filling
    # Medians, not a line through all: what is padded pulls the outermost centres inward. Over all pairs chance is less,
    # over neighbours alone padding is.
    one, other = torch.triu_indices(n, n, 1, device=centres.device)
    all_pairs = ((centres[other] - centres[one]) / (other - one)).median().item() * size
    neighbours = centres.diff().median().item() * size
    off, near = min(
        (abs(side - apart) / side, side) for side in (filling, of_model or filling) for apart in (all_pairs, neighbours)
    )
    alike = abs(all_pairs - neighbours) <= PITCH[1] * neighbours
    return near if off <= PITCH[n >= 4 and not overlapping] else max(1, round(all_pairs if alike else neighbours))


def of_merged(grid: TokenGrid, finest: TokenGrid) -> TokenGrid:
    """The grid of a later stage, with patches as large as those of the first stage that are merged in each.

    Measured they seem smaller: layers before have mixed tokens, which then seem to lie nearer to the middle. Left as
    measured where rows or columns are not merged evenly, or the size is off by more than a factor of 2.
    """
    several = [(finest.rows, grid.rows), (finest.cols, grid.cols)]
    if not all(few and many % few == 0 for many, few in several):
        return grid
    height, width = (side * (many // few) for side, (many, few) in zip(finest.patch, several, strict=True))
    near = all(one <= 2 * ours <= 4 * one for ours, one in zip(grid.patch, (height, width), strict=True))
    return replace(grid, patch=(height, width)) if near else grid


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return shown if len(numbers) <= 4 else f"{shown} and {len(numbers) - 4} more"
