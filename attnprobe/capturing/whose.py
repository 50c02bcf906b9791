"""Proofs of whose a map is: V of a layer that is filed under an image follows that image, and no other."""

from collections.abc import Sequence

from torch import Tensor, nn

from attnprobe.capturing.passes import Pass, observed
from attnprobe.core.errors import CaptureError, option

OTHERS = 0.2
"""Change of the second image's values, relative to that of the first one's, which only the first image's change can
explain; without any mixing it is zero, or the rounding of a scale that a whole batch shares."""

NOTHING = 1e-4
"""Change of the second image's values by another image, relative to the first one's by a little noise, that is none."""

BY_ROUNDING = 0.02
"""Of the largest value, by which V of an image may differ from the same image's in a batch of another size."""

BY_OTHERS = 1e-3
"""The same in a batch of equal size, with others beside it; without any mixing that is zero."""


def shares_scales(model: nn.Module) -> bool:
    """True if layers round activations by a scale of the whole batch, so that each image moves with every other."""
    return any(type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") for module in model.modules())


def mixed(base: Pass, moved: Pass) -> str:
    """The first layer whose V of the second image changes with the first image; "" if there is none."""
    for layer, before in base.values.items():
        after = moved.values.get(layer)
        if after is None or after.shape != before.shape or len(before) != 2:
            continue
        own, other = ((after[i] - before[i]).abs().max().item() for i in (0, 1))
        if other > OTHERS * own and other > 0:
            return layer
    return ""


def refuse_across_images(base: Pass, n_images: int) -> None:
    """Raise if V of a layer is not one row of windows per image, as of attention from image to image."""
    for layer, values in base.values.items():
        if len(values) != n_images:
            raise CaptureError(
                f"{layer} multiplies {len(values)} maps of {values.shape[-2]} keys for {n_images} images: it attends "
                "across images (nn.MultiheadAttention takes [token, image, width] unless batch_first=True), and no map "
                "is of one image."
            )


def never_second(base: Pass, moved: Pass, rest: Pass) -> str:
    """The first layer of which V of the first image moves with that, and V of the second with neither; "" for none.

    Args:
        rest: the pass in which both images are others.
    """
    for layer, before in base.values.items():
        first, second = (seen.values.get(layer) for seen in (moved, rest))
        if first is None or second is None or not before.shape == first.shape == second.shape:
            continue
        own = (first[0] - before[0]).abs().max().item()
        if (second[1] - before[1]).abs().max().item() < NOTHING * own:
            return layer
    return ""


def refuse_other_images(model: nn.Module, pixels: Tensor, alone: Sequence[tuple[Pass, int]]) -> None:
    """Raise if what a model computes of an image depends on its place or on the other images in a batch of four.

    A model that deals images out, every second one to each half for instance, keeps two in order, and not four. One
    that normalises pixels by the batch, or subtracts one image from the others, gives no image maps of its own.

    Args:
        pixels: four images, and two more in place of the last two. All but the second are changes of the first.
        alone: for each of the four the pass of two that it was in, and its row there.
    """
    try:
        together, beside = (observed(model, pixels[which]).values for which in ([0, 1, 2, 3], [0, 1, 4, 5]))
    except (RuntimeError, AssertionError, ValueError, TypeError):  # no room for four, or a model of so many and no more
        return
    for layer, values in together.items():
        rows = [seen.values[layer][row] for seen, row in alone if layer in seen.values]
        others = beside.get(layer)
        if others is None or others.shape != values.shape or [row.shape for row in rows] != [x.shape for x in values]:
            continue
        size = values.abs().max().item()
        own, *elsewhere = ((values[1] - rows[i]).abs().max().item() for i in (1, 0, 2, 3))
        if own > BY_ROUNDING * size >= min(elsewhere):
            raise CaptureError(
                f"{layer}: of four images at once, what would be filed under one is another's, so the model changes "
                f"the order of images inside. Capture with {option('batch-size', 2)}."
            )
        if (values[:2] - others[:2]).abs().max().item() > BY_OTHERS * size:
            raise CaptureError(
                f"{layer}: what it computes of one image depends on the other images of a batch, so no map is of one "
                "image alone. Does the model normalise by the batch, or compare images? Capture the model inside."
            )


def image_axes(base: Pass, moved: Pass) -> dict[str, int | None]:
    """The image axis among the first two of each block's output: the one along which only entry 0 moves."""
    axes: dict[str, int | None] = {}
    for name, before in base.outputs.items():
        after = moved.outputs.get(name)
        if after is None or after.shape != before.shape:
            axes[name] = None
            continue
        change = (after - before).abs().amax(-1)
        axes[name] = next((axis for axis in (0, 1) if _first_alone(change, axis)), None)
    return axes


def _first_alone(change: Tensor, axis: int) -> bool:
    """True if an axis of length 2 changes at entry 0 and not at entry 1."""
    if change.shape[axis] != 2:
        return False
    first, second = (part.max().item() for part in change.unbind(axis))
    return first > 0 and second <= OTHERS * first
