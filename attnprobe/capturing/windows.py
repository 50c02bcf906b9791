"""Maps of windows as maps of the whole image: the place of token t of window w.

Swin (timm's v1, v2 and v2-cr, torchvision's, Hugging Face's), MaxViT and Twins; the layouts are those of their papers:
arXiv:2103.14030 (shifted windows), arXiv:2204.01697 (windows and grids), arXiv:2104.13840.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.kinds import kind_of
from attnprobe.capturing.product import Product
from attnprobe.core.errors import CaptureError
from attnprobe.core.grid import TokenGrid

WINDOW_SIZES = ("window_size", "partition_size", "grid_size", "ws")
"""Usual names of rows and columns of a window, looked up in the layer first and then in the modules around it."""


def in_image(product: Product, grid: TokenGrid | None, centres: Tensor | None = None) -> Product:
    """The product with maps of the whole image, zero between windows, where its scores are -inf.

    Args:
        grid: the patches that the tokens of all windows fill; None if unknown.
        centres: [row or column, token of all windows], where they were measured to be, in fractions of the image.

    Raises:
        CaptureError: where the windows sit in the image does not show, or is not where the layer's names say.
    """
    token = _tokens(product, grid, centres)

    def whole(maps: Tensor, outside: float = 0.0) -> Tensor:
        """[image, window, head, query, key] -> [image, 1, head, token, token], and `outside` beyond the window."""
        images, _, heads, _, n_keys = maps.shape
        made = maps.new_full((images, heads, token.numel(), token.numel()), outside)
        at = token.to(maps.device)
        rows, columns = at[:, :, None].expand(-1, -1, n_keys), at[:, None, :].expand(-1, n_keys, -1)
        made[:, :, rows, columns] = maps.transpose(1, 2)
        return made.unsqueeze(1)

    weights, scores, effective = product.weights, product.scores, whole(product.effective)
    if weights is not None:
        weights = effective if weights is product.effective else whole(weights)
    return replace(
        product, effective=effective, weights=weights, scores=None if scores is None else whole(scores, -torch.inf)
    )


def _tokens(product: Product, grid: TokenGrid | None, centres: Tensor | None) -> Tensor:
    """[window, token]: the patch that each token is; arguments and errors as for `in_image`.

    Measured, where each token responds as a patch of its own. Deeper, where it responds as many patches do, by the
    names that layers of windows usually have, unless another layout is nearer to what was measured.
    """
    n_windows, n_queries, n_keys = (product.effective.shape[axis] for axis in (1, 3, 4))
    lost = f"{product.layer}: where its {n_windows} windows of {n_keys} tokens sit in the image does not show; "
    remedy = "capture it with unwindow=False."
    fits = grid is not None and not grid.n_prefix and n_windows * n_keys == grid.rows * grid.cols
    if not fits or grid is None or n_queries != n_keys:
        raise CaptureError(lost + remedy)
    rows, cols = grid.rows, grid.cols
    if centres is not None:
        size = torch.tensor([rows, cols], device=centres.device)[:, None]
        row, col = (centres * size - 0.5).round().long().clamp(min=0).minimum(size - 1)
        if len((row * cols + col).unique()) == len(row):
            return (row * cols + col).view(n_windows, n_keys)
    window, shift = _geometry(product.calls, n_keys)
    if window is None:
        raise CaptureError(lost + remedy)
    named = positions(rows, cols, window, shift, strided=kind_of(product) == "grid")
    if centres is not None:
        half = (window[0] // 2, window[1] // 2)
        others = [
            positions(rows, cols, window, by, strided=way) for by in {(0, 0), half, shift} for way in (False, True)
        ]
        if _off(named, centres, grid) > CLOSER * min(_off(other, centres, grid) for other in others):
            raise CaptureError(
                f"{product.layer}: its windows do not respond to the image where its names say that they sit; {remedy}"
            )
    return named


CLOSER = 1.25
"""Times by which tokens must be nearer to another layout of windows to refute the one that the names say."""


def _off(token: Tensor, centres: Tensor, grid: TokenGrid) -> float:
    """Root mean square distance of tokens from these patches, in patches."""
    at = token.flatten().to(centres.device)
    row, col = (centres[0] * grid.rows - 0.5 - at // grid.cols), (centres[1] * grid.cols - 0.5 - at % grid.cols)
    return float((row.square() + col.square()).mean().sqrt())


def positions(rows: int, cols: int, window: tuple[int, int], shift: tuple[int, int], *, strided: bool) -> Tensor:
    """Index of token t of window w in the image, row by row: [window, token].

    Args:
        window: rows and columns of a window.
        shift: by how many rows and columns the image was rolled up and left before it was cut.
        strided: a window is a coarse grid over the whole image, as in MaxViT, and not a piece of it.
    """
    tokens = torch.arange(rows * cols).view(rows, cols).roll((-shift[0], -shift[1]), (0, 1))
    height, width = window
    if strided:
        cut = tokens.view(height, rows // height, width, cols // width).permute(1, 3, 0, 2)
    else:
        cut = tokens.view(rows // height, height, cols // width, width).permute(0, 2, 1, 3)
    return cut.reshape(-1, height * width)


def _geometry(calls: Iterable[Call], n_keys: int) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Rows and columns of a window of `n_keys` tokens, and the shift, from the innermost module that has them."""
    window, shift = None, None
    for call in reversed(tuple(calls)):
        for name in WINDOW_SIZES:
            pair = _pair(getattr(call.module, name, None))
            if window is None and pair is not None and pair[0] * pair[1] == n_keys:
                window = pair
        shift = shift or _pair(getattr(call.module, "shift_size", None))
    return window, shift or (0, 0)


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None
