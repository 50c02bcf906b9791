"""The grid that says where a stage's tokens are in the image. Without torch, so that a viewer starts at once."""

from dataclasses import dataclass

import numpy as np

from attnprobe.core.errors import ShapeError


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Places of the tokens: first the prefix tokens, then the patches row by row, unless `positions` says otherwise.

    Attributes:
        rows, cols: patches along the height and the width of the image.
        prefix: names of the tokens that are no patches, such as ("cls",) or ("cls", "reg0"), in order.
        patch: height and width of one patch in pixels of the model's input.
        positions: [token], the patch that each stands for, row * cols + col, or -1 for a prefix token; for a model that
            drops, masks or sorts its patches, or has registers behind them. None for the usual order.

    Raises:
        ShapeError: positions outside the grid, twice the same, or not as many -1 as prefix tokens.
    """

    rows: int
    cols: int
    prefix: tuple[str, ...] = ("cls",)
    patch: tuple[int, int] = (16, 16)
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.positions is None:
            return
        placed = [position for position in self.positions if position != -1]
        inside = all(0 <= position < self.rows * self.cols for position in placed)
        if not inside or len(set(placed)) < len(placed) or len(self.positions) != len(placed) + self.n_prefix:
            raise ShapeError(
                f"positions of tokens must be {self.n_prefix} times -1, for {', '.join(self.prefix) or 'no prefix'}, "
                f"and different patches from 0 to {self.rows * self.cols - 1}, got {self.positions!s:.80}."
            )

    @property
    def n_prefix(self) -> int:
        return len(self.prefix)

    @property
    def n_patches(self) -> int:
        """The number of tokens that are patches; fewer than the grid has where a model drops some."""
        return self.rows * self.cols if self.positions is None else len(self.positions) - self.n_prefix

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.n_patches

    @property
    def slots(self) -> list[int]:
        """[token], where each would stand if prefix tokens came first and then every patch of the grid, row by row."""
        if self.positions is None:
            return list(range(self.n_tokens))
        prefix = iter(range(self.n_prefix))
        return [self.n_prefix + position if position >= 0 else next(prefix) for position in self.positions]

    @property
    def patches(self) -> slice | list[int]:
        """The tokens that are patches, row by row, as an index of an axis of tokens."""
        return slice(self.n_prefix, None) if self.positions is None else self._in_order[self.n_prefix :]

    @property
    def prefix_tokens(self) -> slice | list[int]:
        """The prefix tokens, as an index of an axis of tokens."""
        return slice(self.n_prefix) if self.positions is None else self._in_order[: self.n_prefix]

    @property
    def patch_positions(self) -> list[int]:
        """Positions, row * cols + col, of `patches`."""
        return sorted(slot - self.n_prefix for slot in self.slots if slot >= self.n_prefix)

    @property
    def _in_order(self) -> list[int]:
        return sorted(range(self.n_tokens), key=self.slots.__getitem__)

    def token(self, name: str) -> int | None:
        """The position of a prefix token among all tokens; None if there is none of that name."""
        if name not in self.prefix:
            return None
        return self._in_order[self.prefix.index(name)]

    def laid_out(self, values: np.ndarray) -> np.ndarray:
        """[..., token] -> [..., prefix token and patch], row by row; NaN at patches that no token stands for."""
        if self.positions is None:
            return values
        whole = np.full((*values.shape[:-1], self.n_prefix + self.rows * self.cols), np.nan, values.dtype)
        whole[..., self.slots] = values
        return whole

    def over_image(self, values: np.ndarray) -> np.ndarray:
        """[..., token] -> [..., row, col] of the patches; NaN at patches that no token stands for."""
        patches = self.laid_out(values)[..., self.n_prefix :]
        return patches.reshape(*values.shape[:-1], self.rows, self.cols)

    @property
    def patches_in_words(self) -> str:
        """`8 x 8 patches`, or `16 of 8 x 8 patches`."""
        some = "" if self.n_patches == self.rows * self.cols else f"{self.n_patches} of "
        return f"{some}{self.rows} x {self.cols} patches"
