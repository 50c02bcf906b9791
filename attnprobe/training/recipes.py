"""Recipes: the shipped YAML files, one of the user's, or a file written for timm's train.py (see `timm_args`)."""

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.core.registry import Registry
from attnprobe.io.config import read_yaml
from attnprobe.training.config import TrainConfig
from attnprobe.training.timm_args import from_timm


@dataclass(frozen=True, slots=True)
class Recipe:
    """A shipped YAML file; its first line says how to run it."""

    name: str
    path: Path
    summary: str


def _shipped(path: Path) -> Recipe:
    return Recipe(path.stem, path, path.read_text().splitlines()[0].removeprefix("# "))


RECIPES = Registry(
    "recipe",
    *map(_shipped, sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))),
    lister="attnprobe list recipes",
)


def read_recipe(recipe: str | Path, *, ignore_unknown: bool = False) -> dict[str, Any]:
    """The options of a shipped recipe, by name, or of a YAML file of ours or for timm's train.py.

    Args:
        ignore_unknown: drop unknown names, instead of refusing them.

    Warns, once, how a file of timm's was understood and what of it has no effect here.

    Raises:
        UnknownName: no recipe of this name.
        InputError: a file without options, or with some that do not exist here; see `from_timm`.
    """
    path = Path(recipe)
    is_file = path.suffix in (".yaml", ".yml") or path.is_file()
    if is_file and not path.exists() and path.stem in RECIPES:
        raise InputError(f"there is no file {path}; the recipe of that name is shipped: attnprobe train {path.stem}.")
    values = read_yaml(path if is_file else RECIPES[str(recipe)].path)
    known = {field.name for field in fields(TrainConfig)}
    options, note = from_timm(values, known, source=str(recipe), ignore_unknown=ignore_unknown)
    if note:
        warnings.warn(note, stacklevel=2)
    return options
