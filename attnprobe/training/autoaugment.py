"""AutoAugment's learnt policies for ImageNet: which two operations, how probable and how strong?

Cubuk et al. 2018, arXiv:1805.09501. Every line is one alternative of equal probability; (name, probability, level from
0 to 10) in timm's names. "original" is the paper's; "v0" is the one Google's EfficientNet code trains with; an "r"
at the end turns posterisation around, so that a higher level keeps fewer bits. "3a" is DeiT III's 3-Augment (Touvron
et al. 2022, arXiv:2204.07118).
"""

Step = tuple[str, float, float]

_V0 = """
Equalize  .8 1   ShearY        .8 4
Color     .4 9   Equalize      .6 3
Color     .4 1   Rotate        .6 8
Solarize  .8 3   Equalize      .4 7
Solarize  .4 2   Solarize      .6 2
Color     .2 0   Equalize      .8 8
Equalize  .4 8   SolarizeAdd   .8 3
ShearX    .2 9   Rotate        .6 8
Color     .6 1   Equalize      1  2
Invert    .4 9   Rotate        .6 0
Equalize  1  9   ShearY        .6 3
Color     .4 7   Equalize      .6 0
Posterize .4 6   AutoContrast  .4 7
Solarize  .6 8   Color         .6 9
Solarize  .2 4   Rotate        .8 9
Rotate    1  7   TranslateYRel .8 9
ShearX    0  0   Solarize      .8 4
ShearY    .8 0   Color         .6 4
Color     1  0   Rotate        .6 2
Equalize  .8 4   Equalize      0  8
Equalize  1  4   AutoContrast  .6 2
ShearY    .4 7   SolarizeAdd   .6 7
Posterize .8 2   Solarize      .6 10
Solarize  .6 8   Equalize      .6 1
Color     .8 6   Rotate        .4 5
"""

_ORIGINAL = """
PosterizeOriginal .4 8   Rotate            .6 9
Solarize          .6 5   AutoContrast      .6 5
Equalize          .8 8   Equalize          .6 3
PosterizeOriginal .6 7   PosterizeOriginal .6 6
Equalize          .4 7   Solarize          .2 4
Equalize          .4 4   Rotate            .8 8
Solarize          .6 3   Equalize          .6 7
PosterizeOriginal .8 5   Equalize          1  2
Rotate            .2 3   Solarize          .6 8
Equalize          .6 8   PosterizeOriginal .4 6
Rotate            .8 8   Color             .4 0
Rotate            .4 9   Equalize          .6 2
Equalize          0  7   Equalize          .8 8
Invert            .6 4   Equalize          1  8
Color             .6 4   Contrast          1  8
Rotate            .8 8   Color             1  2
Color             .8 8   Solarize          .8 7
Sharpness         .4 7   Invert            .6 8
ShearX            .6 5   Equalize          1  9
Color             .4 0   Equalize          .6 3
Equalize          .4 7   Solarize          .2 4
Solarize          .6 5   AutoContrast      .6 5
Invert            .6 4   Equalize          1  8
Color             .6 4   Contrast          1  8
Equalize          .8 8   Equalize          .6 3
"""

_3A = """
Solarize         1 5
Desaturate       1 10
GaussianBlurRand 1 10
"""


def _read(table: str) -> tuple[tuple[Step, ...], ...]:
    lines = [line.split() for line in table.strip().splitlines()]
    return tuple(
        tuple((words[k], float(words[k + 1]), float(words[k + 2])) for k in range(0, len(words), 3)) for words in lines
    )


AUTOAUGMENT: dict[str, tuple[tuple[Step, ...], ...]] = {
    "v0": _read(_V0),
    "v0r": _read(_V0.replace("Posterize", "PosterizeIncreasing")),
    "original": _read(_ORIGINAL),
    "originalr": _read(_ORIGINAL.replace("PosterizeOriginal", "PosterizeIncreasing")),
    "3a": _read(_3A),
}
"""Name of a policy -> its alternatives, each one or two steps."""
