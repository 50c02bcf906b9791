"""Which operation does every image get, and how strong? RandAugment, AutoAugment and colour jitter in timm's spelling.

    rand-m9-mstd0.5-inc1    two of 15 operations at level 9 +- 0.5, each with probability 0.5
    v0, original-mstd0.5    AutoAugment

All is drawn on the CPU from PyTorch's global generator, so every device gets the same choices and none has to wait.
Operations of one image follow one another on bytes, as in Pillow.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.training.autoaugment import AUTOAUGMENT, Step
from attnprobe.training.pixel_ops import AFFINE_OPS, PIXEL_OPS, apply_chosen

TOP_LEVEL = 10


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as a policy names it: what is done, and how a level becomes an amount."""

    does: str
    amount: Callable[[Tensor], Tensor] = torch.zeros_like
    signed: bool = False
    """Whether the level is negated for every other image."""


def _share_kept(level: Tensor) -> Tensor:
    return 0.1 + 1.8 * level / TOP_LEVEL


def _away_from_one(level: Tensor) -> Tensor:
    return (1 + 0.9 * level / TOP_LEVEL).clamp(min=0.1)


def _bits(level: Tensor) -> Tensor:
    return (level / TOP_LEVEL * 4).floor()


def _threshold(level: Tensor) -> Tensor:
    return (level / TOP_LEVEL * 256).floor().clamp(max=256)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation("autocontrast"),
    "Equalize": Operation("equalize"),
    "Invert": Operation("invert"),
    "Rotate": Operation("rotate", lambda level: 30 * level / TOP_LEVEL, signed=True),
    "Posterize": Operation("posterize", _bits),
    "PosterizeIncreasing": Operation("posterize", lambda level: 4 - _bits(level)),
    "PosterizeOriginal": Operation("posterize", lambda level: 4 + _bits(level)),
    "Solarize": Operation("solarize", _threshold),
    "SolarizeIncreasing": Operation("solarize", lambda level: 256 - _threshold(level)),
    "SolarizeAdd": Operation("solarize_add", lambda level: (level / TOP_LEVEL * 110).floor().clamp(max=128)),
    "Color": Operation("color", _share_kept),
    "ColorIncreasing": Operation("color", _away_from_one, signed=True),
    "Contrast": Operation("contrast", _share_kept),
    "ContrastIncreasing": Operation("contrast", _away_from_one, signed=True),
    "Brightness": Operation("brightness", _share_kept),
    "BrightnessIncreasing": Operation("brightness", _away_from_one, signed=True),
    "Sharpness": Operation("sharpness", _share_kept),
    "SharpnessIncreasing": Operation("sharpness", _away_from_one, signed=True),
    "ShearX": Operation("shear_x", lambda level: 0.3 * level / TOP_LEVEL, signed=True),
    "ShearY": Operation("shear_y", lambda level: 0.3 * level / TOP_LEVEL, signed=True),
    "TranslateXRel": Operation("translate_x", lambda level: 0.45 * level / TOP_LEVEL, signed=True),
    "TranslateYRel": Operation("translate_y", lambda level: 0.45 * level / TOP_LEVEL, signed=True),
    "Desaturate": Operation("color", lambda level: 1 - (0.5 + 0.5 * level / TOP_LEVEL).clamp(max=1)),
    "GaussianBlur": Operation("gaussian_blur", lambda level: (0.1 + 1.9 * level / TOP_LEVEL).clamp(max=2)),
    "GaussianBlurRand": Operation(
        "gaussian_blur", lambda level: 0.1 + (2 * (level / TOP_LEVEL).clamp(max=1) - 0.1) * torch.rand_like(level)
    ),
}
"""timm's name -> operation."""

BASIC = "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness "
BASIC += "ShearX ShearY TranslateXRel TranslateYRel"
INCREASING = re.sub(r"\b(Posterize|Solarize|Color|Contrast|Brightness|Sharpness)\b", r"\1Increasing", BASIC)

CHOICES: dict[str, dict[str, float]] = {
    "basic": dict.fromkeys(BASIC.split(), 1.0),
    "increasing": dict.fromkeys(INCREASING.split(), 1.0),
    "3a": dict.fromkeys(("SolarizeIncreasing", "Desaturate", "GaussianBlur"), 1.0),
    "weights": {
        **dict.fromkeys(INCREASING.split(), 0.05),
        **{"Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1},
        **{"ColorIncreasing": 0.25, "SharpnessIncreasing": 0.25, "AutoContrast": 0.25},
    },
    "3aw": {
        **{"SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2},
        **{"PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1},
        **{"ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1},
    },
}
"""Sets RandAugment chooses from -> operations and their weights; those after "t" are chosen by that letter."""

WEIGHTED = ("weights", "3aw")


@dataclass(frozen=True, slots=True)
class Policy:
    """Alternatives of which every image draws some, each a row of steps done one after the other.

    Attributes:
        alternatives: rows of equal length of (operation, probability, level).
        layers: how many alternatives an image draws.
        weights: of the alternatives, which are then drawn without repetition; None for equal ones with repetition.
        std: of the level, per image and step; infinite for uniform from 0 to the level.
        top: the highest level.
    """

    alternatives: tuple[tuple[Step, ...], ...]
    layers: int = 1
    weights: tuple[float, ...] | None = None
    std: float = 0.0
    top: float = TOP_LEVEL

    def __call__(self, pixels: Tensor, *, fill: Tensor, interpolation: str) -> Tensor:
        """[image, 3, row, col] uint8 on any device -> the same; `fill`, `interpolation` as for `apply_chosen`."""
        n = len(pixels)
        weights = torch.tensor(self.weights or [1.0] * len(self.alternatives))
        drawn = torch.multinomial(weights.expand(n, -1), self.layers, replacement=self.weights is None)
        names = tuple(OPERATIONS)
        which = torch.tensor([[names.index(name) for name, _, _ in steps] for steps in self.alternatives])
        probability = torch.tensor([[p for _, p, _ in steps] for steps in self.alternatives], dtype=torch.float64)
        level = torch.tensor([[level for _, _, level in steps] for steps in self.alternatives], dtype=torch.float64)
        for alternative in drawn.unbind(1):
            for step in range(which.shape[1]):
                happens = torch.rand(n, dtype=torch.float64) < probability[alternative, step]
                chosen = torch.where(happens, which[alternative, step], -1)
                levels = self._vary(level[alternative, step])
                pixels = _apply(pixels, names, chosen, levels, fill=fill, interpolation=interpolation)
        return pixels

    def _vary(self, level: Tensor) -> Tensor:
        if self.std == float("inf"):
            level = level * torch.rand_like(level)
        elif self.std > 0:
            level = level + self.std * torch.randn_like(level)
        return level.clamp(0, self.top)


def _apply(
    pixels: Tensor, names: tuple[str, ...], chosen: Tensor, level: Tensor, *, fill: Tensor, interpolation: str
) -> Tensor:
    """`apply_chosen` for operations of policies at levels [image]."""
    sign = 1 - 2 * (torch.rand_like(level) < 0.5).double()
    signed = torch.tensor([OPERATIONS[name].signed for name in names])[chosen]
    level = torch.where(signed, level * sign, level)
    does, amount, worker = tuple(PIXEL_OPS) + tuple(AFFINE_OPS), level.clone(), chosen.clone()
    for k in chosen.unique().tolist():
        if k >= 0:
            mine = chosen == k
            worker[mine] = does.index(OPERATIONS[names[k]].does)
            amount[mine] = OPERATIONS[names[k]].amount(level[mine])
    return apply_chosen(pixels, does, worker, amount, fill=fill, interpolation=interpolation)


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue by random factors, in an order of its own for every image.

    Attributes:
        strength: of these four; a factor is uniform in [1 - s, 1 + s] (from 0 on), a turn of hue in [-s, s].
        probability: of any change to an image.
    """

    strength: tuple[float, ...]
    probability: float = 1.0

    def __call__(self, pixels: Tensor, *, fill: Tensor, interpolation: str) -> Tensor:
        """[image, 3, row, col] uint8 on any device -> the same."""
        n = len(pixels)
        strength = torch.tensor(self.strength, dtype=torch.float64)
        centre = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
        low, high = centre - strength, centre + strength
        low[:3] = low[:3].clamp(min=0)
        amount = low + (high - low) * torch.rand(n, 4, dtype=torch.float64)
        order = torch.rand(n, 4).argsort(1)
        unchanged = (torch.rand(n, 1) >= self.probability) | (strength == 0)
        for turn in order.unbind(1):
            chosen = torch.where(unchanged.gather(1, turn[:, None])[:, 0], -1, turn)
            pixels = apply_chosen(
                pixels,
                ("brightness", "contrast", "color", "hue"),
                chosen,
                amount.gather(1, turn[:, None])[:, 0],
                fill=fill,
                interpolation=interpolation,
            )
        return pixels


def parse_policy(text: str) -> Policy:
    """timm's string -> policy.

    `rand` takes -m (level, 10), -n (operations per image, 2), -p (probability of each, 0.5), -mstd (spread of the
    level, 0; above 100: uniform from 0), -mmax (highest level, 10), -inc1 (all grow stronger with the level) and -t
    with a set (weights, 3a, 3aw). v0, v0r, original, originalr and 3a take -mstd.

    Raises:
        InputError: an unknown policy, option or number; or augmix, which mixes several augmented copies.
    """
    kind, *sections = text.split("-")
    if kind == "augmix":
        raise InputError(f"aa={text!r}: augmix exists only for images decoded by worker processes; use rand-m9-inc1.")
    check_choice("aa", kind, ("rand", *AUTOAUGMENT))
    wanted = {"m": int, "n": int, "p": float, "mstd": float, "mmax": int, "inc": int, "t": str}
    options: dict[str, float | str] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)|(t)(weights|3aw|3a)", section)
        key, value = (match[1] or match[3], match[2] or match[4]) if match else ("", "")
        if not key or (kind != "rand" and key != "mstd") or (wanted[key] is int and "." in value):
            known = "m9 n2 p0.5 mstd0.5 mmax10 inc1 tweights t3a t3aw" if kind == "rand" else "mstd0.5"
            raise InputError(f"aa={text!r}: cannot read {section!r} after {kind}; expected some of {known}.")
        options[key] = wanted[key](value)
    std = float(options.get("mstd", 0))
    std = float("inf") if std > 100 else std
    if kind != "rand":
        return Policy(AUTOAUGMENT[kind], std=std)
    chosen_from = str(options.get("t", "increasing" if options.get("inc") else "basic"))
    choices, layers = CHOICES[chosen_from], int(options.get("n", 2))
    probability, level = float(options.get("p", 0.5)), float(options.get("m", TOP_LEVEL))
    weights = tuple(choices.values()) if chosen_from in WEIGHTED else None
    if layers < 1 or (weights and layers > len(choices)) or probability > 1:
        raise InputError(f"aa={text!r}: n must be 1 to {len(choices)} operations, p a probability.")
    alternatives = tuple(((name, probability, level),) for name in choices)
    return Policy(alternatives, layers, weights, std, float(options.get("mmax", TOP_LEVEL)))
