"""Maps of windows as maps of the whole image: the place of token t of window w.

Swin (timm's v1, v2 and v2-cr, torchvision's, Hugging Face's), MaxViT and Twins; the layouts are those of their papers:
arXiv:2103.14030 (shifted windows), arXiv:2204.01697 (windows and grids), arXiv:2104.13840.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.product import Product
from attnprobe.core.errors import CaptureError
from attnprobe.core.grid import TokenGrid

WINDOW_SIZES = ("window_size", "partition_size", "grid_size", "ws")
"""Usual names of rows and columns of a window, looked up in the layer first and then in the modules around it."""


def in_image(product: Product, grid: TokenGrid | None) -> Product:
    """The product with maps of the whole image, zero between windows, where its scores are -inf.

    Raises:
        CaptureError: as `unwindowed`.
    """
    effective = unwindowed(product.effective, product, grid)
    weights, scores = product.weights, product.scores
    if weights is not None:
        weights = effective if weights is product.effective else unwindowed(weights, product, grid)
    if scores is not None:
        scores = unwindowed(scores, product, grid, outside=-torch.inf)
    return replace(product, effective=effective, weights=weights, scores=scores)


def unwindowed(maps: Tensor, product: Product, grid: TokenGrid | None, outside: float = 0.0) -> Tensor:
    """[image, window, head, query, key] -> [image, 1, head, token, token], and `outside` beyond the window.

    Raises:
        CaptureError: the layer does not say how it cuts the image into windows, or pads the image.
    """
    images, n_windows, heads, n_queries, n_keys = maps.shape
    n_tokens = n_windows * n_keys
    window, shift = _geometry(product.calls, n_keys)
    if window is None or n_queries != n_keys or grid is None or grid.n_prefix or n_tokens != grid.rows * grid.cols:
        raise CaptureError(
            f"{product.layer}: where its {n_windows} windows of {n_keys} tokens sit in the image does not show; "
            "capture it with unwindow=False."
        )
    strided = "grid" in product.calls[-1].name.lower()
    token = positions(grid.rows, grid.cols, window, shift, strided=strided).to(maps.device)
    whole = maps.new_full((images, heads, n_tokens, n_tokens), outside)
    rows, columns = token[:, :, None].expand(-1, -1, n_keys), token[:, None, :].expand(-1, n_keys, -1)
    whole[:, :, rows, columns] = maps.transpose(1, 2)
    return whole.unsqueeze(1)


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
