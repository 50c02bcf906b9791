"""Which training recipes are shipped? One YAML file each, with timm's names for the options."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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


RECIPES = Registry("recipe", *map(_shipped, sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))))


def read_recipe(recipe: str | Path, *, ignore_unknown: bool = False) -> dict[str, Any]:
    """The options of a shipped recipe, by name, or of a YAML file of ours or for timm's train.py.

    Args:
        ignore_unknown: leave out names nobody knows, instead of refusing them.

    Raises:
        UnknownName: no recipe of this name.
        InputError: a file that holds no options, or some that cannot be had; see `from_timm`.
    """
    path = Path(recipe)
    is_file = path.suffix in (".yaml", ".yml") or path.is_file()
    values = read_yaml(path if is_file else RECIPES[str(recipe)].path)
    known = {field.name for field in fields(TrainConfig)}
    return from_timm(values, known, source=str(recipe), ignore_unknown=ignore_unknown)
