"""What do heads attend to before training, if they start as impulses? Writes structured_init.png (about 40 s).

    python examples/structured_init.py [structured_init.png]

Left the closed form, right Adam. For each head: the wanted map (four of the 16 rows of patches, a tick per row), the
map its weights give on positions alone, and where one patch in the middle looks.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from attnprobe import build_model
from attnprobe.models.initialisers import position_maps, target_maps

SOLVERS = {"closed_form": "closed form, 2025", "adam": "10,000 steps of Adam, 2024"}
GEOMETRY = {"img_size": 32, "patch_size": 2, "embed_dim": 192, "num_heads": 3, "depth": 2}
QUERY = 8 * 16 + 8
MIDDLE = slice(6 * 16, 10 * 16)
"""Four of the 16 rows of patches."""


def main(path: Path) -> None:
    torch.set_num_threads(1)  # matrices are small: threads would mostly wait for each other
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(3, 6)
    for solver, columns in zip(SOLVERS, (panels[:, :3], panels[:, 3:]), strict=True):
        model = build_model("structured_16", seed=3, num_classes=10, solver=solver, **GEOMETRY)
        image = draw_heads(columns, model)
        columns[0, 1].set_title(f"{SOLVERS[solver]}\n\n{columns[0, 1].get_title()}", fontsize="medium")
    figure.colorbar(image, ax=panels, label="attention", shrink=0.6)
    figure.savefig(path, dpi=130)
    print(path)


def draw_heads(axes: np.ndarray, model: torch.nn.Module) -> AxesImage:
    """One row per head: what was wanted, what is reached, and where one patch looks."""
    offsets = model.impulses.offsets
    wanted, reached = target_maps(model, offsets), position_maps(model)
    for head, (left, middle, right) in enumerate(axes):
        target, achieved = wanted.values[0, 0, head], reached.values[0, 0, head]
        mass = (achieved * target).sum(-1)[target.sum(-1) > 0].mean().item()
        down, across = offsets[0, head].tolist()
        draw_map(left, target, f"head {head + 1} should see {words(down, across)}")
        draw_map(middle, achieved, f"{mass:.2f} of its attention does")
        image = draw_query(right, achieved[QUERY].view(wanted.grid.rows, wanted.grid.cols), down, across)
    return image


def words(down: int, right: int) -> str:
    """(-1, 1) -> "1 up, 1 right"."""
    steps = [(abs(down), "down" if down > 0 else "up"), (abs(right), "right" if right > 0 else "left")]
    return ", ".join(f"{n} {name}" for n, name in steps if n) or "itself"


def draw_map(ax: Axes, values: torch.Tensor, title: str) -> None:
    """Queries and keys of one head in four rows of patches; colours from 0 to 1 in every panel."""
    ax.imshow(values[MIDDLE, MIDDLE], vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    ax.set_title(title, fontsize="medium")
    edges = range(0, 65, 16)
    ax.set(xticks=[edge - 0.5 for edge in edges], yticks=[edge - 0.5 for edge in edges], xlabel="key", ylabel="query")
    ax.tick_params(labelbottom=False, labelleft=False)


def draw_query(ax: Axes, attention: torch.Tensor, down: int, right: int) -> AxesImage:
    """Attention of one query on the grid of patches; the query is outlined in white, its target in red."""
    image = ax.imshow(attention, vmin=0, vmax=1, cmap="viridis")
    row, col = divmod(QUERY, attention.shape[1])
    ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=1.5))
    place = (col + right - 0.5, row + down - 0.5)
    ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="red", linewidth=1.5, linestyle=":"))
    ax.set(xticks=[], yticks=[], xlabel="query white, target red")
    ax.set_title("one patch", fontsize="medium")
    return image


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=Path("structured_init.png"), help="the picture to write")
    main(parser.parse_args().path)
